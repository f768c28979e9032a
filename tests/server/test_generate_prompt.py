"""`POST /api/v1/generate-prompt` on the wire, over a manager whose upstream is faked."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.core.decision import Directives
from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.events import Outcome, RequestOutcome
from sidecar.server.generate_prompt import PATH, GeneratePrompt, Reader
from sidecar.server.listener import Routes
from tests.fakes import World, answered, document, loop_time
from tests.wire import Answer, Serving, get, post, serving, until, wire

QUESTION = {"user_id": 7, "node_name": "explain", "context": {"topic": "tides"}}
CLEAN = {"style": "plain words", "topic": "tides"}
DOWN = UpstreamFailure(FailureKind.CONNECT_ERROR, "no connection to the config service")


def body(**changes: Any) -> bytes:
    return json.dumps({**QUESTION, **changes}).encode()


@asynccontextmanager
async def listening(
    world: World, *, max_body: int = 1000, max_bodies: int = 10_000, deadline: float = 4.0
) -> AsyncIterator[Serving]:
    observe = world.events.append
    reader = Reader(
        observer=observe,
        clock=loop_time,
        max_body=max_body,
        max_bodies=max_bodies,
        deadline=deadline,
        as_today=lambda: world.as_today,
    )
    answer = GeneratePrompt(world.manager, reader, clock=loop_time)
    async with serving(Routes({("POST", PATH): answer}), events=world.events) as served:
        yield served
    await world.settle()


async def ask(world: World, data: bytes, **limits: Any) -> Answer:
    async with listening(world, **limits) as served, wire(served.port) as client:
        return await client.ask(data)


def outcome(world: World) -> RequestOutcome:
    (told,) = world.seen(RequestOutcome)
    return told


async def test_a_prompt_is_answered_as_the_first_generation_does() -> None:
    world = World()
    answer = await ask(world, post(body()))
    assert answer.status == 200
    assert json.loads(answer.body) == {"prompt": "Explain tides in plain words.", "used_placeholders": CLEAN}
    assert answer.header("Cache-Status") == "prompt-sidecar; fwd=miss; stored"
    assert answer.header("Age") == "0"
    assert outcome(world).outcome is Outcome.MISS


async def test_the_second_answer_comes_from_the_cache_and_says_so() -> None:
    world = World()
    async with listening(world) as served, wire(served.port) as client:
        first = await client.ask(post(body()))
        second = await client.ask(post(body(context={"topic": "ebb"})))
    assert first.header("Cache-Status") == "prompt-sidecar; fwd=miss; stored"
    assert second.header("Cache-Status") == "prompt-sidecar; hit; ttl=99"
    assert json.loads(second.body)["prompt"] == "Explain ebb in plain words."
    assert world.fetches == 1


@pytest.mark.parametrize(
    "given",
    [
        "Content-Type: application/json",
        "Content-Type: application/json; charset=utf-8",
        "Content-Type: application/problem+json",
        "X-No-Type: stated",
        "Accept: text/html",
        "Cache-Control: max-age=0, unheard-of",
    ],
)
async def test_json_is_taken_whatever_else_the_headers_say(given: str) -> None:
    assert (await ask(World(), post(body(), given))).status == 200


@pytest.mark.parametrize(
    "given",
    [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Encoding: gzip",
        "Content-Encoding: identity",
    ],
)
async def test_another_type_or_an_encoding_is_415(given: str) -> None:
    world = World()
    answer = await ask(world, post(body(), given))
    assert answer.status == 415
    assert "application/json" in answer.problem()["detail"]
    assert answer.header("Cache-Status") == "prompt-sidecar; detail=request"
    assert (outcome(world).outcome, outcome(world).status, outcome(world).detail) == (Outcome.ERROR, 415, "body")
    assert world.fetches == 0


async def test_an_encoded_body_is_not_inflated_even_if_it_is_a_bomb() -> None:
    answer = await ask(World(), post(b"\x1f\x8b" + b"x" * 100, "Content-Encoding: gzip"))
    assert answer.status == 415


async def test_a_body_beyond_the_limit_is_413_and_ends_the_connection() -> None:
    world = World()
    answer = await ask(world, post(body(context={"topic": "x" * 2000})))
    assert answer.status == 413
    assert "limits.max_body (1000 bytes)" in answer.problem()["detail"]
    assert answer.header("Connection") == "close"
    assert outcome(world).status == 413


async def test_half_a_body_is_408_at_the_deadline() -> None:
    world = World()
    answer = await ask(world, post(body())[:-5], deadline=0.05)
    assert answer.status == 408
    assert outcome(world).status == 408
    assert world.fetches == 0


async def test_a_body_that_breaks_the_schema_is_422_and_the_connection_stays() -> None:
    world = World()
    async with listening(world) as served, wire(served.port) as client:
        answer = await client.ask(post(b'{"user_id": 0, "node_name": 5}'))
        assert answer.status == 422
        assert answer.problem()["detail"] == "The request breaks the schema: node_name must be a string."
        assert answer.header("Connection") is None
        assert (await client.ask(post(body()))).status == 200
    assert [(told.status, told.detail) for told in world.seen(RequestOutcome)] == [(422, "schema"), (200, None)]


async def test_a_missing_placeholder_is_422_and_named() -> None:
    world = World()
    answer = await ask(world, post(body(context={})))
    assert answer.status == 422
    assert answer.problem()["missing"] == ["topic"]


async def test_an_upstream_that_is_down_is_503_with_retry_after() -> None:
    world = World()
    world.source.serves = DOWN
    answer = await ask(world, post(body()))
    assert answer.status == 503
    assert answer.header("Retry-After") == "1"
    assert answer.header("Cache-Status") == "prompt-sidecar; fwd=miss; detail=connect-error"
    assert answer.problem()["detail"].startswith("No prompt: no connection to the config service")


async def test_the_upstreams_own_refusal_is_passed_on() -> None:
    world = World()
    world.source.serves = answered(404)
    answer = await ask(world, post(body()))
    assert (answer.status, answer.body) == (404, b'{"detail":"no"}')
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Status") == "prompt-sidecar; fwd=miss; fwd-status=404; detail=gone"


@pytest.mark.parametrize(
    ("asks", "directives"),
    [
        ("no-cache", Directives(no_cache=True)),
        ("only-if-cached", Directives(only_if_cached=True)),
        ("max-stale=5", Directives(max_stale=5.0)),
    ],
)
async def test_what_the_request_says_of_caching_reaches_the_decision(asks: str, directives: Directives) -> None:
    world = World()
    async with listening(world) as served, wire(served.port) as client:
        await client.ask(post(body()))
        second = await client.ask(post(body(), f"Cache-Control: {asks}"))
    forward = directives.no_cache
    assert second.header("Cache-Status") == f"prompt-sidecar; {'fwd=request; stored' if forward else 'hit; ttl=99'}"
    assert world.fetches == 1 + forward


async def test_only_if_cached_with_nothing_cached_is_504() -> None:
    world = World()
    answer = await ask(world, post(body(), "Cache-Control: only-if-cached"))
    assert answer.status == 504
    assert world.fetches == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
async def test_other_methods_are_405(method: str) -> None:
    async with listening(World()) as served, wire(served.port) as client:
        await client.send(get(PATH, method=method))
        answer = await client.answer(to_head=method == "HEAD")
        assert (answer.status, answer.header("Allow")) == (405, "POST")


async def test_content_that_looks_like_a_template_or_like_html_comes_back_as_it_is() -> None:
    world = World()
    said = "{{ 7*7 }} {% raw %} <b>&amp;</b> \r\nX-Injected: yes"
    world.source.serves = document("Say: {{ topic }}")
    answer = await ask(world, post(body(context={"topic": said})))
    assert json.loads(answer.body)["prompt"] == f"Say: {said}"
    assert answer.header("X-Injected") is None


async def test_a_name_from_the_request_cannot_make_a_header() -> None:
    world = World()
    world.source.serves = DOWN
    answer = await ask(world, post(body(node_name="x\r\nX-Injected: yes")))
    assert answer.status == 503
    assert answer.header("X-Injected") is None


async def test_a_client_that_gives_up_waiting_leaves_the_fetch_to_the_next() -> None:
    world = World()
    world.source.takes = 0.05
    async with listening(world) as served:
        async with wire(served.port) as client:
            await client.send(post(body()))
            await until(lambda: world.fetches == 1)
            client.abort()
        async with wire(served.port) as other:
            assert (await other.ask(post(body()))).status == 200
    assert world.fetches == 1
