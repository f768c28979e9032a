"""What a running sidecar says of itself at `/status`: its state, and no content and no user."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import installed_version
from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import (
    BreakerSettings,
    OnUpstreamFailure,
    RolloutSettings,
    Settings,
    ShadowSettings,
    UpstreamApi,
)
from tests.harness import Client, ManualClock, Reference, Sidecar, quick_settings, reference, sidecar_with

CANARY = "canary-7f3a"
USER = 987_654_321
ODD = "{{ topic | center(9) }}"
"""Renders at the service; the gate admits no `center`."""
TEMPLATES = {"explain": f"{CANARY} Explain {{{{ topic }}}} in {{{{ language }}}}.", "odd": f"{CANARY} {ODD}"}
KEYS = {"version", "ready", "upstream", "not_admitted", "rollout", "parity", "cache"}


class Here(Sidecar):
    """A sidecar before a service, in the clock's time."""

    def __init__(self, sidecar: Sidecar, service: Reference, clock: ManualClock) -> None:
        super().__init__(sidecar, sidecar.core)
        self.service = service
        self.clock = clock

    async def status(self) -> dict[str, Any]:
        return await status_of(self)


async def status_of(client: Client) -> dict[str, Any]:
    async with client.session.get(f"{client.ops}/status") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        text = await response.text()
    assert text.endswith("}\n")
    found: dict[str, Any] = json.loads(text)
    return found


@asynccontextmanager
async def here(
    generation: Generation = Generation.PROMPT_DATA, *, upstream: Mapping[str, Any] | None = None, **sections: Any
) -> AsyncIterator[Here]:
    clock = ManualClock()
    async with reference(templates=TEMPLATES, generation=generation, render=TODAY) as service:
        settings: Settings = quick_settings(service.url, upstream=upstream, **sections)
        async with sidecar_with(settings, clock=clock) as sidecar:
            yield Here(sidecar, service, clock)


def template_file(folder: Path, templates: Mapping[str, str] = TEMPLATES) -> Path:
    path = folder / "prompts.yaml"
    path.write_text("".join(f"{node}_system_prompt: '{text}'\n" for node, text in templates.items()), "utf-8")
    return path


async def test_at_the_start_it_says_what_it_is_and_that_nothing_is_wrong() -> None:
    async with here() as sidecar:
        assert await sidecar.status() == {
            "version": installed_version(),
            "ready": True,
            "upstream": {
                "url": sidecar.service.url,
                "api": "prompt-data",
                "generation": "prompt-data",
                "generation_seconds": 0.0,
                "circuit": "closed",
                "tls": None,
                "token": None,
            },
            "not_admitted": {},
            "rollout": {"percent": "100%", "nodes": "*", "exclude": "[]", "on_upstream_failure": "fail"},
            "parity": {"set_aside": {}},
            "cache": {"entries": 0, "bytes": 0},
        }


async def test_it_is_laid_out_for_people() -> None:
    async with here() as sidecar, sidecar.session.get(f"{sidecar.ops}/status") as response:
        lines = (await response.text()).splitlines()
    assert lines[:2] == ["{", f'  "version": "{installed_version()}",']


@pytest.mark.parametrize("generation", [Generation.PROMPT_DATA, Generation.PASSTHROUGH])
async def test_it_says_which_generation_was_found_and_for_how_long_it_is_in_use(generation: Generation) -> None:
    async with here(generation, upstream={"api": UpstreamApi.AUTO}) as sidecar:
        await sidecar.ask()
        sidecar.clock.advance(12.3456)
        upstream = (await sidecar.status())["upstream"]
        assert (upstream["api"], upstream["generation"]) == ("auto", generation.value)
        assert upstream["generation_seconds"] == pytest.approx(12.346)


async def test_of_a_service_that_was_never_up_nothing_is_said_to_be_known() -> None:
    settings = quick_settings("http://127.0.0.1:9", upstream={"api": UpstreamApi.AUTO})
    async with sidecar_with(settings) as sidecar:
        status = await status_of(sidecar)
        assert (status["upstream"]["generation"], status["upstream"]["generation_seconds"]) == (None, None)
        assert status["ready"] is True  # an outage is what it is there for


async def test_the_circuit_is_that_of_the_breaker() -> None:
    breaker = BreakerSettings(fail_max=1, reset_timeout=10, success_threshold=2)
    async with here(breaker=breaker, policy=Policy(strategy=Strategy.NETWORK_ONLY, network_timeout=0.1)) as sidecar:
        sidecar.service.fails(Mode.ERROR)
        await sidecar.ask()
        assert (await sidecar.status())["upstream"]["circuit"] == "open"
        sidecar.service.fails(Mode.NONE)
        sidecar.clock.advance(10)
        await sidecar.ask()
        assert (await sidecar.status())["upstream"]["circuit"] == "half-open"
        await sidecar.ask()
        assert (await sidecar.status())["upstream"]["circuit"] == "closed"


async def test_the_cache_is_told_by_its_size() -> None:
    async with here() as sidecar:
        for user in (1, 2):
            await sidecar.ask(user)
        cache = (await sidecar.status())["cache"]
        assert cache["entries"] == 2
        assert cache["bytes"] > 0


async def test_the_rollout_is_told_as_it_would_be_written() -> None:
    rollout = RolloutSettings(
        percent=0.25,
        nodes=frozenset({"quiz", "explain"}),
        exclude=frozenset({"a, b"}),
        on_upstream_failure=OnUpstreamFailure.LOCAL,
    )
    async with here(rollout=rollout) as sidecar:
        assert (await sidecar.status())["rollout"] == {
            "percent": "25%",
            "nodes": "[explain, quiz]",
            "exclude": '["a, b"]',
            "on_upstream_failure": "local",
        }


# Templates


async def test_a_template_that_is_not_admitted_is_named_with_the_reason() -> None:
    async with here() as sidecar:
        assert (await sidecar.ask(1, "odd")).how.endswith("detail=not-admitted")
        not_admitted = (await sidecar.status())["not_admitted"]
        assert list(not_admitted) == ["odd"]
        assert "center" in not_admitted["odd"]


async def test_the_template_file_is_told_with_its_nodes_and_what_is_not_admitted(tmp_path: Path) -> None:
    path = template_file(tmp_path)
    upstream = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": path}
    async with here(Generation.PLACEHOLDERS, upstream=upstream) as sidecar:
        status = await sidecar.status()
        assert status.keys() == KEYS | {"templates_file"}
        assert status["templates_file"] == {"path": str(path), "nodes": ["explain"], "error": None}
        assert list(status["not_admitted"]) == ["odd"]
        assert status["not_admitted"]["odd"].startswith(f"{path}, line 2, key 'odd_system_prompt': ")


async def test_a_mistake_in_the_template_file_is_told_until_it_is_put_right(tmp_path: Path) -> None:
    path = template_file(tmp_path)
    upstream = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": path}
    async with here(Generation.PLACEHOLDERS, upstream=upstream) as sidecar:
        templates = sidecar.core.templates
        assert templates is not None
        template_file(tmp_path, {"explain": "{{ broken"})
        await templates.reload()
        told = (await sidecar.status())["templates_file"]
        assert told["nodes"] == ["explain"]
        assert told["error"].startswith(f"{path}, line 1, key 'explain_system_prompt': ")
        template_file(tmp_path)
        await templates.reload()
        assert (await sidecar.status())["templates_file"]["error"] is None


@pytest.mark.parametrize("api", [UpstreamApi.PROMPT_DATA, UpstreamApi.PASSTHROUGH])
async def test_a_file_that_is_not_used_is_not_told_of(api: UpstreamApi, tmp_path: Path) -> None:
    async with here(upstream={"api": api, "templates_file": template_file(tmp_path)}) as sidecar:
        assert (await sidecar.status()).keys() == KEYS


async def test_a_node_that_was_taken_back_is_named_with_the_start_of_its_templates_digest(tmp_path: Path) -> None:
    path = template_file(tmp_path, {"explain": "Teach {{ topic }}."})
    upstream = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": path}
    shadow = ShadowSettings(sample_rate=1.0, max_mismatches=1)
    async with here(Generation.PLACEHOLDERS, upstream=upstream, shadow=shadow) as sidecar:
        await sidecar.ask()
        await sidecar.settle()
        templates = sidecar.core.templates
        assert templates is not None
        template = templates.find("explain")
        assert template is not None
        assert (await sidecar.status())["parity"] == {"set_aside": {"explain": template.digest[:12]}}


# What it does not say


@pytest.mark.parametrize("generation", [Generation.PLACEHOLDERS, Generation.PROMPT_DATA, Generation.PASSTHROUGH])
async def test_nothing_in_it_is_content_or_a_user(generation: Generation, tmp_path: Path) -> None:
    upstream = {"api": UpstreamApi.AUTO, "templates_file": template_file(tmp_path)}
    shadow = ShadowSettings(sample_rate=1.0, max_mismatches=1)
    async with here(generation, upstream=upstream, shadow=shadow) as sidecar:
        sidecar.service.state.database.change(USER, {"language": CANARY})
        for node in ("explain", "odd", CANARY):
            await sidecar.ask(USER, node, {"topic": CANARY})
        async with sidecar.session.get(f"{sidecar.base}/api/v1/users/{USER}/placeholders") as response:
            assert response.status in {200, 404}
        await sidecar.settle()
        said = json.dumps(await sidecar.status())
    assert CANARY not in said
    assert str(USER) not in said


@pytest.mark.parametrize("query", ["", "?verbose"])
async def test_head_answers_as_get_does_and_a_query_makes_no_difference(query: str) -> None:
    async with here() as sidecar, sidecar.session.head(f"{sidecar.ops}/status{query}") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        assert await response.read() == b""


async def test_it_is_not_for_learnflow() -> None:
    async with here() as sidecar, sidecar.session.get(f"{sidecar.base}/status") as response:
        assert response.status == 404  # the service's own
