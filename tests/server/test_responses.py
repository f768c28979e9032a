"""Answers on the wire: a prompt's bytes are valid HTTP, whoever reads them; problems are RFC 9457."""

import asyncio
import http.client
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.errors import Answer as UpstreamAnswer
from sidecar.core.errors import PromptError
from sidecar.core.model import Rendered
from sidecar.server.responses import PromptResponse, age_seconds, error_response, problem, prompt_body
from tests.wire import Answer, Serving, get, post, serving, until, wire

TEXT = 'Explain <b>tides</b> & "ebb" in Русский 🌊\nline\x00\u2028'
HIT = Provenance(hit=True, ttl=3412.9, age=87.9)
RENDERED = Rendered(TEXT, {"topic": "tides", "empty": ""}, HIT)
MEGABYTE = Rendered("prompt " * 150_000, {}, HIT)


@asynccontextmanager
async def answering(rendered: Rendered = RENDERED) -> AsyncIterator[Serving]:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return PromptResponse(rendered)

    async with serving(handler) as served:
        yield served


async def answer_with(response: web.StreamResponse) -> Answer:
    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return response

    async with serving(handler) as served, wire(served.port) as client:
        return await client.ask(get("/"))


# A prompt


async def test_a_prompt_is_answered_with_the_documented_headers_and_no_others() -> None:
    async with answering() as served, wire(served.port) as client:
        answer = await client.ask(post(b"{}"))
        assert answer.status_line == "HTTP/1.1 200 OK"
        assert sorted(answer.names) == ["Age", "Cache-Status", "Content-Length", "Content-Type", "Date"]
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("Cache-Status") == "prompt-sidecar; hit; ttl=3412"
        assert answer.header("Age") == "87"
        date = answer.header("Date")
        assert date
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
        assert parsedate_to_datetime(date)
        assert json.loads(answer.body) == {"prompt": TEXT, "used_placeholders": {"topic": "tides", "empty": ""}}


async def test_aiohttps_client_reads_it() -> None:
    async with answering() as served, aiohttp.ClientSession() as session:
        for _ in range(2):  # the second on the same connection
            async with session.post(f"http://127.0.0.1:{served.port}/", json={}) as response:
                assert (response.status, response.content_type) == (200, "application/json")
                assert (await response.json())["prompt"] == TEXT
        assert served.server.requests_count == 2
        assert len(served.server.connections) == 1


async def test_pythons_own_client_reads_it() -> None:
    def ask(port: int) -> list[Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        prompts = []
        for _ in range(2):
            connection.request("POST", "/", body=b"{}")
            response = connection.getresponse()
            prompts.append((response.status, response.version, json.load(response)["prompt"]))
            assert not response.will_close
        connection.close()
        return prompts

    async with answering() as served:
        assert await asyncio.to_thread(ask, served.port) == [(200, 11, TEXT)] * 2


@pytest.mark.parametrize(
    ("version", "asked", "said", "stays"),
    [
        ("1.1", None, None, True),
        ("1.1", "keep-alive", None, True),
        ("1.1", "close", "close", False),
        ("1.0", None, "close", False),
        ("1.0", "close", "close", False),
        ("1.0", "keep-alive", "keep-alive", True),
    ],
)
async def test_the_connection_stays_as_the_request_asked_and_the_answer_says_so(
    version: str, asked: str | None, said: str | None, stays: bool
) -> None:
    data = post(b"{}", *([f"Connection: {asked}"] if asked else []), version=version)
    async with answering() as served, wire(served.port) as client:
        answer = await client.ask(data)
        assert answer.header("Connection") == said
        if stays:
            assert (await client.ask(data)).body == answer.body
        else:
            assert await client.ended()


async def test_pipelined_requests_each_get_their_answer() -> None:
    async with answering() as served, wire(served.port) as client:
        await client.send(post(b"{}") * 50)
        assert [(await client.answer()).status for _ in range(50)] == [200] * 50


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_large_answer_reaches_a_slow_reader_whole(connection: str) -> None:
    async with answering(MEGABYTE) as served, wire(served.port, receive_buffer=4096) as client:
        answer = await client.ask(post(b"{}", f"Connection: {connection}"))
        assert answer.body == prompt_body(MEGABYTE)
        if connection == "keep-alive":
            assert (await client.ask(post(b"{}"))).body == answer.body
        else:
            assert await client.ended()


async def test_many_large_answers_to_one_who_does_not_read_do_not_pile_up() -> None:
    async with answering(MEGABYTE) as served, wire(served.port, receive_buffer=4096) as client:
        await client.send(post(b"{}") * 20)
        assert (await client.answer()).status == 200
        await asyncio.sleep(0)
        assert served.server.requests_count < 20  # the next waits until this one is taken


async def test_a_client_that_leaves_amid_a_large_answer_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with answering(MEGABYTE) as served:
        async with wire(served.port, receive_buffer=4096) as client:
            await client.send(post(b"{}"))
            assert await client.line() == b"HTTP/1.1 200 OK\r\n"
            client.abort()
        await until(lambda: not served.server.connections)
        assert served.events == []
    assert caplog.records == []


async def test_a_client_that_left_before_its_prompt_was_ready_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    requests: list[web.BaseRequest] = []
    gone = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        requests.append(request)
        await gone.wait()
        return PromptResponse(RENDERED)

    async with serving(handler) as served:
        async with wire(served.port) as client:
            await client.send(post(b"{}"))
            await until(lambda: bool(requests))
        await until(lambda: requests[0].transport is None)
        gone.set()
        await until(lambda: not served.server.connections)
        assert served.events == []
    assert caplog.records == []


@pytest.mark.parametrize(("age", "said"), [(0.0, 0), (0.99, 0), (1.0, 1), (-0.5, 0), (86_400.5, 86_400)])
def test_age_is_whole_seconds_and_never_negative(age: float, said: int) -> None:
    assert age_seconds(Provenance(age=age)) == said


# Problems


async def test_a_problem_has_the_members_of_rfc_9457_and_those_that_belong_to_it() -> None:
    answer = await answer_with(problem(418, "No coffee.", headers={"Retry-After": "3"}, missing=["cup"]))
    assert answer.problem() == {
        "type": "about:blank", "title": "I'm a Teapot", "status": 418, "detail": "No coffee.", "missing": ["cup"],
    }  # fmt: skip
    assert answer.header("Retry-After") == "3"


async def test_an_error_says_what_was_asked_on_the_way_and_when_to_come_again() -> None:
    provenance = Provenance(forward=Forward.STALE, forward_status=503, detail="server-error")
    error = PromptError(503, "No prompt.", reason="server_error", retry_after=1.2, provenance=provenance)
    answer = await answer_with(error_response(error))
    assert answer.status == 503
    assert answer.header("Retry-After") == "2"
    assert answer.header("Cache-Status") == "prompt-sidecar; fwd=stale; fwd-status=503; detail=server-error"
    assert "missing" not in answer.problem()


async def test_what_is_missing_is_named() -> None:
    answer = await answer_with(error_response(PromptError(422, "Needs.", reason="required", missing=("a", "b"))))
    assert answer.problem()["missing"] == ["a", "b"]
    assert answer.header("Retry-After") is None


async def test_the_upstreams_own_answer_is_passed_on_as_it_came() -> None:
    own = UpstreamAnswer(404, b'{"detail": "no \xff"}', "application/json; charset=latin-1")
    error = PromptError(404, "unused", reason="gone", answer=own, provenance=Provenance(forward=Forward.MISS))
    answer = await answer_with(error_response(error))
    assert (answer.status, answer.body) == (404, own.body)
    assert answer.header("Content-Type") == own.content_type
    assert answer.header("Cache-Status") == "prompt-sidecar; fwd=miss"
