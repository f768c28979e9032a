"""Promise 9: an empty, malformed, older or uncompilable document never replaces a good one."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.settings import BreakerSettings
from tests.harness import (
    KEPT,
    Exchange,
    Sidecar,
    prompt_data,
    quick_settings,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

STUBBORN = BreakerSettings(fail_max=1000)
GOOD = prompt_data("Explain {{ topic }} in {{ style }}.", {"style": "good words"})
GOOD_PROMPT = "Explain tides in good words."
NEWER = prompt_data("Tell of {{ topic }} in {{ style }}.", {"style": "newer words"})
NEWER_PROMPT = "Tell of tides in newer words."


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in NEWER.items() if key != name}


BAD_BODIES: dict[str, Any] = {
    "nothing": b"",
    "white space": b" \r\n",
    "HTML": b"<!doctype html><title>It works!</title>",
    "half of it": json.dumps(NEWER).encode()[:60],
    "two of it": json.dumps(NEWER).encode() * 2,
    "not UTF-8": json.dumps(NEWER).encode().replace(b"newer", b"\xff\xfe"),
    "a lone surrogate": json.dumps(NEWER).encode().replace(b"Tell", b"\\ud800"),
    "null": None,
    "an array": [NEWER],
    "text": "Explain",
    "an error with 200": {"detail": "Internal Server Error"},
    "nested without end": b"[" * 100_000,
    "no template": without("template"),
    "no settings": without("user_placeholders"),
    "no list of what is required": without("required_dynamic_placeholders"),
    "a template of another type": {**NEWER, "template": ["Tell"]},
    "settings of another type": {**NEWER, "user_placeholders": ["style"]},
    "a setting of another type": {**NEWER, "user_placeholders": {"style": 7}},
    "a setting that is null": {**NEWER, "user_placeholders": {"style": None}},
    "a lifetime of another type": {**NEWER, "cache_ttl": "soon"},
    "a negative lifetime": {**NEWER, "cache_ttl": -1},
    "a lifetime that is no number": json.dumps(NEWER).encode().replace(b"300", b"NaN"),
    "unknown render options": {**NEWER, "render": {"undefined": "perhaps"}},
    "an empty template": {**NEWER, "template": ""},
    "a blank template": {**NEWER, "template": " \n\t "},
    "a template that does not compile": {**NEWER, "template": "{% if topic %}never ends"},
    "a template with an unknown filter": {**NEWER, "template": "{{ topic|shuffle }}"},
    "a template that is not admitted": {**NEWER, "template": "{{ topic.__class__.__mro__ }}"},
    "a template that includes another": {**NEWER, "template": "{% include 'other' %}"},
    "a template that would fill the memory": {**NEWER, "template": "{{ 'a' * 200000000 }}"},
    "a template that is too large": {**NEWER, "template": "x" * 300_000},
    "an answer that is too large": {**NEWER, "template": "x" * 3_000_000},
    "all settings gone": {**GOOD, "user_placeholders": {}},
    "all settings blank": {**GOOD, "user_placeholders": {"style": " "}},
    "other settings, none that the template wants": {**GOOD, "user_placeholders": {"colour": "red"}},
    "all settings gone, and asked of the request": {
        **GOOD,
        "user_placeholders": {},
        "required_dynamic_placeholders": ["style", "topic"],
    },
}


class Serves:
    """Serves what it is told to."""

    def __init__(self) -> None:
        self.body: Any = GOOD
        self.headers: dict[str, str] = {}
        self.down = False

    async def __call__(self, exchange: Exchange) -> None:
        if self.down:
            await exchange.answer(status=503)
        else:
            await exchange.answer(self.body, headers=self.headers)


async def assert_good_stays(
    sidecar: Sidecar, goes_bad: Callable[[], None], goes_down: Callable[[], None], recovers: Callable[[], str]
) -> None:
    """Prime, spoil, look at what is kept, and see that a good answer is taken again."""
    good = (await sidecar.ask()).prompt
    cache = sidecar.core.cache
    kept = {key: cache.peek(key) for key in cache}
    goes_bad()
    for _ in range(2):
        answered = await sidecar.ask()
        assert answered.prompt == good
        assert "detail=stale-if-error" in answered.how
    assert {key: cache.peek(key) for key in cache} == kept
    goes_down()
    assert (await sidecar.ask()).prompt == good
    better = recovers()
    assert (await sidecar.ask()).prompt == better != good


@pytest.mark.parametrize("bad", BAD_BODIES)
async def test_a_bad_document_does_not_replace_a_good_one_and_a_good_one_does(bad: str) -> None:
    serves = Serves()

    def goes_bad() -> None:
        serves.body = BAD_BODIES[bad]

    def goes_down() -> None:
        serves.down = True

    def recovers() -> str:
        serves.down, serves.body = False, NEWER
        return NEWER_PROMPT

    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await assert_good_stays(sidecar, goes_bad, goes_down, recovers)


@pytest.mark.parametrize("bad", [bad for bad in BAD_BODIES if "settings" not in bad or "type" in bad])
async def test_a_bad_document_alone_is_an_error_and_is_not_kept(bad: str) -> None:
    """Where settings are gone, nothing but a good document before it can tell; what is missing is promise 4's."""
    serves = Serves()
    serves.body = BAD_BODIES[bad]
    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        answered = await sidecar.ask()
        assert answered.status == 502
        assert answered.is_problem
        assert len(sidecar.core.cache) == 0
        serves.body = NEWER
        assert (await sidecar.ask()).prompt == NEWER_PROMPT


@pytest.mark.parametrize(
    "mode",
    [
        Mode.EMPTY,
        Mode.GARBAGE,
        Mode.HALF,
        Mode.WRONG_SHAPE,
        Mode.EMPTY_TEMPLATE,
        Mode.BAD_TEMPLATE,
        Mode.HUGE_TEMPLATE,
        Mode.DATABASE_DOWN,
    ],
)
async def test_what_the_reference_service_gets_wrong_does_not_replace_what_it_got_right(mode: Mode) -> None:
    async with (
        reference(etag=False) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):

        def recovers() -> str:
            upstream.fails(Mode.NONE)
            upstream.state.set_template("explain", "Tell of {{ topic }}, {{ style }}.")
            upstream.state.database.replace(1, {"style": "please"})
            return "Tell of tides, please."

        await assert_good_stays(
            sidecar, lambda: upstream.fails(mode), lambda: upstream.fails(Mode.UNAVAILABLE), recovers
        )


@pytest.mark.parametrize("bad", ["nothing", "HTML", "a template that does not compile", "all settings gone"])
async def test_a_bad_document_behind_a_fresh_answer_spoils_nothing(bad: str) -> None:
    serves = Serves()
    policy = Policy(ttl=0, stale_while_revalidate=1000, stale_if_error=1000)
    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=policy, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        serves.body = BAD_BODIES[bad]
        for _ in range(3):
            assert (await sidecar.ask()).prompt == GOOD_PROMPT
            await sidecar.settle()
        assert len(upstream.requests) == 4


@pytest.mark.parametrize("bad", ["nothing", "HTML", "a template that does not compile", "all settings gone"])
@pytest.mark.parametrize("control", ["no-cache", "max-stale=0"])
async def test_a_request_that_wants_nothing_stale_gets_an_error_and_leaves_the_good_one_to_others(
    bad: str, control: str
) -> None:
    serves = Serves()
    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        serves.body = BAD_BODIES[bad]
        assert (await sidecar.ask(headers={"Cache-Control": control})).status == 502
        assert (await sidecar.ask()).prompt == GOOD_PROMPT


async def test_an_older_answer_that_arrives_late_does_not_replace_a_newer_one() -> None:
    asked_first, go = asyncio.Event(), asyncio.Event()

    async def plays(exchange: Exchange) -> None:
        if len(upstream.requests) == 1:
            asked_first.set()
            await go.wait()
            await exchange.answer(GOOD)
        else:
            await exchange.answer(NEWER)

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        late = asyncio.ensure_future(sidecar.ask())
        await asked_first.wait()
        assert (await sidecar.ask(headers={"Cache-Control": "no-cache"})).prompt == NEWER_PROMPT
        go.set()
        assert (await late).how == "prompt-sidecar; fwd=miss"
        again = await sidecar.ask()
        assert (again.prompt, again.how.split(";")[1]) == (NEWER_PROMPT, " hit")


async def test_a_304_for_nothing_that_is_known_is_no_document() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(status=304)

    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, breaker=STUBBORN)) as sidecar,
    ):
        assert (await sidecar.ask()).status == 502
        assert len(sidecar.core.cache) == 0


async def test_a_bad_document_with_the_good_ones_etag_changes_nothing() -> None:
    serves = Serves()
    serves.headers = {"ETag": '"1"'}
    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        serves.body = {**NEWER, "template": ""}
        assert (await sidecar.ask()).prompt == GOOD_PROMPT
        serves.body = NEWER
        assert (await sidecar.ask()).prompt == NEWER_PROMPT


@pytest.mark.parametrize("strategy", [Strategy.NETWORK_FIRST, Strategy.CACHE_FIRST])
async def test_one_users_bad_document_is_that_users_alone(strategy: Strategy) -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(b"<html>" if exchange.user == 13 else GOOD)

    policy = Policy(strategy=strategy)
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=policy, breaker=STUBBORN)) as sidecar,
    ):
        for user in (1, 13, 1, 2, 13, 2):
            answered = await sidecar.ask(user)
            assert answered.status == (502 if user == 13 else 200)


async def test_a_template_is_judged_when_it_arrives_not_when_it_is_needed() -> None:
    """The branch that would fail is never rendered; the document is refused all the same."""
    serves = Serves()
    serves.body = prompt_data("{% if topic %}{{ topic }}{% else %}{{ topic|shuffle }}{% endif %}")
    async with (
        raw_upstream(serves) as upstream,
        sidecar_with(quick_settings(upstream.url, breaker=STUBBORN)) as sidecar,
    ):
        answered = await sidecar.ask()
        assert answered.status == 502
        assert "shuffle" in answered.document["detail"]
