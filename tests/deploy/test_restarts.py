"""Restarts behind a socket that outlives the process, as systemd's socket activation has it: nothing is lost."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.harness import JSON, PATH, reference
from tests.wire import until

ROOT = Path(__file__).parents[2]
SECONDS = 100.0  # until a test that waits for a process fails
RESTARTS = 20
CLIENTS = 8
QUESTION = b'{"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}'

SERVICE_MANAGER = """
import json, os, sys
import sidecar.app, sidecar.cli, uvloop

listening = int(sys.argv[1])
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os.dup2(listening, 3)
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "learnflow"}
        sidecar.cli.main(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""What systemd does, but for an exec: what is imported once need not be imported by each."""


class ServiceManager:
    """Starts sidecars that inherit a socket, one after the other."""

    def __init__(self, process: asyncio.subprocess.Process, upstream: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._command = ["run", "--config", "/dev/null", "--upstream-url", upstream, "--ops-listen", "127.0.0.1:0"]

    @asynccontextmanager
    async def sidecar(self) -> AsyncIterator[None]:
        """Run a sidecar; it is stopped by SIGTERM at the end, which it must obey with 0."""
        self._stdin.write(json.dumps(self._command).encode() + b"\n")
        pid = int(await self._stdout.readline())
        try:
            while b'"started"' not in (line := await self._stderr.readline()):
                assert line, "it did not start"
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            said = b""
            while b'"stopped"' not in said:
                line = await self._stderr.readline()
                assert line, said.decode()
                said += line
            assert int(await self._stdout.readline()) == 0
        assert b"drain_cut" not in said, said.decode()


@asynccontextmanager
async def manager_of(listening: socket.socket, folder: Path) -> AsyncIterator[ServiceManager]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))}
    environ |= {"PYTHONPATH": str(ROOT), "SIDECAR_STORE__KIND": "none", "SIDECAR_UPSTREAM__API": "prompt-data"}
    environ |= {"SIDECAR_DRAIN__IDLE_GRACE": "5s"}  # clients that share a busy machine may be slow to ask
    async with reference() as upstream:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVICE_MANAGER, str(listening.fileno())),
            cwd=folder,
            env=environ,
            pass_fds=[listening.fileno()],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield ServiceManager(process, upstream.url)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()


@dataclass
class Load:
    """Clients that ask all the time, and what came of it."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)

    def told(self, status: int, body: bytes) -> None:
        """Take an answer; only the right one is one."""
        if status == 200 and json.loads(body)["prompt"].startswith("Explain tides in "):
            self.answered += 1
        else:
            self.failed.append(f"{status} {body!r}")

    async def more(self, answers: int) -> None:
        """Wait until so many more requests are answered."""
        enough = self.answered + answers
        await until(lambda: self.answered >= enough)


Client = Callable[[Load, int], Awaitable[None]]


async def a_connection_each(load: Load, port: int) -> None:
    """Ask in LearnFlow's manner: a new connection for each request."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        while True:
            try:
                async with session.post(f"http://127.0.0.1:{port}{PATH}", data=QUESTION, headers=JSON) as response:
                    load.told(response.status, await response.read())
            except aiohttp.ClientError as error:
                load.failed.append(repr(error))


async def kept_connections(load: Load, port: int) -> None:
    """Keep a connection as long as the sidecar does, and say on it, and in two pieces, what is to be said."""
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(QUESTION)}\r\n"
    )
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                keeps = True
                while keeps:
                    writer.write(f"{request}\r\n".encode())
                    await asyncio.sleep(0)
                    writer.write(QUESTION)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                    load.told(int(head.split()[1]), await reader.readexactly(length))
                    keeps = "connection: close" not in head
                assert await reader.read() == b""  # the end, and no reset
            finally:
                writer.close()
        except (OSError, EOFError, AssertionError) as error:
            load.failed.append(repr(error))


@asynccontextmanager
async def steady_load(client: Client, port: int) -> AsyncIterator[Load]:
    load = Load()
    clients = [asyncio.ensure_future(client(load, port)) for _ in range(CLIENTS)]
    try:
        yield load
    finally:
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


@pytest.mark.parametrize("client", [a_connection_each, kept_connections])
async def test_no_request_is_lost_in_twenty_restarts_behind_an_inherited_socket(client: Client, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        async with (
            asyncio.timeout(SECONDS),
            manager_of(listening, tmp_path) as manager,
            steady_load(client, port) as load,
        ):
            for _ in range(RESTARTS):
                async with manager.sidecar():
                    await load.more(50)
            async with manager.sidecar():
                await load.more(50)
                assert load.failed == []
