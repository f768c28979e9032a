"""What the service renders itself: all of it in its first generation, and in each a template that is not admitted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from structlog.testing import capture_logs

from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import BreakerSettings, Settings, UpstreamApi
from tests.harness import (
    JSON,
    PATH,
    QUICK_LIMIT,
    Answered,
    ManualClock,
    Reference,
    Sidecar,
    quick_settings,
    reference,
    sidecar_with,
)

BYPASS = "prompt-sidecar; fwd=bypass; detail={}"
NEVER_OPENS = BreakerSettings(fail_max=1000)
OPENS_SOON = BreakerSettings(fail_max=3, reset_timeout=10, success_threshold=1)
ODD = "{{ topic | center(40) }} in {{ style }}, in {{ language }}; {{ nobody_gives_this }}"
"""Renders at the service; the gate admits no `center`."""
TEMPLATES = {"odd": ODD, "explain": "Explain {{ topic }} in {{ language }}."}
TOPIC = {"topic": "<tides> & {{ 7*7 }}", "extra": "unused"}


def passthrough(url: str, **sections: Any) -> Settings:
    return quick_settings(url, upstream={"api": UpstreamApi.PASSTHROUGH}, **{"breaker": NEVER_OPENS, **sections})


@asynccontextmanager
async def first_generation(**sections: Any) -> AsyncIterator[tuple[Reference, Sidecar]]:
    clock = sections.pop("clock", None)
    async with reference(templates=TEMPLATES, generation=Generation.PASSTHROUGH, render=TODAY) as service:
        settings = passthrough(service.url, **sections)
        async with sidecar_with(settings, **({"clock": clock} if clock else {})) as sidecar:
            yield service, sidecar


async def directly(sidecar: Sidecar, url: str, node: str, context: Any = TOPIC) -> tuple[int, bytes]:
    body = json.dumps({"user_id": 1, "node_name": node, "context": context}).encode()
    async with sidecar.session.post(url + PATH, data=body, headers=JSON) as response:
        return response.status, await response.read()


async def status(sidecar: Sidecar) -> Any:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        return await response.json()


def assert_theirs(answered: Answered, theirs: tuple[int, bytes], why: str) -> None:
    expected = json.loads(theirs[1])
    assert answered.prompt.encode() == expected["prompt"].encode()
    assert answered.document == expected
    assert answered.how == BYPASS.format(why)


async def test_each_prompt_is_the_services_own_and_nothing_of_it_is_kept() -> None:
    async with first_generation() as (service, sidecar):
        theirs = await directly(sidecar, service.url, "explain")
        for asked in range(2, 5):
            assert_theirs(await sidecar.ask(1, "explain", TOPIC), theirs, "passthrough")
            assert service.state.calls["generate-prompt"] == asked
        service.state.database.change(1, {"language": "German"})
        assert "in German" in (await sidecar.ask(1, "explain", TOPIC)).prompt
        assert len(sidecar.core.cache) == 0
        assert {name for name, count in service.state.calls.items() if count} == {"generate-prompt"}
        service.fails(Mode.UNAVAILABLE)
        assert (await sidecar.ask(1, "explain", TOPIC)).status == 503  # nothing stale can stand in
        assert 'prompt_sidecar_bypassed_requests_total{reason="passthrough"} 4.0' in await sidecar.metrics()


@pytest.mark.parametrize("fault", [Mode.ERROR, Mode.RESET, Mode.HANG, Mode.HALF])
async def test_one_failure_is_made_good_inside_the_deadline(fault: Mode) -> None:
    async with first_generation() as (service, sidecar):
        service.fails(fault, count=1)
        answered = await sidecar.ask(1, "explain", TOPIC)
        assert answered.prompt.startswith("Explain &lt;tides&gt;")
        assert answered.seconds < QUICK_LIMIT
        assert service.state.calls["generate-prompt"] == 2
        service.fails(Mode.NONE)


@pytest.mark.parametrize(("fault", "status"), [(Mode.ERROR, 503), (Mode.HANG, 504), (Mode.GARBAGE, 502)])
async def test_a_service_that_does_not_recover_gives_an_error_inside_the_deadline(fault: Mode, status: int) -> None:
    async with first_generation() as (service, sidecar):
        service.fails(fault)
        answered = await sidecar.ask(1, "explain", TOPIC)
        assert (answered.status, answered.is_problem) == (status, True)
        assert answered.seconds < QUICK_LIMIT
        service.fails(Mode.NONE)


async def test_the_breaker_opens_and_then_requests_fail_fast_until_it_closes() -> None:
    clock = ManualClock()
    async with first_generation(breaker=OPENS_SOON, clock=clock) as (service, sidecar):
        service.fails(Mode.ERROR)
        assert (await sidecar.ask()).status == 503  # three attempts
        calls = service.state.calls["generate-prompt"]
        for answered in await asyncio.gather(*(sidecar.ask(user) for user in range(1, 11))):
            assert (answered.status, answered.is_problem) == (503, True)
            assert 1 <= int(answered.headers["Retry-After"]) <= 10
        assert service.state.calls["generate-prompt"] == calls == 3
        assert (await status(sidecar))["upstream"]["circuit"] == "open"
        service.fails(Mode.NONE)
        clock.advance(10)
        assert (await sidecar.ask()).prompt
        assert (await status(sidecar))["upstream"]["circuit"] == "closed"


@pytest.mark.parametrize(
    ("node", "context", "expected"), [("no-such-node", {}, 400), ("explain", {"topic": 7}, 400), ("explain", {}, 200)]
)
async def test_a_refusal_of_the_service_is_passed_on_as_it_is(node: str, context: Any, expected: int) -> None:
    async with first_generation(breaker=BreakerSettings(fail_max=1)) as (service, sidecar):
        theirs = await directly(sidecar, service.url, node, context)
        answered = await sidecar.ask(1, node, context)
        assert (answered.status, answered.body) == theirs
        assert answered.status == expected
        assert service.state.calls["generate-prompt"] == 2  # ours once, never again
        assert (await sidecar.ask()).prompt  # and the circuit is closed


class World(NamedTuple):
    """A service with one template that is not admitted, a sidecar before it, and what is logged."""

    service: Reference
    sidecar: Sidecar
    logged: list[Any]

    @property
    def warnings(self) -> list[Any]:
        return [event for event in self.logged if event["event"] == "template_not_admitted"]


@pytest.fixture(params=[Generation.PLACEHOLDERS, Generation.PROMPT_DATA])
async def not_admitted(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump({f"{node}_system_prompt": text for node, text in TEMPLATES.items()}), "utf-8")
    upstream = {"api": UpstreamApi(request.param.value), "templates_file": file}
    with capture_logs() as logged:
        async with reference(templates=TEMPLATES, generation=request.param, render=TODAY) as service:
            settings = quick_settings(service.url, upstream=upstream, breaker=NEVER_OPENS)
            async with sidecar_with(settings) as sidecar:
                yield World(service, sidecar, logged)


async def test_a_template_that_is_not_admitted_is_rendered_by_the_service_byte_for_byte(not_admitted: World) -> None:
    service, sidecar, _ = not_admitted
    for context in (TOPIC, {}, {"topic": "x", "language": "Latin"}):
        theirs = await directly(sidecar, service.url, "odd", context)
        assert_theirs(await sidecar.ask(1, "odd", context), theirs, "not-admitted")
    assert "hit" not in (await sidecar.ask(1, "odd", TOPIC)).how
    assert "bypass" not in (await sidecar.ask(1, "explain", TOPIC)).how  # the others are rendered here


async def test_it_is_warned_of_once_counted_and_named_in_the_status(not_admitted: World) -> None:
    _, sidecar, _ = not_admitted
    for user in (1, 1, 2, 3):
        assert (await sidecar.ask(user, "odd", TOPIC)).prompt
    (warned,) = not_admitted.warnings
    assert (warned["node"], warned["log_level"]) == ("odd", "warning")
    assert "center" in warned["detail"]
    metrics = await sidecar.metrics()
    assert "prompt_sidecar_templates_not_admitted_total 1.0" in metrics
    assert 'prompt_sidecar_bypassed_requests_total{reason="not-admitted"} 4.0' in metrics
    assert 'prompt_sidecar_requests_total{node="odd",outcome="bypass"} 4.0' in metrics
    named = (await status(sidecar))["not_admitted"]
    assert list(named) == ["odd"]
    assert "center" in named["odd"]


async def test_in_an_outage_it_has_no_cover_and_after_it_works_again(not_admitted: World) -> None:
    service, sidecar, _ = not_admitted
    await sidecar.ask(1, "explain", TOPIC)
    service.fails(Mode.UNAVAILABLE, retry_after=0)
    refused = await sidecar.ask(1, "odd", TOPIC)
    assert (refused.status, refused.is_problem) == (503, True)
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await sidecar.ask(1, "explain", TOPIC)).prompt  # the others have
    service.fails(Mode.NONE)
    assert_theirs(await sidecar.ask(1, "odd", TOPIC), await directly(sidecar, service.url, "odd"), "not-admitted")


async def test_one_that_the_service_does_not_know_either_is_refused_as_it_refuses(not_admitted: World) -> None:
    service, sidecar, _ = not_admitted
    del service.state.templates["odd"]
    answered = await sidecar.ask(1, "odd", TOPIC)
    expected = 404 if service.state.generation is Generation.PROMPT_DATA else 400
    assert (answered.status, answered.document["detail"]) == (expected, "Template not found for node: odd")
