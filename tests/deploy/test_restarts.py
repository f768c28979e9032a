"""Restarts behind a listening socket that outlives the process, as systemd's socket activation has it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.harness import JSON, PATH, reference
from tests.wire import until

ROOT = Path(__file__).parents[2]
SECONDS = 30.0  # until a test that waits for a process fails
RESTARTS = 3
CLIENTS = 4
QUESTION = b'{"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}'

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "learnflow"}
os.execv(sys.executable, [sys.executable, "-m", "sidecar", *sys.argv[2:]])
"""
"""What systemd does between fork and exec."""


@asynccontextmanager
async def sidecar_behind(listening: socket.socket, upstream: str, folder: Path) -> AsyncIterator[int]:
    """Run a sidecar that inherits the socket; it is stopped by SIGTERM at the end, which it must obey with 0."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HAND_OVER, str(listening.fileno())),
        *("run", "--config", "/dev/null", "--upstream-url", upstream, "--ops-listen", "127.0.0.1:0"),
        cwd=folder,
        env=environ | {"PYTHONPATH": str(ROOT), "SIDECAR_STORE__KIND": "none", "SIDECAR_UPSTREAM__API": "prompt-data"},
        pass_fds=[listening.fileno()],
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        while b'"started"' not in (line := await process.stderr.readline()):
            assert line, "it did not start"
        yield process.pid
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()


@dataclass
class Load:
    """LearnFlow's manner of calling, all the time: a new connection for each request."""

    url: str
    answered: int = 0
    refused: list[str] = field(default_factory=list)

    async def client(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.post(self.url + PATH, data=QUESTION, headers=JSON) as response:
                    await response.read()
                    self.answered += response.status == 200
            except aiohttp.ClientConnectorError as error:
                self.refused.append(repr(error))
            except aiohttp.ClientError:
                continue  # accepted, and then closed: what a drain makes of those is its own matter

    async def more(self, answers: int) -> None:
        """Wait until so many more requests are answered."""
        enough = self.answered + answers
        await until(lambda: self.answered >= enough)


@asynccontextmanager
async def steady_load(url: str) -> AsyncIterator[Load]:
    load = Load(url)
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        clients = [asyncio.create_task(load.client(session)) for _ in range(CLIENTS)]
        try:
            yield load
        finally:
            for each in clients:
                each.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def test_no_connection_is_refused_while_a_sidecar_restarts_behind_its_socket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with asyncio.timeout(SECONDS), reference() as upstream, steady_load(url) as load:
            for _ in range(RESTARTS):
                async with sidecar_behind(listening, upstream.url, tmp_path):
                    await load.more(20)
            async with sidecar_behind(listening, upstream.url, tmp_path):
                await load.more(20)
    assert load.refused == []
