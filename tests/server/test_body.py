"""Request bodies: bounded in bytes and in time, whichever way they come."""

import asyncio
import logging

import pytest
from aiohttp import web

from sidecar.core.events import Event, Shed
from sidecar.server.body import BodyError, BodyRoom, read_body
from sidecar.server.responses import problem
from tests.wire import PATIENCE, Wire, post, serving, until, wire

LIMIT = 1000
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Reader:
    """Answers with what it read, or with why it did not."""

    def __init__(self, timeout_seconds: float = PATIENCE, room: BodyRoom | None = None) -> None:
        self.timeout_seconds = timeout_seconds
        self.room = room
        self.refused: list[BodyError] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        try:
            body = await read_body(request, max_bytes=LIMIT, timeout_seconds=self.timeout_seconds, room=self.room)
            return web.Response(body=body)
        except BodyError as error:
            self.refused.append(error)
            response = problem(error.status, str(error))
            response.force_close()
            return response


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize("body", [b"", b"x", b"x" * LIMIT], ids=len)
async def test_a_body_that_comes_with_its_headers_is_taken(body: bytes) -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        assert (await client.ask(post(body))).body == body


@pytest.mark.parametrize("body", [b"x", b"x" * LIMIT], ids=len)
async def test_a_body_that_comes_after_its_headers_is_taken(body: bytes) -> None:
    data = post(body)
    async with serving(Reader()) as served, wire(served.port) as client:
        await client.send(data[: len(data) - len(body)])
        await until(lambda: served.server.requests_count == 1)
        assert (await client.ask(body)).body == body


async def test_a_body_in_chunks_is_taken_whole() -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        await client.send(CHUNKED + chunk(b"x" * 400))
        await until(lambda: served.server.requests_count == 1)
        await client.send(chunk(b"y" * 600))
        assert (await client.ask(chunk(b""))).body == b"x" * 400 + b"y" * 600


async def test_a_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    reader = Reader()
    async with serving(reader) as served, wire(served.port) as client:
        answer = await client.ask(post(b"x" * (LIMIT + 1))[:-LIMIT])
        assert answer.status == 413
        assert answer.problem()["detail"] == f"The body is larger than limits.max_body ({LIMIT} bytes)."
        assert answer.header("Connection") == "close"
        assert await client.ended()


@pytest.mark.parametrize("at_once", [True, False])
async def test_chunks_beyond_the_limit_are_refused_as_soon_as_they_are(at_once: bool) -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        if at_once:
            answer = await client.ask(CHUNKED + chunk(b"x" * LIMIT) + chunk(b"x") + chunk(b""))
        else:
            await client.send(CHUNKED + chunk(b"x" * LIMIT))
            await until(lambda: served.server.requests_count == 1)
            answer = await client.ask(chunk(b"x"))
        assert answer.status == 413
        assert answer.header("Connection") == "close"


async def pour(client: Wire) -> None:
    while True:
        await client.send(chunk(b"x" * 65_536))


async def test_a_body_without_an_end_is_not_read_without_an_end() -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        await client.send(CHUNKED)
        await until(lambda: served.server.requests_count == 1)
        with pytest.raises(ConnectionError):  # the server hangs up
            await asyncio.wait_for(pour(client), PATIENCE)


@pytest.mark.parametrize(
    "data",
    [post(b"x" * 100)[:-50], post(b"x")[:-1], CHUNKED, CHUNKED + b"4\r\nxx"],
    ids=["half of it", "nothing of it", "no chunk", "half a chunk"],
)
async def test_a_body_that_does_not_come_in_time_is_408(data: bytes) -> None:
    async with serving(Reader(timeout_seconds=0.05)) as served, wire(served.port) as client:
        answer = await client.ask(data)
        assert answer.status == 408
        assert answer.problem()["detail"] == "The body did not arrive in time."
        assert answer.header("Connection") == "close"
        assert await client.ended()


async def test_chunks_that_turn_into_nonsense_do_not_hold_the_request_beyond_its_time() -> None:
    async with serving(Reader(timeout_seconds=0.05)) as served, wire(served.port) as client:
        await client.send(CHUNKED + chunk(b"x"))
        await until(lambda: served.server.requests_count == 1)
        assert (await client.ask(b"nonsense\r\n")).status in {400, 408}


async def test_a_client_that_expects_100_continue_is_told_to_go_on() -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        await client.send(post(b"x" * 10, "Expect: 100-Continue")[:-10])
        assert await client.line() == b"HTTP/1.1 100 Continue\r\n"
        assert await client.line() == b"\r\n"
        answer = await client.ask(b"x" * 10)
        assert (answer.status, answer.body) == (200, b"x" * 10)
        assert (await client.ask(post(b"next"))).body == b"next"


async def test_a_client_that_expects_100_continue_for_too_much_is_told_not_to() -> None:
    async with serving(Reader()) as served, wire(served.port) as client:
        answer = await client.ask(post(b"x" * 2000, "Expect: 100-continue")[:-2000])
        assert answer.status == 413


async def test_a_client_that_was_told_to_go_on_and_does_not_is_answered_all_the_same() -> None:
    async with serving(Reader(timeout_seconds=0.05)) as served, wire(served.port) as client:
        await client.send(post(b"x", "Expect: 100-continue")[:-1])
        assert await client.line() == b"HTTP/1.1 100 Continue\r\n"
        await client.line()
        assert (await client.answer()).status == 408


async def test_a_client_that_leaves_halfway_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reader = Reader()
    async with serving(reader) as served:
        async with wire(served.port) as client:
            await client.send(post(b"x" * 100)[:-50])
            await until(lambda: served.server.requests_count == 1)
            client.abort()
        await until(lambda: not served.server.connections)
        assert (served.events, reader.refused) == ([], [])
    assert caplog.records == []


# Many at once

LENGTH = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT}\r\n\r\n".encode()


@pytest.mark.parametrize("head", [LENGTH, CHUNKED], ids=["with a length", "in chunks"])
async def test_a_body_for_which_there_is_no_room_is_503_and_others_are_read_on(head: bytes) -> None:
    events: list[Event] = []
    reader = Reader(room=BodyRoom(LIMIT + 10, events.append))
    async with serving(reader) as served, wire(served.port) as first, wire(served.port) as second:
        await first.send(LENGTH + b"x" * 10)
        await until(lambda: served.server.requests_count == 1)
        await second.send(head)
        await until(lambda: served.server.requests_count == 2)
        if head is CHUNKED:
            await second.send(chunk(b"y" * 20))
        refused = await second.answer()
        assert (refused.status, refused.problem()["detail"]) == (503, "Too many large bodies are being read already.")
        assert events == [Shed("bodies")]
        async with wire(served.port) as third:
            assert (await third.ask(post(b"z" * 900))).body == b"z" * 900  # it comes with its head: no room is needed
        assert (await first.ask(b"x" * (LIMIT - 10))).status == 200


@pytest.mark.parametrize("how", ["read", "too large", "too late", "gone"])
async def test_room_is_given_back_however_it_ends(how: str) -> None:
    events: list[Event] = []
    reader = Reader(0.05 if how == "too late" else PATIENCE, BodyRoom(LIMIT, events.append))
    async with serving(reader) as served:
        for n in range(3):
            async with wire(served.port) as client:
                await client.send(CHUNKED)
                await until(lambda n=n: served.server.requests_count == n + 1)  # type: ignore[misc]
                await client.send(chunk(b"x" * 600))
                if how == "gone":
                    client.abort()
                    await until(lambda: not served.server.connections)
                    continue
                await client.send({"read": chunk(b""), "too large": chunk(b"x" * 900), "too late": b""}[how])
                assert (await client.answer()).status == {"read": 200, "too large": 413, "too late": 408}[how]
    assert events == []
