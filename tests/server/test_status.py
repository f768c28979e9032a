"""What a running sidecar says of itself at `/status`: its state, and no content and no user."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from sidecar.app import installed_version
from sidecar.cache.file import FileStore
from sidecar.core.events import Reloaded, StoreChanged
from sidecar.core.policy import Policy, Strategy
from sidecar.core.status import Status, schema
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import (
    BreakerSettings,
    MetricsSettings,
    OnUpstreamFailure,
    PolicySettings,
    RetrySettings,
    RolloutSettings,
    Settings,
    ShadowSettings,
    StoreKind,
    StoreSettings,
    UpstreamApi,
    effective,
)
from tests.harness import Client, ManualClock, Reference, Sidecar, quick_settings, reference, sidecar_with

DOCS = Path(__file__).parents[2] / "docs"
CANARY = "canary-7f3a"
USER = 987_654_321
ODD = "{{ topic | center(9) }}"
"""Renders at the service; the gate admits no `center`."""
TEMPLATES = {"explain": f"{CANARY} Explain {{{{ topic }}}} in {{{{ language }}}}.", "odd": f"{CANARY} {ODD}"}
BEGAN = 1_790_000_000.0
"""Unix seconds: any day."""
EARLIER = {"version", "ready", "warnings", "upstream", "not_admitted", "rollout", "parity", "cache"}
"""What /status has said from its first day on."""
KEYS = EARLIER | {"state", "reasons", "at", "started_at", "circuits", "reload", "nodes", "requests", "settings"}
PASSWORD = "hunter2"  # what must never be told


SCHEMA = Draft202012Validator(schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)


class Here(Sidecar):
    """A sidecar before a service, in the clock's time."""

    def __init__(self, sidecar: Sidecar, service: Reference, clock: ManualClock) -> None:
        super().__init__(sidecar, sidecar.core)
        self.service = service
        self.clock = clock

    async def status(self) -> dict[str, Any]:
        return await status_of(self)


async def status_of(client: Client) -> dict[str, Any]:
    """Return what /status says, which its schema allows."""
    async with client.session.get(f"{client.ops}/status") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        text = await response.text()
    assert text.endswith("}\n")
    found: dict[str, Any] = json.loads(text)
    SCHEMA.validate(found)
    assert found == msgspec.json.decode(msgspec.json.encode(msgspec.convert(found, Status)))
    return found


def at(seconds: float) -> str:
    """Return the instant so many seconds after the start."""
    return f"{datetime.fromtimestamp(BEGAN + seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


@asynccontextmanager
async def here(
    generation: Generation = Generation.PROMPT_DATA, *, upstream: Mapping[str, Any] | None = None, **sections: Any
) -> AsyncIterator[Here]:
    clock = ManualClock()
    async with reference(templates=TEMPLATES, generation=generation, render=TODAY) as service:
        settings: Settings = quick_settings(service.url, upstream=upstream, **sections)
        began = clock() - BEGAN
        async with sidecar_with(settings, clock=clock, wall=lambda: clock() - began) as sidecar:
            yield Here(sidecar, service, clock)


def template_file(folder: Path, templates: Mapping[str, str] = TEMPLATES) -> Path:
    path = folder / "prompts.yaml"
    path.write_text("".join(f"{node}_system_prompt: '{text}'\n" for node, text in templates.items()), "utf-8")
    return path


async def test_at_the_start_it_says_what_it_is_and_that_nothing_is_wrong() -> None:
    async with here() as sidecar:
        status = await sidecar.status()
        assert status.keys() == KEYS
        assert {name: status[name] for name in ("state", "reasons", "at", "started_at", "circuits", "nodes")} == {
            "state": "healthy",
            "reasons": [],
            "at": at(0),
            "started_at": at(0),
            "circuits": [
                {
                    "name": "upstream",
                    "state": "closed",
                    "since": at(0),
                    "retry_in_seconds": None,
                    "transitions": [],
                    "held_for_seconds": None,
                }
            ],
            "nodes": [],
        }
        assert {name: status[name] for name in EARLIER} == {
            "version": installed_version(),
            "ready": True,
            "warnings": [],
            "upstream": {
                "url": sidecar.service.url,
                "api": "prompt-data",
                "generation": "prompt-data",
                "generation_seconds": 0.0,
                "circuit": "closed",
                "last_answer_at": None,
                "failing_since": None,
                "last_error": None,
                "last_error_endpoint": None,
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
    assert lines[:2] == ["{", '  "state": "healthy",']


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
        assert status["templates_file"] == {
            "path": str(path),
            "nodes": ["explain"],
            "error": None,
            "failing_since": None,
        }
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
        assert told["failing_since"] == at(0)
        assert list(await reasons(sidecar)) == ["templates_rejected"]
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
        status = await sidecar.status()
        assert status["parity"] == {"set_aside": {"explain": template.digest[:12]}}
        assert status["nodes"][0]["parity"] == {"match": 0, "mismatch": 1, "set_aside_since": at(0)}
        found = await reasons(sidecar)
        assert found["parity_rollback"]["since"] == at(0)


# The last hour


async def test_requests_are_told_by_minute_and_by_node() -> None:
    async with here(policy=Policy(ttl=600.0)) as sidecar:
        for user in (1, 1, 2):
            await sidecar.ask(user)
        sidecar.clock.advance(300)
        await sidecar.ask(1, "nowhere")
        await sidecar.ask(1)
        status = await sidecar.status()
    explain, other = status["nodes"]
    assert (explain["name"], other["name"]) == ("explain", "other")
    nothing = dict.fromkeys(("requests", "fresh", "stale", "miss", "bypass", "error", "covered", "failed"), 0)
    assert explain["last_hour"] == nothing | {"requests": 4, "fresh": 2, "miss": 2, "hit_ratio": 0.5}
    assert explain["recent"] == nothing | {"requests": 1, "fresh": 1, "hit_ratio": 1.0}
    assert (explain["last_at"], explain["last_outcome"], explain["age_seconds"]) == (at(300), "fresh", 300.0)
    assert other["last_hour"] == nothing | {"requests": 1, "error": 1, "hit_ratio": None}  # a 404 is no outage
    assert (status["state"], status["requests"]["last_hour"]["requests"]) == ("healthy", 5)
    first, last = status["requests"]["minutes"]
    assert (first["counts"]["requests"], last["counts"]["requests"]) == (3, 2)
    assert 0 <= BEGAN - datetime.fromisoformat(first["at"]).timestamp() < 60
    assert status["requests"]["slots"] * status["requests"]["slot_seconds"] == 3600


async def test_each_node_is_told_with_its_policy_and_its_share_of_the_rollout() -> None:
    policies = PolicySettings(nodes={"odd": Policy(strategy=Strategy.NETWORK_FIRST, stale_if_error=0.0)})
    rollout = RolloutSettings(percent=0.25, exclude=frozenset({"odd"}))
    async with here(rollout=rollout) as sidecar:
        sidecar.core.adopt(replace(sidecar.core.settings, policy=policies))
        await sidecar.ask(1, "explain")
        await sidecar.ask(1, "odd")
        explain, odd = (await sidecar.status())["nodes"]
        assert (explain["rollout_ratio"], odd["rollout_ratio"]) == (0.25, 0.0)
        assert explain["policy"]["stale_if_error"] == "15m"
        assert (odd["policy"]["strategy"], odd["policy"]["stale_if_error"]) == ("network-first", "0s")


async def test_no_more_nodes_are_told_than_metrics_may_name() -> None:
    async with here(metrics=MetricsSettings(max_nodes=1)) as sidecar:
        for node in ("explain", "odd", "odd"):
            await sidecar.ask(1, node)
        assert [each["name"] for each in (await sidecar.status())["nodes"] if each["last_at"]] == ["explain", "other"]


# Why it is degraded


async def reasons(sidecar: Here) -> dict[str, dict[str, Any]]:
    status = await sidecar.status()
    assert status["state"] == ("degraded" if status["reasons"] else "healthy")
    assert all((DOCS / "runbooks" / f"{each['runbook']}.md").exists() for each in status["reasons"])
    return {each["kind"]: each for each in status["reasons"]}


async def test_an_outage_is_told_from_its_first_failure_to_the_services_next_answer() -> None:
    policy = Policy(ttl=60.0, stale_if_error=600.0, network_timeout=0.1)
    breaker = BreakerSettings(fail_max=2, reset_timeout=10, success_threshold=1)
    retry = RetrySettings(attempts=1)
    async with here(policy=policy, breaker=breaker, retry=retry) as sidecar:
        await sidecar.ask()
        sidecar.clock.advance(100)
        sidecar.service.fails(Mode.ERROR)
        await sidecar.ask()
        found = await reasons(sidecar)
        assert list(found) == ["serving_stale", "upstream_failing"]
        assert found["upstream_failing"]["sentence"] == "Calls to the config service fail (it answers with a 5xx)."
        sidecar.clock.advance(20)
        await sidecar.ask()
        await sidecar.ask(2)
        found = await reasons(sidecar)
        assert list(found) == ["requests_failing", "serving_stale", "circuit_open"]
        assert found["serving_stale"]["sentence"] == (
            "explain: prompts are made from stale data, up to 2 min old, because the config service gives none; "
            "the policy allows it for 9 min more."
        )
        assert [found[each]["since"] for each in found] == [at(100), at(100), at(100)]
        status = await sidecar.status()
        upstream, (circuit,) = status["upstream"], status["circuits"]
        assert (upstream["last_answer_at"], upstream["failing_since"]) == (at(0), at(100))
        assert (upstream["last_error"], upstream["last_error_endpoint"]) == (
            {"error": "server_error", "at": at(120)},
            "prompt-data",
        )
        assert (circuit["state"], circuit["since"], circuit["retry_in_seconds"]) == ("open", at(120), 10.0)
        sidecar.clock.advance(10)
        await sidecar.ask()  # a trial call that fails: the circuit is open since it was opened
        assert (await sidecar.status())["circuits"][0]["since"] == at(120)
        sidecar.service.fails(Mode.NONE)
        sidecar.clock.advance(10)
        await sidecar.ask()
        sidecar.clock.advance(120)
        assert await reasons(sidecar) == {}
        status = await sidecar.status()
        assert status["upstream"]["last_error"] == {"error": "server_error", "at": at(130)}  # what was, stays told
        assert [each["to"] for each in status["circuits"][0]["transitions"]] == [
            *("open", "half-open", "open", "half-open", "closed")
        ]


async def test_settings_that_were_not_taken_are_a_reason_without_their_passwords() -> None:
    async with here() as sidecar:
        problem = f"upstream.url: 'http://ann:{PASSWORD}@host' is not allowed; allowed: http(s)://host"
        sidecar.core.observer(Reloaded(0.0, (problem, "deadline: '4' is not allowed"), ()))
        found = await reasons(sidecar)
        assert list(found) == ["reload_failed"]
        assert "http://***@host" in found["reload_failed"]["sentence"]
        status = await sidecar.status()
        assert status["reload"]["problems"][1] == "deadline: '4' is not allowed"
        assert PASSWORD not in json.dumps(status)
        sidecar.core.observer(Reloaded(0.0, (), ("upstream",)))
        assert await reasons(sidecar) == {}
        assert (await sidecar.status())["reload"]["waiting_for_restart"] == ["upstream"]


async def test_a_store_in_trouble_is_a_reason_until_it_works_again(tmp_path: Path) -> None:
    store = StoreSettings(kind=StoreKind.FILE, path=tmp_path / "cache.db")
    async with here(store=store) as sidecar:
        assert (await sidecar.status())["store"]["last_error"] is None
        assert isinstance(sidecar.core.store, FileStore)
        sidecar.core.store.error = "full"
        sidecar.core.observer(StoreChanged("full"))
        found = await reasons(sidecar)
        assert found["store_aside"]["sentence"].startswith("The file store is set aside (full)")
        assert found["store_aside"]["since"] == at(0)
        sidecar.core.store.error = None
        sidecar.core.observer(StoreChanged(None))
        assert await reasons(sidecar) == {}
        assert (await sidecar.status())["store"]["last_error"] == {"error": "full", "at": at(0)}


async def test_the_settings_in_force_are_told_as_one_would_write_them() -> None:
    async with here() as sidecar:
        settings = (await sidecar.status())["settings"]
        assert settings == effective(sidecar.core.settings)
        sidecar.core.adopt(replace(sidecar.core.settings, rollout=RolloutSettings(percent=0.5)))
        assert (await sidecar.status())["settings"]["rollout"]["percent"] == "50%"


async def test_the_schema_is_served_and_is_the_one_in_the_documents() -> None:
    async with here() as sidecar, sidecar.session.get(f"{sidecar.ops}/status.schema.json") as response:
        assert await response.json() == json.loads((DOCS / "status.schema.json").read_text("utf-8"))


async def test_it_is_kept_by_nobody() -> None:
    async with here() as sidecar, sidecar.session.get(f"{sidecar.ops}/status") as response:
        assert (response.headers["Cache-Control"], response.headers["X-Content-Type-Options"]) == (
            "no-store",
            "nosniff",
        )


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


async def test_a_circuit_that_is_held_is_a_reason_and_says_for_how_long() -> None:
    async with here() as sidecar:
        async with sidecar.session.post(
            f"{sidecar.ops}/admin/breaker", json={"state": "open", "for": "5m"}
        ) as response:
            assert response.status == 200
        status = await sidecar.status()
        assert [each["kind"] for each in status["reasons"]] == ["circuit_held"]
        assert status["circuits"][0]["state"] == "open"
        assert 0 < status["circuits"][0]["held_for_seconds"] <= 300
        assert (await sidecar.ask()).status == 503
        async with sidecar.session.post(f"{sidecar.ops}/admin/breaker", json={"state": "auto"}) as response:
            assert response.status == 200
        assert (await sidecar.ask()).status == 200
