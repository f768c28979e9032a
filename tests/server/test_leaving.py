"""How connections end at a drain: whoever has asked, or is about to, is answered; nobody gets a reset."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import pytest
import uvloop
from aiohttp import web

from sidecar.server import leaving
from sidecar.server.leaving import LeavingServer, accept_rest
from tests.wire import Wire, get, post, serving, until, wire

ALWAYS = 100.0
"""Seconds that no test lasts."""


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_each_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """Make a test that runs on the loop of production, and on the one that its rules are written for."""

    @pytest.mark.parametrize("loop", LOOPS)
    def run(loop: str) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test())

    return run


async def echo(request: web.BaseRequest) -> web.Response:
    return web.Response(body=await request.read())


@asynccontextmanager
async def draining(server: web.Server, idle_grace: float) -> AsyncIterator["asyncio.Task[None]"]:
    """Drain a server; a test must see to it that the drain ends."""
    assert isinstance(server, LeavingServer)
    drain = asyncio.ensure_future(server.drain(idle_grace=idle_grace))
    await until(lambda: server.is_draining)
    try:
        yield drain
    except BaseException:
        drain.cancel()
        raise
    async with asyncio.timeout(10):
        await drain


async def closed(client: Wire) -> bool:
    """Wait for the end of the connection, which is no reset, and close it from this side, too."""
    ended = await client.ended()
    client.close()
    return ended


@on_each_loop
async def test_a_connection_that_has_sent_nothing_yet_may_still_ask_once() -> None:
    async with serving(echo) as served, wire(served.port) as client:
        await until(lambda: bool(served.server.connections))
        async with draining(served.server, ALWAYS):
            answer = await client.ask(post(b"late"))
            assert (answer.body, answer.header("Connection")) == (b"late", "close")
            assert await closed(client)


@on_each_loop
async def test_so_may_one_that_has_sent_half_of_its_head_or_of_its_body() -> None:
    whole = post(b"in two pieces")
    for cut in (10, len(whole) - 5):
        async with serving(echo) as served, wire(served.port) as client:
            await client.send(whole[:cut])
            await until(lambda: bool(served.server.connections))
            async with draining(served.server, ALWAYS):
                answer = await client.ask(whole[cut:])
                assert (answer.body, answer.header("Connection")) == (b"in two pieces", "close")
                assert await closed(client)


@on_each_loop
async def test_one_that_is_kept_open_may_ask_until_it_was_quiet_for_the_grace() -> None:
    async with serving(echo) as served, wire(served.port) as client, wire(served.port) as quiet:
        for each in (client, quiet):
            assert (await each.ask(post(b"one"))).header("Connection") is None
        async with draining(served.server, 0.3):
            assert (await client.ask(post(b"two"))).header("Connection") == "close"
            assert await closed(client)
            assert await closed(quiet)


@on_each_loop
async def test_without_a_grace_what_is_idle_ends_at_once() -> None:
    async with serving(echo) as served, wire(served.port) as client:
        await client.ask(post(b"one"))
        async with draining(served.server, 0.0):
            assert await closed(client)


@on_each_loop
async def test_an_answer_that_is_under_way_is_finished_and_says_that_it_is_the_last() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.set()
        await go_on.wait()
        return await echo(request)

    async with serving(answer) as served, wire(served.port) as client:
        await client.send(post(b"slow"))
        await asked.wait()
        async with draining(served.server, 0.0) as drain:
            await asyncio.wait({drain}, timeout=0.05)
            assert not drain.done()
            go_on.set()
            answered = await client.answer()
            assert (answered.body, answered.header("Connection")) == (b"slow", "close")
            assert await closed(client)


@on_each_loop
async def test_what_was_pipelined_before_is_answered_and_only_the_last_answer_says_close() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.set()
        await go_on.wait()
        return await echo(request)

    async with serving(answer) as served, wire(served.port) as client:
        await client.send(post(b"one") + post(b"two"))
        await asked.wait()
        async with draining(served.server, ALWAYS):
            go_on.set()
            first, second = await client.answer(), await client.answer()
            assert [(each.body, each.header("Connection")) for each in (first, second)] == [
                (b"one", None),
                (b"two", "close"),
            ]
            assert await closed(client)


@on_each_loop
async def test_what_is_asked_after_the_last_answer_is_dropped_and_resets_nothing() -> None:
    handled: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        handled.append(request.path)
        return web.Response(body=b"x" * 200_000)

    async with serving(answer) as served, wire(served.port) as client:
        await until(lambda: bool(served.server.connections))
        async with draining(served.server, ALWAYS):
            await client.send(get("/first"))
            await until(lambda: handled == ["/first"])
            await client.send(get("/second") + b"x" * 100_000)
            assert len((await client.answer()).body) == 200_000
            assert await closed(client)
        assert handled == ["/first"]


@on_each_loop
async def test_a_client_that_does_not_close_is_waited_for_in_vain_for_a_while() -> None:
    with patch.object(leaving, "LINGER_SECONDS", 0.05):
        async with serving(echo) as served, wire(served.port) as client:
            await until(lambda: bool(served.server.connections))
            async with draining(served.server, 0.0):
                assert await client.ended()


@on_each_loop
async def test_an_answer_of_http_1_0_ends_as_ever() -> None:
    async with serving(echo) as served, wire(served.port) as client:
        await until(lambda: bool(served.server.connections))
        async with draining(served.server, ALWAYS):
            assert (await client.ask(post(b"old", version="1.0"))).body == b"old"
            assert await closed(client)


@on_each_loop
async def test_what_the_kernel_accepted_before_the_listener_closed_is_answered() -> None:
    async with serving(echo) as served:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        async with wire(port) as one, wire(port) as other:
            await one.send(post(b"one"))
            await accept_rest([listening], served.server, most=10)
            async with draining(served.server, 0.3):
                assert (await one.answer()).body == b"one"
                assert (await other.ask(post(b"other"))).body == b"other"
                assert await closed(one)
                assert await closed(other)
        assert listening.fileno() == -1
