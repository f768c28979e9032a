"""Connections to a listener: how many, and how long a client may take with its head and with its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from unittest.mock import patch

import pytest
from aiohttp import web

from sidecar.core.cache_status import Provenance
from sidecar.core.events import Event, Refused, Shed
from sidecar.core.model import Rendered
from sidecar.server import connections
from sidecar.server.connections import ConnectionLimits, SlowClients
from sidecar.server.responses import PromptResponse
from tests.wire import CONNECTIONS, PATIENCE, Serving, Wire, get, post, serving, until, wire

QUICK = 0.1
"""Seconds: the timeout that a test waits for."""
HALF_A_HEAD = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-"


async def answer(request: web.BaseRequest) -> web.Response:
    return web.Response(body=await request.read())


@asynccontextmanager
async def limited(**limits: Any) -> AsyncIterator[Serving]:
    async with serving(answer, connections=CONNECTIONS._replace(**limits)) as served:
        yield served


# How many


async def test_one_connection_too_many_is_answered_with_503_and_closed() -> None:
    async with limited(max_connections=2) as served, AsyncExitStack() as stack:
        taken = [await stack.enter_async_context(wire(served.port)) for _ in range(2)]
        for each in taken:
            assert (await each.ask(post(b"on"))).status == 200
        async with wire(served.port) as other:
            refused = await other.answer()
            assert refused.status == 503
            assert refused.header("Retry-After") == "1"
            assert refused.header("Connection") == "close"
            assert refused.problem()["detail"] == "There are too many connections to the sidecar."
            assert await other.ended()
        assert served.events == [Shed("connections")]
        assert (await taken[0].ask(post(b"still"))).body == b"still"


async def test_a_client_too_many_that_is_still_sending_gets_its_answer_and_no_reset() -> None:
    async with limited(max_connections=1) as served, wire(served.port) as taken:
        assert (await taken.ask(post(b"on"))).status == 200
        for _ in range(20):
            async with wire(served.port) as other:
                await other.send(post(b"x" * 300_000))
                assert (await other.answer()).status == 503


async def test_a_place_that_becomes_free_is_taken_by_the_next() -> None:
    async with limited(max_connections=1) as served:
        for _ in range(3):
            async with wire(served.port) as client:
                assert (await client.ask(post(b"on"))).status == 200
            await until(lambda: not served.server.connections)
        assert served.events == []


async def test_those_turned_away_are_bounded_too() -> None:
    async with limited(max_connections=1) as served, AsyncExitStack() as stack:
        taken = await stack.enter_async_context(wire(served.port))
        assert (await taken.ask(post(b"on"))).status == 200
        lingering = await stack.enter_async_context(wire(served.port))
        assert (await lingering.answer()).status == 503
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with wire(served.port) as further:
                await further.answer()
        assert served.events == [Shed("connections")] * 2


async def test_one_turned_away_that_does_not_leave_is_cut_off() -> None:
    with patch.object(connections, "LINGER_SECONDS", QUICK):
        async with limited(max_connections=1) as served, AsyncExitStack() as stack:
            taken = await stack.enter_async_context(wire(served.port))
            assert (await taken.ask(post(b"on"))).status == 200
            for _ in range(3):
                stays = await stack.enter_async_context(wire(served.port))
                assert (await stays.answer()).status == 503
                with pytest.raises(ConnectionError):
                    await send_on(stays)


async def send_on(client: Wire) -> None:
    """Send until the connection breaks."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await client.send(b"x" * 1000)
            await asyncio.sleep(QUICK / 10)


# Slow heads


@pytest.mark.parametrize("sent", [b"", b"P", HALF_A_HEAD], ids=["nothing", "a letter", "half of it"])
async def test_a_head_that_does_not_come_is_408(sent: bytes) -> None:
    async with limited(head_timeout=QUICK) as served, wire(served.port) as client:
        await client.send(sent)
        refused = await client.answer()
        assert refused.status == 408
        assert refused.problem()["detail"] == "The head of the request did not arrive in time."
        assert await client.ended()
        assert served.events == [Refused("slow_head")]


async def test_a_head_that_drips_is_408_all_the_same() -> None:
    async with limited(head_timeout=QUICK) as served, wire(served.port) as client:
        head = asyncio.ensure_future(client.answer())
        for n in range(10_000):
            await client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\n" if n == 0 else b"X-%d: x\r\n" % n)
            if (await asyncio.wait([head], timeout=QUICK / 10))[0]:
                break
        assert (await head).status == 408


async def test_a_request_that_was_whole_in_time_may_take_longer() -> None:
    release = asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.Response:
        await release.wait()
        return web.Response()

    silent = CONNECTIONS._replace(head_timeout=QUICK)
    async with serving(slow, connections=silent) as served, wire(served.port) as client, wire(served.port) as other:
        await client.send(get("/x"))
        assert (await other.answer()).status == 408  # so that much time has passed
        release.set()
        assert (await client.answer()).status == 200


async def test_a_kept_connection_is_closed_without_a_word_when_it_was_idle_too_long() -> None:
    async with limited(keep_alive=QUICK) as served, wire(served.port) as client:
        assert (await client.ask(post(b"on"))).status == 200
        assert await client.ended()
        assert served.events == []


async def test_a_later_head_that_does_not_come_whole_ends_with_the_keep_alive() -> None:
    async with limited(keep_alive=QUICK) as served, wire(served.port) as client:
        assert (await client.ask(post(b"on"))).status == 200
        await client.send(HALF_A_HEAD)
        assert await client.ended()


# Slow readers

LARGE = "x" * 8_000_000


async def render(_: web.BaseRequest) -> web.StreamResponse:
    return PromptResponse(Rendered(LARGE, {}, Provenance(hit=True)))


async def respond(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=LARGE)


@pytest.mark.parametrize("handler", [render, respond])
@pytest.mark.parametrize("last", ["", "Connection: close"], ids=["kept", "last"])
async def test_a_client_that_does_not_read_its_answer_is_cut_off(handler: object, last: str) -> None:
    impatient = CONNECTIONS._replace(write_timeout=QUICK)
    async with (
        serving(handler, connections=impatient) as served,  # type: ignore[arg-type]
        wire(served.port, receive_buffer=4096) as client,
    ):
        await client.send(get("/x", last) if last else get("/x"))
        await until(lambda: served.events == [Refused("slow_reader")])
        await until(lambda: not served.server.connections)


async def test_a_client_that_reads_slowly_but_does_is_not() -> None:
    impatient = CONNECTIONS._replace(write_timeout=QUICK)
    async with serving(respond, connections=impatient) as served, wire(served.port, receive_buffer=65_536) as client:
        await client.send(get("/x"))
        assert len((await client.answer(pause=QUICK / 20)).body) == len(LARGE)
        assert served.events == []


async def test_one_that_asks_on_without_reading_gets_no_further_answers_into_memory() -> None:
    answered = 0

    async def prompt(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal answered
        answered += 1
        return PromptResponse(Rendered("x" * 10_000, {}, Provenance(hit=True)))

    async with serving(prompt) as served, wire(served.port, receive_buffer=4096) as client:
        asking = asyncio.ensure_future(client.send(get("/x") * 20_000))  # 200 MB of answers
        (connection,) = await connected(served)
        await until(lambda: connection.writing_paused)
        before = answered
        await asyncio.wait([asking], timeout=QUICK)
        assert answered - before <= 2
        assert before < 2_000
        asking.cancel()
        client.abort()


async def connected(served: Serving) -> list[web.RequestHandler]:
    await until(lambda: bool(served.server.connections))
    return served.server.connections


# The looks


class FakeConnection:
    """A connection, and its transport in one."""

    def __init__(self, *, is_silent: bool = False, unsent: int = 0) -> None:
        self.is_silent = is_silent
        self.unsent = unsent
        self.done: list[str] = []

    def force_close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")

    def write(self, _: bytes) -> None:
        self.done.append("answered")

    def get_write_buffer_size(self) -> int:
        return self.unsent


def looked_at(*those: FakeConnection) -> tuple[SlowClients, list[Event]]:
    events: list[Event] = []
    limits = ConnectionLimits(10, head_timeout=4.0, keep_alive=60.0, write_timeout=8.0)
    return SlowClients({each: each for each in those}, limits, events.append), events  # type: ignore[misc]


def test_each_is_ended_when_its_own_time_is_up_and_not_before() -> None:
    silent, stuck, moving = FakeConnection(is_silent=True), FakeConnection(unsent=7), FakeConnection()
    slow, events = looked_at(silent, stuck, moving)
    for second in range(12):
        moving.unsent = 100 + second % 2
        slow.look(float(second))
        assert bool(silent.done) is (second >= 4)
        assert bool(stuck.done) is (second >= 8)
    assert silent.done[:2] == ["answered", "closed"]
    assert stuck.done[0] == "aborted"
    assert moving.done == []
    assert {*events} == {Refused("slow_head"), Refused("slow_reader")}


def test_time_in_which_the_process_was_held_up_does_not_count() -> None:
    silent = FakeConnection(is_silent=True)
    slow, _ = looked_at(silent)
    slow.look(0.0)
    slow.look(1000.0)
    assert silent.done == []


async def test_nothing_is_looked_at_where_there_is_no_connection() -> None:
    slow, _ = looked_at()
    with patch.object(slow, "look") as look, patch.object(slow, "_interval", 0.0):
        slow.watch()
        await until(lambda: look.call_count == 1)
        await asyncio.sleep(0)
        assert look.call_count == 1
