"""Real sockets for tests: a raw HTTP/1.1 client, a listener, the reference config service, a condition to wait for."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

from aiohttp import web

from sidecar.core.events import Event
from sidecar.demo.reference.service import create_app
from sidecar.demo.reference.state import STATE, ReferenceOptions, State
from sidecar.server import listener
from sidecar.server.connections import ConnectionLimits

PATIENCE = 10.0
"""Seconds until a test that waits for something fails; far more than it takes."""


CONNECTIONS = ConnectionLimits(max_connections=1000, head_timeout=60.0, keep_alive=60.0, write_timeout=60.0)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition holds that nothing announces, such as what another process does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


async def refuses(port: int) -> bool:
    """Say whether nobody listens on a port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return True
    writer.close()
    return False


class Answer(NamedTuple):
    """One response, as it came."""

    status_line: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    def header(self, name: str) -> str | None:
        """Return the header's only value, or None."""
        values = [value for each, value in self.headers if each.lower() == name.lower()]
        assert len(values) <= 1, values
        return values[0] if values else None

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.headers]

    def problem(self) -> Any:
        """Return the problem's members, as RFC 9457 wants them."""
        assert self.header("Content-Type") == "application/problem+json"
        members = json.loads(self.body)
        assert members["status"] == self.status
        assert members["type"] == "about:blank"
        assert members["title"]
        assert members["detail"].endswith(".")
        return members


class Wire:
    """One connection of a client that says exactly what it is told to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def line(self) -> bytes:
        """Return the next line."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readline()

    async def answer(self, *, to_head: bool = False, pause: float = 0.0) -> Answer:
        """Read one response: its head by lines, its body by Content-Length; `pause`: seconds after each piece."""
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("ascii")
            status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
            answer = Answer(status_line, headers, b"")
            length = int(answer.header("Content-Length") or 0)
            body = b""
            while len(body) < length and not to_head:
                body += await self._reader.readexactly(min(length - len(body), 2**18 if pause else length))
                await asyncio.sleep(pause)
            return answer._replace(body=body)

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def ended(self) -> bool:
        """Wait for the server's end of the connection, and say whether nothing more came before it."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read() == b""

    def close(self) -> None:
        """Leave politely."""
        self._writer.close()

    def abort(self) -> None:
        """Leave at once, with a reset."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self._writer.transport.abort()


@asynccontextmanager
async def wire(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """Connect; `receive_buffer`: bytes that the client's kernel takes ahead."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=client, limit=receive_buffer or 2**16)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def post(body: bytes, *headers: str, path: str = "/api/v1/generate-prompt", version: str = "1.1") -> bytes:
    """Return the bytes of a POST with its length."""
    lines = [f"POST {path} HTTP/{version}", "Host: localhost:8002", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost:9102", *headers, "", ""]).encode()


class Serving(NamedTuple):
    """A running listener, and what it told."""

    port: int
    events: list[Event]
    server: web.Server


@asynccontextmanager
async def serving(
    handler: listener.Handler,
    *,
    events: list[Event] | None = None,
    max_header: int = 1024,
    max_headers: int = 20,
    connections: ConnectionLimits = CONNECTIONS,
) -> AsyncIterator[Serving]:
    """Serve a handler as each of the sidecar's listeners does."""
    events = [] if events is None else events
    with patch.object(listener, "LINGER_SECONDS", 0.1):
        server = listener.make_server(
            handler, events.append, max_header=max_header, max_headers=max_headers, connections=connections
        )
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Serving(runner.addresses[0][1], events, server)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reference(**options: Any) -> AsyncIterator[tuple[str, State]]:
    """Run the reference config service in this process; yields its URL and its state."""
    app = create_app(ReferenceOptions(**options))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", app[STATE]
    finally:
        await runner.cleanup()
