"""`upstream.api: auto`: each generation is found, and noticed when it changes, without an error or a wrong prompt."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from structlog.testing import capture_logs

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.service import create_app
from sidecar.demo.reference.state import TODAY, Generation, ReferenceOptions
from sidecar.settings import Settings, UpstreamApi
from tests.harness import (
    KEPT,
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    quick_settings,
    raw_upstream,
    reference,
    sidecar_with,
)

EXPLAIN = {"explain": "Explain {{ topic }} in {{ language }}."}
PROMPT = "Explain tides in English."
OFTEN, SELDOM = 0.05, 3600.0
"""Seconds between two looks."""
ASKS_ALWAYS = Policy(strategy=Strategy.NETWORK_FIRST, stale_if_error=1000)
FROM_FILE = {
    Generation.PROMPT_DATA: "prompt-data",
    Generation.PLACEHOLDERS: "placeholders",
}
"""What is in use of each generation where there is a template file."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump({f"{node}_system_prompt": text for node, text in EXPLAIN.items()}), "utf-8")
    return path


def auto(url: str, file: Path | None, *, interval: float = SELDOM, **sections: Any) -> Settings:
    upstream = {"api": UpstreamApi.AUTO, "templates_file": file, "detect_interval": interval}
    return quick_settings(url, upstream=upstream, **{"policy": ASKS_ALWAYS, **sections})


def service_of(generation: Generation) -> Any:
    return reference(templates=EXPLAIN, generation=generation, render=TODAY)


async def status(sidecar: Sidecar) -> Any:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        return await response.json()


async def in_use(sidecar: Sidecar) -> str | None:
    found: str | None = (await status(sidecar))["upstream"]["generation"]
    return found


async def metric_says(sidecar: Sidecar, generation: str) -> bool:
    lines = [line for line in (await sidecar.metrics()).splitlines() if "upstream_generation{" in line]
    return [line for line in lines if line.endswith(" 1.0")] == [
        f'prompt_sidecar_upstream_generation{{generation="{generation}"}} 1.0'
    ]


async def becomes(sidecar: Sidecar, generation: str) -> None:
    """Wait for another generation to be noticed, while prompts are asked for and are right."""

    async def noticed() -> bool:
        assert (await sidecar.ask()).prompt == PROMPT
        return await in_use(sidecar) == generation

    await eventually(noticed)


@pytest.mark.parametrize(
    ("generation", "with_file", "expected"),
    [
        (Generation.PROMPT_DATA, True, "prompt-data"),
        (Generation.PROMPT_DATA, False, "prompt-data"),
        (Generation.PLACEHOLDERS, True, "placeholders"),
        (Generation.PLACEHOLDERS, False, "passthrough"),
        (Generation.PASSTHROUGH, False, "passthrough"),
    ],
)
async def test_the_very_first_request_is_right_and_everything_says_which_generation_is_in_use(
    generation: Generation, expected: str, file: Path, *, with_file: bool
) -> None:
    with capture_logs() as logged:
        async with (
            service_of(generation) as service,
            sidecar_with(auto(service.url, file if with_file else None)) as sidecar,
        ):
            assert (await sidecar.ask()).prompt == PROMPT
            assert await in_use(sidecar) == expected
            assert (await status(sidecar))["upstream"]["api"] == "auto"
            assert await metric_says(sidecar, expected)
            assert (await sidecar.ask(2)).prompt == PROMPT
            assert service.state.calls["probe"] == 1
    (told,) = [event for event in logged if event["event"] == "generation_changed"]
    assert (told["to"], told["before"], told["log_level"]) == (expected, None, "info")


async def test_prompts_of_many_who_ask_first_are_right_and_cost_one_look(file: Path) -> None:
    async with service_of(Generation.PLACEHOLDERS) as service, sidecar_with(auto(service.url, file)) as sidecar:
        answers = await asyncio.gather(*(sidecar.ask(user) for user in range(1, 21)))
        assert {answered.prompt for answered in answers} == {PROMPT}
        assert service.state.calls["probe"] == 1
        assert service.state.calls["prompt-data"] == 0


async def test_an_upgrade_of_the_service_is_noticed_without_a_restart(file: Path) -> None:
    with capture_logs() as logged:
        async with (
            service_of(Generation.PLACEHOLDERS) as service,
            sidecar_with(auto(service.url, file, interval=OFTEN)) as sidecar,
        ):
            assert (await sidecar.ask()).prompt == PROMPT
            assert await in_use(sidecar) == "placeholders"
            service.state.generation = Generation.PROMPT_DATA
            await becomes(sidecar, "prompt-data")
            assert await metric_says(sidecar, "prompt-data")
            assert (await sidecar.ask()).prompt == PROMPT
            assert service.calls > 0
    told = [event for event in logged if event["event"] == "generation_changed"]
    assert [(event["before"], event["to"], event["log_level"]) for event in told] == [
        (None, "placeholders", "info"),
        ("placeholders", "prompt-data", "warning"),
    ]


@pytest.mark.parametrize(
    ("back_to", "with_file", "expected"),
    [
        (Generation.PLACEHOLDERS, True, "placeholders"),
        (Generation.PLACEHOLDERS, False, "passthrough"),
        (Generation.PASSTHROUGH, False, "passthrough"),
    ],
)
async def test_a_roll_back_is_noticed_by_the_next_request_without_an_error_or_an_eviction(
    back_to: Generation, expected: str, file: Path, *, with_file: bool
) -> None:
    async with (
        service_of(Generation.PROMPT_DATA) as service,
        sidecar_with(auto(service.url, file if with_file else None)) as sidecar,
    ):
        assert (await sidecar.ask()).prompt == PROMPT
        kept = len(sidecar.core.cache)
        service.state.generation = back_to
        assert (await sidecar.ask()).prompt == PROMPT
        assert await in_use(sidecar) == expected
        assert await metric_says(sidecar, expected)
        assert len(sidecar.core.cache) >= kept
        assert 'invalidations_total{source="upstream"} 0.0' in await sidecar.metrics()
        service.state.database.change(1, {"language": "German"})
        assert (await sidecar.ask()).prompt == "Explain tides in German."
        service.state.generation = Generation.PROMPT_DATA  # and up again
        await sidecar.core.selection.endpoint_exists(1.0)
        assert (await sidecar.ask()).prompt == "Explain tides in German."


@pytest.mark.parametrize("before", [Generation.PROMPT_DATA, Generation.PASSTHROUGH])
async def test_the_first_generation_renders_itself_even_where_there_is_a_template_file(
    before: Generation, file: Path
) -> None:
    async with service_of(before) as service, sidecar_with(auto(service.url, file)) as sidecar:
        assert (await sidecar.ask()).prompt == PROMPT
        service.state.generation = Generation.PASSTHROUGH
        for user in (1, 1, 2):
            assert (await sidecar.ask(user)).prompt == PROMPT


async def test_an_unknown_node_that_says_not_found_is_no_missing_endpoint() -> None:
    async def plays(exchange: Exchange) -> None:
        if exchange.head.startswith(b"GET "):
            await exchange.answer({"detail": "Method Not Allowed"}, status=405)
        elif exchange.node == "explain":
            await exchange.answer(prompt_data())
        else:
            await exchange.answer({"detail": "Not Found"}, status=404)

    async with raw_upstream(plays) as upstream, sidecar_with(auto(upstream.url, None)) as sidecar:
        for _ in range(3):
            unknown = await sidecar.ask(node="no-such-node")
            assert (unknown.status, unknown.document) == (404, {"detail": "Not Found"})
            assert await in_use(sidecar) == "prompt-data"
            assert (await sidecar.ask()).prompt == "Explain tides in plain words."
        assert not any(b"generate-prompt" in request for request in upstream.requests)


@pytest.mark.parametrize("generation", FROM_FILE)
async def test_a_page_of_a_proxy_whose_service_is_dead_neither_evicts_nor_switches(
    generation: Generation, file: Path
) -> None:
    dead = False

    async def plays(exchange: Exchange) -> None:
        if dead:
            page = b"<html><h1>404 Not Found</h1><hr>a proxy</html>"
            await exchange.answer(page, status=404, headers={"Content-Type": "text/html"})
        elif exchange.head.startswith(b"GET /api/v1/prompt-data"):
            exists = generation is Generation.PROMPT_DATA
            await exchange.answer({"detail": "Not Found"}, status=405 if exists else 404)
        elif exchange.head.startswith(b"GET /api/v1/users/"):
            await exchange.answer({"placeholders": {"language": {"value": "English"}}})
        else:
            await exchange.answer(prompt_data(EXPLAIN["explain"], {"language": "English"}, required=("topic",)))

    async with raw_upstream(plays) as upstream, sidecar_with(auto(upstream.url, file, policy=KEPT)) as sidecar:
        assert (await sidecar.ask()).prompt == PROMPT
        dead = True
        for _ in range(3):
            answered = await sidecar.ask()
            assert answered.prompt == PROMPT
            assert "stale-if-error" in answered.how
        assert await in_use(sidecar) == FROM_FILE[generation]
        assert 'invalidations_total{source="upstream"} 0.0' in await sidecar.metrics()
        never_seen = await sidecar.ask(2)
        assert (never_seen.status, never_seen.is_problem) == (503, True)
        dead = False
        assert (await sidecar.ask(2)).prompt == PROMPT


@asynccontextmanager
async def started(listening: socket.socket, options: Mapping[str, Any]) -> AsyncIterator[None]:
    """Start the service at an address where nobody listened so far."""
    runner = web.AppRunner(create_app(ReferenceOptions(templates=EXPLAIN, render=TODAY, **options)))
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("generation", [*FROM_FILE, Generation.PASSTHROUGH])
async def test_of_a_service_that_was_never_up_nothing_is_concluded_and_the_first_request_after_is_right(
    generation: Generation, file: Path
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens: connections are refused
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with_file = file if generation in FROM_FILE else None
        async with sidecar_with(auto(url, with_file)) as sidecar:
            answered = await sidecar.ask()
            assert (answered.status, answered.is_problem) == (503, True)
            assert int(answered.headers["Retry-After"]) >= 1
            assert await in_use(sidecar) is None
            assert "upstream_generation{" not in await sidecar.metrics()
            async with started(bound, {"generation": generation}):
                assert (await sidecar.ask()).prompt == PROMPT
                assert await in_use(sidecar) == FROM_FILE.get(generation, "passthrough")


@pytest.mark.parametrize("fault", [Mode.ERROR, Mode.HANG, Mode.GARBAGE, Mode.RESET, Mode.TOO_MANY])
async def test_a_service_in_trouble_at_the_first_look_is_not_taken_for_an_older_one(fault: Mode, file: Path) -> None:
    async with service_of(Generation.PROMPT_DATA) as service:
        service.fails(fault, retry_after=0)
        async with sidecar_with(auto(service.url, file)) as sidecar:
            assert (await sidecar.ask()).status in {502, 503, 504}
            assert await in_use(sidecar) is None
            service.fails(Mode.NONE)
            assert (await sidecar.ask()).prompt == PROMPT
            assert await in_use(sidecar) == "prompt-data"
            assert service.state.answers["user-placeholders 200"] == 0
