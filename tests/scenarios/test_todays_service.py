"""What runs in production today, with a sidecar before it: the same prompts, outages covered, wounds bound."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import PACKAGED, TODAY, Generation
from sidecar.settings import BreakerSettings, RetrySettings, RolloutSettings, Settings, ShadowSettings, UpstreamApi
from tests.harness import (
    JSON,
    PATH,
    QUICK_LIMIT,
    Answered,
    Exchange,
    ManualClock,
    Reference,
    Sidecar,
    eventually,
    quick_settings,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

PROMPTS = PACKAGED / "prompts.yaml"
NODES = [key.removesuffix("_system_prompt") for key in yaml.safe_load(PROMPTS.read_text("utf-8"))]
NODE = "generating_content"
NO_SETTINGS = "security_guard_detection"
"""A node whose template has no variables."""
WITH_SETTINGS = [node for node in NODES if node != NO_SETTINGS]
ASKED = {"input_content": "Why is the sky blue?"}
CONTEXTS: list[dict[str, str]] = [
    {},
    ASKED,
    {"input_content": '<b>"it\'s"</b> & {{ 7*7 }}\r\n\n', "study_material": "Ü\u2028{% raw %}", "unused": "x"},
    {"language": "Latin & Greek", "style": "", "input_content": "over a setting"},
]
POLICY_SECONDS = 900
NEVER_OPENS = BreakerSettings(fail_max=1000)


def placeholders(templates: Path = PROMPTS) -> dict[str, Any]:
    return {"api": UpstreamApi.PLACEHOLDERS, "templates_file": templates}


def before(url: str, **sections: Any) -> Settings:
    return settings_for(url, upstream=placeholders(), **sections)


@asynccontextmanager
async def todays_service() -> AsyncIterator[Reference]:
    async with reference(templates=PROMPTS, generation=Generation.PLACEHOLDERS, render=TODAY) as service:
        yield service


async def directly(sidecar: Sidecar, url: str, node: str, context: Mapping[str, str], user: int = 1) -> Any:
    """Ask the service itself."""
    body = json.dumps({"user_id": user, "node_name": node, "context": context}).encode()
    async with sidecar.session.post(url + PATH, data=body, headers=JSON) as response:
        assert response.status == 200
        return await response.json()


async def ask(sidecar: Sidecar, user: int = 1) -> Answered:
    return await sidecar.ask(user, NODE, ASKED)


def settings_read(service: Reference) -> int:
    return service.state.calls["user-placeholders"]


async def test_every_prompt_is_the_services_own_byte_for_byte() -> None:
    async with todays_service() as service, sidecar_with(before(service.url)) as sidecar:
        service.state.database.change(2, {"language": '<German> & "Dutch"', "style": "it's {{ plain }}"})
        for node in NODES:
            for context in CONTEXTS:
                for user in (1, 2):
                    answered = await sidecar.ask(user, node, context)
                    expected = await directly(sidecar, service.url, node, context, user)
                    assert answered.prompt.encode() == expected["prompt"].encode()
                    assert answered.document["used_placeholders"] == expected["used_placeholders"]
                    assert answered.headers["Content-Type"] == "application/json"
        assert service.state.calls["generate-prompt"] == 2 * len(NODES) * len(CONTEXTS)  # ours alone


async def test_each_request_costs_one_read_and_shows_a_changed_setting_at_once() -> None:
    async with todays_service() as service, sidecar_with(before(service.url)) as sidecar:
        for number, language in enumerate(("English", "German", "Dutch"), 1):
            service.state.database.change(1, {"language": language})
            assert f"- Language: {language}." in (await ask(sidecar)).prompt
            assert settings_read(service) == number
        assert service.state.calls.total() == 3


@pytest.mark.parametrize(
    ("fault", "at_the_end"),
    [("down", 503), ("500", 503), ("hang", 504), ("reset", 503), ("garbage", 502), ("database-down", 503)],
)
async def test_prompts_keep_coming_in_an_outage_until_the_policy_ends_it(fault: str, at_the_end: int) -> None:
    clock = ManualClock()
    async with AsyncExitStack() as up:
        service = await up.enter_async_context(todays_service())
        settings = quick_settings(service.url, upstream=placeholders(), breaker=NEVER_OPENS)
        async with sidecar_with(settings, clock=clock) as sidecar:
            prompts = {node: (await sidecar.ask(1, node, ASKED)).prompt for node in NODES}
            if fault == "down":
                await up.aclose()
            else:
                service.fails(Mode(fault))
            for passed, more in ((0, 0), (POLICY_SECONDS - 1, POLICY_SECONDS - 1)):
                clock.advance(more)
                for node in NODES if fault != "hang" else NODES[:1]:
                    answered = await sidecar.ask(1, node, ASKED)
                    assert answered.prompt == prompts[node]
                    assert answered.how.startswith(
                        "prompt-sidecar; fwd=stale"
                        if node != NO_SETTINGS
                        else "prompt-sidecar; hit; detail=no-settings"
                    )
                    assert answered.age == (passed if node != NO_SETTINGS else 0)
                    assert answered.seconds < QUICK_LIMIT
            clock.advance(2)
            ended = await ask(sidecar)
            assert ended.status == at_the_end
            assert ended.is_problem
            assert ended.seconds < QUICK_LIMIT
            assert (await sidecar.ask(1, NO_SETTINGS, ASKED)).prompt == prompts[NO_SETTINGS]  # it needs nobody
            if fault != "down":
                service.fails(Mode.NONE)
                assert (await ask(sidecar)).prompt == prompts[NODE]


async def test_1_a_database_that_is_down_never_yields_a_prompt_with_empty_settings() -> None:
    async with todays_service() as service, sidecar_with(before(service.url, breaker=NEVER_OPENS)) as sidecar:
        good = (await ask(sidecar)).prompt
        service.fails(Mode.DATABASE_DOWN)
        theirs = await directly(sidecar, service.url, NODE, ASKED)
        assert "- Language: ." in theirs["prompt"]  # what LearnFlow would be given, with a 200
        assert theirs["used_placeholders"]["language"] == ""
        covered = await ask(sidecar)
        assert covered.prompt == good
        assert "stale-if-error" in covered.how
        unknown = await ask(sidecar, user=2)
        assert (unknown.status, unknown.is_problem) == (503, True)
        assert int(unknown.headers["Retry-After"]) > 0


async def test_2_a_frozen_database_does_not_freeze_the_answers() -> None:
    async with (
        todays_service() as service,
        sidecar_with(quick_settings(service.url, upstream=placeholders())) as sidecar,
    ):
        good = (await ask(sidecar)).prompt
        service.fails(Mode.HANG, endpoint="user-placeholders")
        covered, unknown = await asyncio.gather(ask(sidecar), ask(sidecar, user=2))
        assert covered.prompt == good
        assert (unknown.status, unknown.is_problem) == (504, True)
        assert max(covered.seconds, unknown.seconds) < QUICK_LIMIT
        service.fails(Mode.NONE)


async def test_3_the_first_call_after_a_restart_may_fail_and_nobody_sees_it() -> None:
    async with todays_service() as service, sidecar_with(before(service.url)) as sidecar:
        service.fails(Mode.ERROR, count=1)
        answered = await ask(sidecar)
        assert answered.prompt == (await directly(sidecar, service.url, NODE, ASKED))["prompt"]
        assert answered.how == "prompt-sidecar; fwd=miss; stored"
        assert settings_read(service) == 2
        assert 'prompt_sidecar_retries_total{reason="server_error"} 1.0' in await sidecar.metrics()


async def test_4_eight_first_calls_of_a_new_user_at_once_cost_one_read_and_no_error() -> None:
    joined, inside = asyncio.Event(), Counter[bytes]()
    vocabulary = {"placeholders": {"language": {"value": "English", "placeholder_name": "language"}}}

    async def plays(exchange: Exchange) -> None:
        path = exchange.head.split(b" ")[1]
        inside[path] += 1
        if inside[path] > 1:  # as today: the user is being made by another call
            await exchange.answer({"detail": "Failed to get user settings"}, status=500)
        else:
            await joined.wait()
            await exchange.answer(vocabulary)
        inside[path] -= 1

    patient = RetrySettings(per_try_timeout=4.0)
    async with raw_upstream(plays) as upstream, sidecar_with(before(upstream.url, retry=patient)) as sidecar:
        asking = [asyncio.ensure_future(sidecar.ask(7, node, {})) for node in 2 * WITH_SETTINGS]
        assert len(asking) == 8

        async def all_wait() -> bool:
            return "prompt_sidecar_coalesced_requests_total 7.0" in await sidecar.metrics()

        await eventually(all_wait)
        joined.set()
        for answered in await asyncio.gather(*asking):
            assert answered.document["used_placeholders"]["language"] == "English"
        assert len(upstream.requests) == 1


async def test_5_a_connection_that_is_closed_just_as_it_is_used_is_nobodys_trouble() -> None:
    used = Counter[asyncio.StreamWriter]()
    answers: dict[bytes, Any] = {
        b"GET /api/v1/users/1/placeholders": {"placeholders": {"language": {"value": "English"}}},
        b"POST /api/v1/generate-prompt": {"prompt": "theirs", "used_placeholders": {}},
    }

    async def plays(exchange: Exchange) -> None:
        used[exchange.writer] += 1
        if used[exchange.writer] > 1:
            exchange.writer.close()
        else:
            await exchange.answer(answers.get(exchange.head.rpartition(b" HTTP")[0].splitlines()[0], [{"id": "x"}]))

    async with raw_upstream(plays) as upstream:
        apart = RolloutSettings(exclude=frozenset({NODES[1]}))
        async with sidecar_with(before(upstream.url, rollout=apart)) as sidecar:
            for _ in range(6):
                assert "- Language: English." in (await ask(sidecar)).prompt
                assert (await sidecar.ask(1, NODES[1], {})).prompt == "theirs"
                for path in ("/api/v1/profiles/", "/health"):  # a screen of the bot, and what is passed on
                    async with sidecar.session.get(sidecar.base + path) as response:
                        assert (response.status, await response.json()) == (200, [{"id": "x"}])
            assert (await ask(sidecar)).how == "prompt-sidecar; fwd=stale; stored"  # asked, not covered
        assert max(used.values()) > 1


async def test_6_a_changed_file_is_in_force_and_a_service_that_still_has_the_old_one_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump({"explain_system_prompt": "Explain {{ topic }} in {{ language }}."}), "utf-8")
    async with reference(templates=file, generation=Generation.PLACEHOLDERS, render=TODAY) as service:
        settings = settings_for(service.url, upstream=placeholders(file), shadow=ShadowSettings(sample_rate=1.0))
        async with sidecar_with(settings) as sidecar:
            assert (await sidecar.ask()).prompt == "Explain tides in English."
            file.write_text(yaml.safe_dump({"explain_system_prompt": "Teach {{ topic }} in {{ language }}."}), "utf-8")

            async def is_new() -> bool:
                return (await sidecar.ask()).prompt == "Teach tides in English."

            async def is_noticed() -> bool:
                return 'parity_checks_total{node="explain",result="mismatch"} 1.0' in await sidecar.metrics()

            await eventually(is_new)
            await eventually(is_noticed)
            assert (await directly(sidecar, service.url, "explain", {"topic": "tides"}))["prompt"].startswith("Explain")
