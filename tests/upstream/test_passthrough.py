"""`passthrough`: the request as the first generation has it, the answer as the service gave it, guarded."""

import gc
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.core.events import Event, Retried, UpstreamAttempt
from sidecar.core.retry import RetryBudget, RetryRule
from sidecar.service.ports import Generated
from sidecar.settings import UpstreamApi
from sidecar.upstream.breaker import Breaker
from sidecar.upstream.client import LARGE_BODY, UpstreamClient
from sidecar.upstream.guarded import Bulkhead, Guard, GuardRules
from sidecar.upstream.passthrough import GeneratePromptService
from tests.fakes import Still
from tests.harness import Exchange, Play, RawUpstream, forever, raw_upstream, settings_for, sidecar_with

CANARY = "canary-7f3a"
PROMPT = {"prompt": f"Explain {CANARY} in plain words.", "used_placeholders": {"style": "plain words"}}
MAX_RESPONSE = 4 << 20
PLACES, FAIL_MAX = 4, 3
K = FailureKind


class World:
    """The service's own rendering, asked through the guard on real sockets."""

    def __init__(self, upstream: RawUpstream, *, per_try_timeout: float) -> None:
        self.upstream = upstream
        self.events: list[Event] = []
        self.bulkhead = Bulkhead(PLACES)
        self.breaker = Breaker(
            "upstream",
            fail_max=FAIL_MAX,
            reset_timeout=3600.0,
            success_threshold=1,
            clock=time.monotonic,
            observer=self.events.append,
        )
        rules = GuardRules(
            self.bulkhead,
            RetryRule(attempts=3, backoff=0.0, max_backoff=0.0, min_attempt=0.0),
            RetryBudget(0.2, 1000),
            per_try_timeout,
            3600.0,
        )
        guard = Guard(rules, breaker=self.breaker, clock=time.monotonic, rng=Still(), observer=self.events.append)
        self.client = UpstreamClient(upstream.url, connect_timeout=5.0, max_response=MAX_RESPONSE)
        self.service = GeneratePromptService(self.client, guard)

    async def generate(self, context: Mapping[str, Any] | None = None, *, shadow: bool = False) -> Generated:
        deadline_at = time.monotonic() + 30.0
        return await self.service.generate(7, "explain", context or {}, deadline_at, shadow=shadow)

    async def prompt_data(self) -> Answer:
        return await self.service.prompt_data(7, "explain", time.monotonic() + 30.0)

    async def refusal(self, *, shadow: bool = False) -> UpstreamFailure:
        with pytest.raises(UpstreamFailure) as caught:
            await self.generate(shadow=shadow)
        return caught.value

    @property
    def attempts(self) -> list[tuple[str, str]]:
        """Return endpoint and result of each call that was made."""
        return [(each.endpoint, each.result) for each in self.events if isinstance(each, UpstreamAttempt)]


@asynccontextmanager
async def world(plays: Play, *, per_try_timeout: float = 10.0) -> AsyncIterator[World]:
    async with raw_upstream(plays) as upstream:
        made = World(upstream, per_try_timeout=per_try_timeout)
        try:
            yield made
        finally:
            await made.client.close()


def answering(body: Any = PROMPT, *, status: int = 200, **headers: str) -> Play:
    """Play: the same answer to each request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(body, status=status, headers=named)

    return plays


# The request


async def test_the_request_is_that_of_the_first_generation() -> None:
    async with world(answering()) as here:
        await here.generate({"topic": "tides"})
        head, _, body = here.upstream.requests[0].partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert request_line == "POST /api/v1/generate-prompt HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert body == b'{"user_id":7,"node_name":"explain","context":{"topic":"tides"}}'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param("tides", b'"tides"', id="text"),
        pytest.param("", b'""', id="an empty text"),
        pytest.param("ответ \U0001f600", rb'"\u043e\u0442\u0432\u0435\u0442 \ud83d\ude00"', id="other scripts"),
        pytest.param("\ud800", rb'"\ud800"', id="a lone surrogate"),
        pytest.param("\udfff\ud800", rb'"\udfff\ud800"', id="surrogates in the wrong order"),
        pytest.param('"\\/\b\f\n\r\t\x00\x7f\u2028', rb'"\"\\/\b\f\n\r\t\u0000\u007f\u2028"', id="escapes"),
        pytest.param("<b>&{{ 7*7 }}", b'"<b>&{{ 7*7 }}"', id="what looks like code"),
        pytest.param(math.nan, b"NaN", id="NaN"),
        pytest.param(math.inf, b"Infinity", id="infinity"),
        pytest.param(-math.inf, b"-Infinity", id="minus infinity"),
        pytest.param(-0.0, b"-0.0", id="minus nought"),
        pytest.param(1e300, b"1e+300", id="a large float"),
        pytest.param(0.1, b"0.1", id="a fraction"),
        pytest.param(2**64, b"18446744073709551616", id="beyond 64 bits"),
        pytest.param(-(10**400), b"-1" + b"0" * 400, id="400 digits"),
        pytest.param(True, b"true", id="true"),
        pytest.param(None, b"null", id="null"),
        pytest.param([1, "2", [None], {}], b'[1,"2",[null],{}]', id="a list"),
        pytest.param({"b": 1, "a": {"": []}}, b'{"b":1,"a":{"":[]}}', id="an object, in its order"),
    ],
)
async def test_the_content_is_sent_as_it_was_given(value: Any, written: bytes) -> None:
    async with world(answering()) as here:
        await here.generate({"topic": value})
        body = here.upstream.requests[0].partition(b"\r\n\r\n")[2]
    assert body == b'{"user_id":7,"node_name":"explain","context":{"topic":' + written + b"}}"
    assert repr(json.loads(body)["context"]["topic"]) == repr(value)  # by repr, NaN is no other than NaN


@pytest.mark.parametrize(("user", "node"), [(2**63, "ответ"), (10**30, "a\ud800"), (1, '"'), (1, "no/../such?node#")])
async def test_any_user_and_node_is_asked_for(user: int, node: str) -> None:
    async with world(answering()) as here:
        await here.service.generate(user, node, {}, time.monotonic() + 30.0)
        body = here.upstream.requests[0].partition(b"\r\n\r\n")[2]
    assert json.loads(body) == {"user_id": user, "node_name": node, "context": {}}


@pytest.mark.parametrize("size", [LARGE_BODY - 100, LARGE_BODY + 1, 3 * LARGE_BODY])
async def test_a_large_content_is_sent_whole_again_too_and_nothing_warns_of_it(size: int) -> None:
    lengths: list[int] = []

    async def plays(exchange: Exchange) -> None:
        lengths.append(len(exchange.asked["context"]["topic"]))
        if len(lengths) == 1:
            await exchange.answer({}, status=503)
        else:
            await exchange.answer(PROMPT)

    async with world(plays) as here:
        assert (await here.generate({"topic": "x" * size})).prompt == PROMPT["prompt"]
        assert lengths == [size, size]
        assert b"transfer-encoding" not in here.upstream.requests[0].partition(b"\r\n\r\n")[0].lower()
    gc.collect()  # a body that was left open warns when it goes, and warnings are errors


async def test_content_that_is_nested_too_deeply_to_be_written_is_refused_and_nobody_is_asked() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    async with world(answering()) as here:
        with pytest.raises(UpstreamFailure) as caught:
            await here.generate({"topic": nested})
        assert (caught.value.rule.status, caught.value.status) == (None, 422)
        assert here.upstream.requests == []


async def test_content_of_any_depth_that_can_be_read_is_passed_on_or_refused() -> None:
    async with (
        raw_upstream(answering({"detail": "no"}, status=400)) as upstream,
        sidecar_with(settings_for(upstream.url, upstream={"api": UpstreamApi.PASSTHROUGH})) as sidecar,
    ):
        statuses = set()
        for depth in range(900, 1010):  # Python reads, and writes, no more than about a thousand
            content = b"[" * depth + b"]" * depth
            body = b'{"user_id":7,"node_name":"explain","context":{"topic":' + content + b"}}"
            statuses.add((await sidecar.send(body)).status)
        assert statuses <= {400, 422}


# The answer


@pytest.mark.parametrize(
    ("body", "prompt", "used"),
    [
        pytest.param(PROMPT, PROMPT["prompt"], PROMPT["used_placeholders"], id="a prompt"),
        pytest.param({"prompt": "x", "used_placeholders": {}}, "x", {}, id="nothing used"),
        pytest.param({"prompt": " ", "used_placeholders": {}, "new": [1]}, " ", {}, id="unknown fields, a blank"),
        pytest.param({"prompt": "x", "used_placeholders": {"a": ""}}, "x", {"a": ""}, id="an empty value"),
        pytest.param(
            {"prompt": "\x00 &lt;ответ\u2028 \U0001f600", "used_placeholders": {"ключ": "<"}},
            "\x00 &lt;ответ\u2028 \U0001f600",
            {"ключ": "<"},
            id="any characters",
        ),
    ],
)
async def test_a_prompt_is_passed_on(body: Any, prompt: str, used: dict[str, str]) -> None:
    async with world(answering(body)) as here:
        assert await here.generate() == Generated(prompt, used)
        assert here.attempts == [("generate-prompt", "ok")]


async def test_a_prompt_of_megabytes_is_passed_on() -> None:
    async with world(answering({"prompt": "x" * (3 << 20), "used_placeholders": {}})) as here:
        assert (await here.generate()).prompt == "x" * (3 << 20)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, K.GONE), (401, K.REFUSED), (403, K.REFUSED), (404, K.GONE), (405, K.REFUSED), (422, K.GONE)],
)
async def test_a_4xx_comes_with_its_body_is_not_retried_and_is_no_trouble(status: int, kind: FailureKind) -> None:
    body = json.dumps({"detail": "нет"}, ensure_ascii=False).encode() + b" \n"
    async with world(answering(body, status=status, Content_Type="application/json; charset=utf-8")) as here:
        for _ in range(FAIL_MAX + 1):
            failure = await here.refusal()
            assert (failure.kind, failure.status) == (kind, status)
            assert failure.answer == Answer(status, body, "application/json; charset=utf-8")
        assert here.attempts == [("generate-prompt", kind.value)] * (FAIL_MAX + 1)
        assert here.breaker.is_closed


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"null", K.BAD_DOCUMENT, id="null"),
        pytest.param(b"[]", K.BAD_DOCUMENT, id="a list"),
        pytest.param(b"{}", K.BAD_DOCUMENT, id="an empty object"),
        pytest.param({"prompt": CANARY}, K.BAD_DOCUMENT, id="without what was used"),
        pytest.param({"used_placeholders": {}}, K.BAD_DOCUMENT, id="without the prompt"),
        pytest.param({"prompt": "", "used_placeholders": {}}, K.BAD_DOCUMENT, id="an empty prompt"),
        pytest.param({"prompt": None, "used_placeholders": {}}, K.BAD_DOCUMENT, id="a prompt that is null"),
        pytest.param({"prompt": [CANARY], "used_placeholders": {}}, K.BAD_DOCUMENT, id="a prompt that is a list"),
        pytest.param({"prompt": CANARY, "used_placeholders": None}, K.BAD_DOCUMENT, id="used: null"),
        pytest.param({"prompt": CANARY, "used_placeholders": ["style"]}, K.BAD_DOCUMENT, id="used: a list"),
        pytest.param({"prompt": CANARY, "used_placeholders": {"a": 1}}, K.BAD_DOCUMENT, id="used: a number"),
        pytest.param({"prompt": CANARY, "used_placeholders": {CANARY: None}}, K.BAD_DOCUMENT, id="used: null within"),
        pytest.param(b"<html>" + CANARY.encode(), K.GARBAGE, id="HTML"),
        pytest.param(b"", K.GARBAGE, id="empty"),
        pytest.param(json.dumps(PROMPT).encode()[:-1], K.GARBAGE, id="half of it"),
        pytest.param(b'{"prompt":"\\ud800","used_placeholders":{}}', K.GARBAGE, id="a lone surrogate"),
        pytest.param(b'{"x":' + b"[" * 100_000, K.GARBAGE, id="deep nesting"),
        pytest.param(b" " * (MAX_RESPONSE + 1), K.BAD_DOCUMENT, id="too large"),
    ],
)
async def test_what_is_no_prompt_is_a_failure_that_says_nothing_of_its_content(body: Any, kind: FailureKind) -> None:
    async with world(answering(body)) as here:
        failure = await here.refusal()
        assert failure.kind is kind
        assert CANARY not in str(failure)
        assert here.attempts == [("generate-prompt", kind.value)]  # and is not asked for again


async def test_a_failure_is_tried_again_inside_the_deadline() -> None:
    async def plays(exchange: Exchange) -> None:
        if len(here.upstream.requests) < 3:
            await exchange.answer({}, status=500)
        else:
            await exchange.answer(PROMPT)

    async with world(plays) as here:
        assert (await here.generate()).prompt == PROMPT["prompt"]
        assert [result for _, result in here.attempts] == ["server_error", "server_error", "ok"]


# Behind somebody's answer


async def cut_off(exchange: Exchange) -> None:
    """Play: break the connection."""
    exchange.reset()


async def silent(_: Exchange) -> None:
    """Play: nothing."""
    await forever()


SHADOW_FAILURES = [
    pytest.param(answering({}, status=500), K.SERVER_ERROR, id="500"),
    pytest.param(answering({}, status=503), K.SERVER_ERROR, id="503"),
    pytest.param(cut_off, K.RESET, id="reset"),
    pytest.param(silent, K.READ_TIMEOUT, id="silence"),
    pytest.param(answering(b"<html>"), K.GARBAGE, id="garbage"),
]


@pytest.mark.parametrize(("plays", "kind"), SHADOW_FAILURES)
async def test_a_shadow_call_is_tried_once_and_says_nothing_to_the_breaker(plays: Play, kind: FailureKind) -> None:
    async with world(plays, per_try_timeout=0.02 if plays is silent else 10.0) as here:
        for _ in range(FAIL_MAX + 1):
            assert (await here.refusal(shadow=True)).kind is kind
        assert len(here.upstream.requests) == FAIL_MAX + 1
        assert here.breaker.is_closed
        assert not [event for event in here.events if isinstance(event, Retried)]
        assert here.attempts == [("generate-prompt", kind.value)] * (FAIL_MAX + 1)
        assert here.service.has_room()


@pytest.mark.parametrize(("plays", "kind"), SHADOW_FAILURES)
async def test_a_call_that_somebody_waits_for_does_tell_the_breaker(plays: Play, kind: FailureKind) -> None:
    async with world(plays, per_try_timeout=0.02 if plays is silent else 10.0) as here:
        for _ in range(FAIL_MAX):
            await here.refusal()
        assert not here.breaker.is_closed
        assert len(here.upstream.requests) == FAIL_MAX
        assert {result for _, result in here.attempts} == {kind.value}
        assert not here.service.has_room()
        assert (await here.refusal(shadow=True)).kind is K.CIRCUIT_OPEN
        assert len(here.upstream.requests) == FAIL_MAX


async def test_a_shadow_call_that_succeeds_does_not_make_up_for_failures() -> None:
    failing = True

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(b"<html>" if failing else PROMPT)

    async with world(plays) as here:
        for failing in (True, True, False):
            if failing:
                await here.refusal()
            else:
                await here.generate(shadow=True)
        failing = True
        await here.refusal()
        assert not here.breaker.is_closed


async def test_a_429_has_shadow_calls_left_out_for_as_long_as_it_says() -> None:
    async with world(answering({}, status=429, Retry_After="3600")) as here:
        assert (await here.refusal(shadow=True)).kind is K.TOO_MANY_REQUESTS
        assert not here.service.has_room()


async def test_there_is_room_while_half_of_the_places_are_free() -> None:
    async with world(answering()) as here:
        room = [here.service.has_room()]
        for _ in range(PLACES):
            await here.bulkhead.take(0.0)
            room.append(here.service.has_room())
        assert room == [True, True, True, False, False]
        for _ in range(PLACES):
            here.bulkhead.give_back()
        assert here.service.has_room()
        assert here.upstream.requests == []


# The static parts, passed on as they are


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b'{"template":"{% boom %}","more":1}', "application/json", id="a template that is not admitted"),
        pytest.param(b"<html>", "text/html; charset=utf-8", id="anything else"),
        pytest.param(b"", "application/json", id="nothing"),
    ],
)
async def test_a_nodes_parts_come_as_they_are(body: bytes, content_type: str) -> None:
    async with world(answering(body, Content_Type=content_type)) as here:
        assert await here.prompt_data() == Answer(200, body, content_type)
        head, _, asked = here.upstream.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/v1/prompt-data HTTP/1.1\r\n")
        assert asked == b'{"user_id":7,"node_name":"explain"}'
        assert b"if-none-match" not in head.lower()
        assert here.attempts == [("prompt-data", "ok")]


async def test_parts_without_a_content_type_are_taken_for_json() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with world(plays) as here:
        assert await here.prompt_data() == Answer(200, b"{}", "application/json")


async def test_the_services_no_to_a_nodes_parts_is_a_failure_with_its_answer() -> None:
    async with world(answering({"detail": "no"}, status=404)) as here:
        with pytest.raises(UpstreamFailure) as caught:
            await here.prompt_data()
        assert caught.value.answer == Answer(404, b'{"detail": "no"}', "application/json")
        assert here.attempts == [("prompt-data", "gone")]
