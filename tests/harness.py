"""What stands around a real sidecar in the tests of promises and scenarios: upstreams, a client, a clock, a process."""

import asyncio
import json
import os
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from sidecar.app import Core, running
from sidecar.core.policy import Policy
from sidecar.core.retry import Rng
from sidecar.demo.processes import PACKAGE_ROOT, START_SECONDS
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.service import create_app
from sidecar.demo.reference.state import STATE, ReferenceOptions, State
from sidecar.service.ports import Clock
from sidecar.settings import (
    Address,
    OpsSettings,
    PolicySettings,
    RetrySettings,
    Settings,
    StoreKind,
    StoreSettings,
    UpstreamApi,
    UpstreamSettings,
)

PATH = "/api/v1/generate-prompt"
JSON = {"Content-Type": "application/json"}
ANY_PORT = Address("127.0.0.1", 0)
NO_STORE = StoreSettings(kind=StoreKind.NONE)
EVENTUALLY_SECONDS = 10.0

QUICK_DEADLINE = 0.6
"""Seconds: LearnFlow's four, shortened, with what belongs to them below."""
QUICK_LIMIT = QUICK_DEADLINE + 4.0
"""Seconds at which such a client gives up: the deadline, and what a busy machine may take from it."""
QUICK_RETRY = RetrySettings(attempts=3, per_try_timeout=0.15, backoff=0.02, max_backoff=0.05, min_attempt=0.01)
QUICK_CONNECT = 0.1
KEPT = Policy(ttl=0, stale_while_revalidate=0, stale_if_error=1000, network_timeout=0.3)
"""Stale at once, usable for long: each request asks, and falls back on what is kept."""


def settings_for(
    url: str,
    *,
    policy: Policy | None = None,
    nodes: Mapping[str, Policy] | None = None,
    upstream: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Settings:
    """Return settings for free ports before this upstream."""
    return Settings(
        listen=ANY_PORT,
        ops=OpsSettings(listen=ANY_PORT),
        upstream=UpstreamSettings(url=url, **({"api": UpstreamApi.PROMPT_DATA} | dict(upstream or {}))),
        policy=PolicySettings(default=policy or Policy(), nodes=nodes or {}),
        **({"store": NO_STORE} | sections),
    )


def quick_settings(url: str, *, upstream: Mapping[str, Any] | None = None, **sections: Any) -> Settings:
    """Return settings with everything that takes time shortened in proportion."""
    given = {"deadline": QUICK_DEADLINE, "retry": QUICK_RETRY, "policy": Policy(network_timeout=0.15), **sections}
    return settings_for(url, upstream={"connect_timeout": QUICK_CONNECT, **(upstream or {})}, **given)


@dataclass(frozen=True)
class Answered:
    """An answer, as the client saw it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        assert self.status == 200, self
        prompt: str = self.document["prompt"]
        return prompt

    @property
    def how(self) -> str:
        """Cache-Status."""
        return self.headers["Cache-Status"]

    @property
    def age(self) -> int:
        return int(self.headers["Age"])

    @property
    def is_problem(self) -> bool:
        return self.headers["Content-Type"] == "application/problem+json" and bool(self.document["detail"])


class Client:
    """LearnFlow's manner of calling: a new TCP connection for every attempt."""

    def __init__(self, session: aiohttp.ClientSession, base: str, ops: str) -> None:
        self.session = session
        self.base = base
        self.ops = ops

    async def ask(
        self,
        user: int = 1,
        node: str = "explain",
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        body = {"user_id": user, "node_name": node, "context": {"topic": "tides"} if context is None else context}
        return await self.send(json.dumps(body).encode(), headers)

    async def send(self, body: Any, headers: Mapping[str, str] | None = None, *, path: str = PATH) -> Answered:
        began = time.monotonic()
        async with self.session.post(self.base + path, data=body, headers={**JSON, **(headers or {})}) as response:
            content = await response.read()
            return Answered(response.status, response.headers.copy(), content, time.monotonic() - began)

    async def metrics(self) -> str:
        async with self.session.get(f"{self.ops}/metrics") as response:
            return await response.text()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.base.removeprefix("http://").split(":")
        return host, int(port)

    async def raw(self, *pieces: bytes, end: bool = False, head_only: bool = False) -> bytes:
        """Send bytes as they are, and return what comes: all until the connection is closed, or the answer's head.

        `end`: say that nothing more will be sent.
        """
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if end:
                writer.write_eof()
            return await (reader.readuntil(b"\r\n\r\n") if head_only else reader.read())
        except (ConnectionError, asyncio.IncompleteReadError):
            return b""
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def client_of(base: str, ops: str, *, timeout_seconds: float = 30.0) -> AsyncIterator[Client]:
    """Open a client."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, base, ops)


class Sidecar(Client):
    """A sidecar in this process, on real sockets, and a client of it."""

    def __init__(self, client: Client, core: Core) -> None:
        super().__init__(client.session, client.base, client.ops)
        self.core = core

    async def settle(self) -> None:
        """Let everything behind the requests end."""
        await self.core.background.drain(EVENTUALLY_SECONDS)


@asynccontextmanager
async def sidecar_with(
    settings: Settings, *, clock: Clock = time.monotonic, wall: Clock = time.time, rng: Rng | None = None
) -> AsyncIterator[Sidecar]:
    """Run a sidecar."""
    async with (
        running(settings, clock=clock, wall=wall, rng=rng) as sidecar,
        client_of(f"http://{sidecar.listen}", f"http://{sidecar.ops}") as client,
    ):
        yield Sidecar(client, sidecar.core)


class Chance:
    """Chance that always falls on the same place between its ends; 0.5: no jitter, no spread."""

    def __init__(self, place: float = 0.5) -> None:
        self.place = place

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.place


class ManualClock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Reference:
    """The reference config service in this process."""

    def __init__(self, state: State, url: str) -> None:
        self.state = state
        self.url = url

    def fails(self, mode: Mode, **how: Any) -> None:
        self.state.fault = Fault(mode=mode, **how)

    @property
    def calls(self) -> int:
        return self.state.calls["prompt-data"]


@asynccontextmanager
async def reference(**options: Any) -> AsyncIterator[Reference]:
    """Run the reference config service, by default with one node, `explain`, and two settings for each user."""
    given = {"templates": {"explain": "Explain {{ topic }} in {{ style }}, in {{ language }}."}, **options}
    app = create_app(ReferenceOptions(**given))
    async with TestServer(app) as server:
        yield Reference(app[STATE], str(server.make_url("")).rstrip("/"))


Play = Callable[["Exchange"], Awaitable[None]]


@dataclass(frozen=True)
class Exchange:
    """One request to a raw upstream, and the connection to answer on."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def asked(self) -> Any:
        return json.loads(self.body)

    @property
    def node(self) -> str:
        node: str = self.asked["node_name"]
        return node

    @property
    def user(self) -> int:
        user: int = self.asked["user_id"]
        return user

    async def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def answer(self, body: Any = b"", *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer whole: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.write(head_of(status, len(content), headers) + content)

    def reset(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()


def head_of(status: int, length: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the head of an answer."""
    lines = {"Content-Type": "application/json", "Content-Length": str(length), **(headers or {})}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode()


def prompt_data(
    template: str = "Explain {{ topic }} in {{ style }}.",
    settings: Mapping[str, str] | None = None,
    *,
    required: tuple[str, ...] = (),
    cache_ttl: float | None = 300,
    **others: Any,
) -> dict[str, Any]:
    """Return a document of the `prompt-data` generation."""
    return {
        "template": template,
        "user_placeholders": {"style": "plain words"} if settings is None else dict(settings),
        "required_dynamic_placeholders": list(required),
        "cache_ttl": cache_ttl,
        **others,
    }


class RawUpstream:
    """A config service that is nothing but a socket: `plays` is awaited for each request that came whole."""

    def __init__(self, plays: Play) -> None:
        self.plays = plays
        self.requests: list[bytes] = []
        self.url = ""
        self.server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.requests.append(head + body)
                await self.plays(Exchange(head, body, writer))
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the sidecar gave up, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    async def close(self) -> None:
        """Break all connections, and refuse new ones."""
        assert self.server is not None
        self.server.close()
        await self.server.wait_closed()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def raw_upstream(plays: Play, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
    """Run a raw upstream."""
    upstream = RawUpstream(plays)
    upstream.server = await asyncio.start_server(upstream.connected, "127.0.0.1", 0, backlog=1024, ssl=tls)
    upstream.url = f"http{'s' if tls else ''}://127.0.0.1:{upstream.server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        await upstream.close()


async def forever() -> None:
    """Never return."""
    await asyncio.Event().wait()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it holds; what is asked takes its own time, so nothing sleeps here."""
    async with asyncio.timeout(EVENTUALLY_SECONDS):
        while not await holds():
            pass


class Process(Client):
    """A sidecar that is a process of its own, all of whose standard error is kept."""

    def __init__(self, client: Client, process: asyncio.subprocess.Process, log: bytearray) -> None:
        super().__init__(client.session, client.base, client.ops)
        self.process = process
        self.pid = process.pid
        self.log = log


@asynccontextmanager
async def sidecar_process(url: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """Run `prompt-sidecar run` in a folder that is its home and its place for temporary files, too.

    `settings`: as in SIDECAR_<SECTION>__<KEY>, the prefix left out.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))}
    environment |= {"PYTHONPATH": str(PACKAGE_ROOT), "HOME": str(folder), "TMPDIR": str(folder)}
    environment |= {
        "PYTHONDONTWRITEBYTECODE": "1",
        "SIDECAR_UPSTREAM__API": "prompt-data",
        "SIDECAR_STORE__KIND": "none",
    }
    environment |= {f"SIDECAR_{key}": value for key, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "run", "--config", "/dev/null", "--upstream-url", url),
        *("--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    stderr, log, started = process.stderr, bytearray(), asyncio.Event()

    async def read() -> None:
        while line := await stderr.readline():
            log.extend(line)
            if b"started" in line:
                started.set()
        started.set()

    reading = asyncio.ensure_future(read())
    try:
        async with asyncio.timeout(START_SECONDS):
            await started.wait()
        base, ops = (f"http://{address_in(log, key)}" for key in ("listen", "ops"))
        async with client_of(base, ops) as client:
            yield Process(client, process, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), START_SECONDS)
            except TimeoutError:
                process.kill()
        await process.wait()
        await reading


def address_in(log: bytearray, key: str) -> str:
    """Find where a child listens in what it says when it has started, in either format of the log."""
    found = re.search(rf"\b{key}\W+(127\.0\.0\.1:\d+)", log.decode())
    assert found is not None, f"the sidecar did not start: {log.decode()}"
    return found[1]
