"""A proxy between raw sockets: an upstream that plays a part by hand, a client that says what it is told to say."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from aiohttp import web

from sidecar.core.events import Event, Proxied
from sidecar.server import listener
from sidecar.server.proxy import Proxy
from sidecar.service.forwarding import WriteEnd
from sidecar.upstream.forward import Forwarder
from tests.wire import CONNECTIONS, PATIENCE, Wire

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """Read the head of a request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def chunks(self) -> bytes:
        """Read a chunked body, chunk by chunk, to its end."""
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readline() == b"\r\n"
        return body

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> bytes:
        """Wait until the other side leaves, and return what came before."""
        with suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Play = Callable[[Peer], Awaitable[None]]


class Upstream:
    """A server that plays its part once for each connection, and then closes it."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.connections = 0
        self.port = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._broken: list[AssertionError] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self.play(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side left, or the test is over
        except AssertionError as error:
            self._broken.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for error in self._broken:
                raise error


@dataclass
class Watching:
    """Writes that were told of: method, target, and each thing that was said of their ends."""

    writes: list[tuple[str, str]] = field(default_factory=list)
    ends: list[WriteEnd] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def began(self, method: str, target: str) -> "WatchedWrite":
        self.writes.append((method, target))
        return WatchedWrite(self)


@dataclass
class WatchedWrite:
    """One write that is told of."""

    watching: Watching

    async def prepare(self) -> None:
        """Have nothing to do."""

    def __call__(self, end: WriteEnd) -> None:
        self.watching.ends.append(end)
        self.watching.told.set()


class Setting:
    """A running proxy, and what it told."""

    server: web.Server

    def __init__(self, port: int, upstream: Upstream, watch: Watching) -> None:
        self.port = port
        self.upstream = upstream
        self.watch = watch
        self.events: list[Event] = []
        self.observed = asyncio.Event()

    def observe(self, event: Event) -> None:
        self.events.append(event)
        self.observed.set()

    async def outcome(self) -> tuple[str, str]:
        """Wait for the only event, and return its method and result."""
        async with asyncio.timeout(PATIENCE):
            await self.observed.wait()
        (event,) = self.events
        assert isinstance(event, Proxied)
        assert event.seconds >= 0
        return event.method, event.result


@asynccontextmanager
async def proxied(
    play: Play, *, connect_timeout: float = 5.0, url: str | None = None, **limits: Any
) -> AsyncIterator[Setting]:
    """Run a proxy before an upstream that plays this part; `url`: before another one."""
    given = {
        "max_in_flight": 8,
        "max_queue": 8,
        "queue_timeout": 5.0,
        "response_timeout": 5.0,
        "idle_timeout": 5.0,
        **limits,
    }
    upstream = Upstream(play)
    async with upstream.running():
        setting = Setting(0, upstream, Watching())
        forwarder = Forwarder(url or upstream.url, connect_timeout=connect_timeout)
        given = {"watch": setting.watch, **given}
        proxy = Proxy(forwarder, observer=setting.observe, clock=time.monotonic, **given)
        with patch.object(listener, "LINGER_SECONDS", 0.05):
            setting.server = listener.make_server(
                proxy, setting.observe, max_header=8192, max_headers=100, connections=CONNECTIONS
            )
        runner = web.ServerRunner(setting.server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            setting.port = runner.addresses[0][1]
            yield setting
        finally:
            await runner.cleanup()
            await forwarder.close()


def answers(body: bytes = b"", *headers: str, status: str = "200 OK") -> Play:
    """Play: a whole answer to each request of the connection, whose body (if any) has a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]

    async def play(peer: Peer) -> None:
        while True:
            await peer.head()
            await peer.say("\r\n".join(lines).encode("latin-1") + body)

    return play


@contextmanager
def full_address() -> Iterator[str]:
    """Yield the URL of an address where connections are neither made nor refused: its queue is full."""
    with socket.socket() as listening, ExitStack() as others:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def silence(peer: Peer) -> None:
    """Play: read nothing, say nothing, until the other side leaves or the test ends."""
    transport = peer.writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    await asyncio.Event().wait()


async def echo(peer: Peer) -> None:
    """Play: answer each request with its own head."""
    while True:
        head = await peer.head()
        await peer.say(OK + b"Content-Length: %d\r\n\r\n" % len(head) + head)


def broken(*said: bytes, reset: bool = False) -> Play:
    """Play: read the head of a request, say this, and end the connection."""

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(*said)
        if reset:
            peer.reset()

    return play


async def rest_of(client: Wire) -> bytes:
    """Return what comes until the connection ends; a reset is an end, too, and is told by `RESET`."""
    async with asyncio.timeout(PATIENCE):
        received = b""
        try:
            while piece := await client._reader.read(2**16):
                received += piece
        except ConnectionResetError:
            return received + b"RESET"
        return received


async def pause(seconds: float) -> None:
    """Let real time pass, where it is time that is tested: the sockets know no other."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
