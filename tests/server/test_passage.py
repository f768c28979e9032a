"""The two ways through the proxy: bodies that break off, that stall, that are large."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from sidecar.service.forwarding import WriteEnd
from tests.proxying import OK, Peer, Play, broken, pause, proxied, rest_of
from tests.wire import PATIENCE, get, post, wire


@pytest.mark.parametrize(
    "play",
    [
        broken(OK + b"Content-Length: 10\r\n\r\nabc"),
        broken(OK + b"Content-Length: 10\r\n\r\nabc", reset=True),
        broken(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        broken(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", reset=True),
        broken(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_body_that_breaks_off_never_looks_whole(play: Play, version: str) -> None:
    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(f"GET /x HTTP/{version}\r\nHost: x\r\n\r\n".encode())
        received = await rest_of(client)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n") or received == b"RESET"
        assert not received.endswith(b"0\r\n\r\n")
        assert b"Content-Length: 10" in received or b"chunked" in received or received.endswith(b"RESET")
        assert (await setting.outcome())[1] == "reset"


async def test_a_body_to_the_connections_end_that_ends_by_a_reset_is_not_whole() -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"\r\nabc")
        await go.wait()
        peer.reset()

    for version in ("1.1", "1.0"):
        go.clear()
        async with proxied(play) as setting, wire(setting.port) as client:
            await client.send(f"GET /x HTTP/{version}\r\nHost: x\r\n\r\n".encode())
            await client.answer()
            go.set()
            received = await rest_of(client)
            assert received in ({b"3\r\nabc\r\n"} if version == "1.1" else {b"abcRESET", b"RESET"})
            assert (await setting.outcome())[1] == "reset"


async def test_a_chunk_that_is_none_breaks_the_answer_off_at_once() -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await go.wait()
        await peer.say(b"zz\r\nabc\r\n0\r\n\r\n")
        await peer.gone()

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.ask(get("/x"))
        assert await client.line() == b"3\r\n"
        go.set()
        assert await rest_of(client) == b"abc\r\n"
        assert (await setting.outcome())[1] == "reset"


async def test_an_answer_that_stops_coming_is_broken_off_and_its_call_ended() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 10\r\n\r\nabc")
        await peer.gone()
        left.set()

    async with proxied(play, idle_timeout=0.1) as setting, wire(setting.port) as client:
        await client.send(post(b"", path="/x"))
        assert (await rest_of(client)).endswith(b"\r\n\r\nabc")
        assert await setting.outcome() == ("POST", "read_timeout")
        assert setting.watch.ends == [WriteEnd.ANSWERED]
        await asyncio.wait_for(left.wait(), PATIENCE)


async def test_a_client_that_takes_no_more_of_an_answer_holds_nobody() -> None:
    left = asyncio.Event()
    taken = 0

    async def play(peer: Peer) -> None:
        nonlocal taken
        await peer.head()
        await peer.say(OK + b"Content-Length: 99999999\r\n\r\n")
        try:
            while True:
                await peer.say(b"x" * 2**16)
                taken += 2**16
        finally:
            left.set()

    async with proxied(play, idle_timeout=0.2) as setting, wire(setting.port, receive_buffer=4096) as client:
        await client.send(get("/x"))
        assert await setting.outcome() == ("GET", "read_timeout")
        await asyncio.wait_for(left.wait(), PATIENCE)
        assert taken < 32 * 2**20  # most of it in the kernel


async def test_a_client_that_leaves_while_it_takes_no_more_ends_the_call() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 99999999\r\n\r\n")
        try:
            while True:
                await peer.say(b"x" * 2**16)
        finally:
            left.set()

    async with proxied(play) as setting, wire(setting.port, receive_buffer=4096) as client:
        await client.send(get("/x"))
        assert await client.line() == b"HTTP/1.1 200 OK\r\n"
        await pause(0.1)
        client.abort()
        assert await setting.outcome() == ("GET", "client_gone")
        await asyncio.wait_for(left.wait(), PATIENCE)


async def test_patience_for_an_answer_begins_anew_with_each_piece_either_way() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 8\r\n\r\n")
        assert await peer.chunks() == b"xxxxxxxx"
        await peer.say(b"abcdefgh")

    async with proxied(play, idle_timeout=0.2) as setting, wire(setting.port) as client:
        await client.send(get("/x", "Transfer-Encoding: chunked", method="PUT"))
        for _ in range(8):
            await pause(0.05)
            await client.send(b"1\r\nx\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.answer()).body == b"abcdefgh"


async def test_a_client_that_leaves_its_upload_after_the_answer_began_ends_the_call() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 8\r\n\r\nabc")
        await peer.gone()

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x", "Transfer-Encoding: chunked", method="PUT"))
        while await client.line() != b"\r\n":
            pass
        client.abort()
        assert await setting.outcome() == ("PUT", "client_gone")


# Large bodies

GIB = 2**30
PIECE = bytes(2**18)
MEMORY = 32 * 2**20
"""Bytes by which the process may grow."""


async def swallows(peer: Peer) -> None:
    """Play: take a body of a gibibyte, and say how much came."""
    await peer.head()
    size = 0
    while size < GIB:
        size += len(await peer.reader.read(2**20))
    await peer.say(OK + b"Content-Length: 10\r\n\r\n" + str(size).encode())


async def pours(peer: Peer) -> None:
    """Play: answer with a body of a gibibyte."""
    await peer.head()
    await peer.say(OK + b"Content-Length: %d\r\n\r\n" % GIB)
    for _ in range(GIB // len(PIECE)):
        await peer.say(PIECE)


@contextmanager
def flat_memory() -> Iterator[Callable[[], None]]:
    """Yield what is to be called now and then; fail if the process grew."""
    process = psutil.Process()
    before = process.memory_info().rss
    grown = 0

    def look() -> None:
        nonlocal grown
        grown = max(grown, process.memory_info().rss - before)

    yield look
    look()
    assert grown < MEMORY


async def test_a_gibibyte_goes_up_in_flat_memory() -> None:
    async with proxied(swallows) as setting, wire(setting.port) as client:
        with flat_memory() as look:
            await client.send(get("/x", f"Content-Length: {GIB}", method="PUT"))
            for _ in range(GIB // len(PIECE)):
                await client.send(PIECE)
                look()
            assert (await client.answer()).body == str(GIB).encode()


async def test_a_gibibyte_comes_down_in_flat_memory() -> None:
    async with proxied(pours) as setting, wire(setting.port) as client:
        with flat_memory() as look:
            await client.send(get("/x"))
            head = await client._reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: %d\r\n" % GIB in head
            size = 0
            while size < GIB:
                size += len(await client._reader.read(2**20))
                look()
        assert size == GIB
