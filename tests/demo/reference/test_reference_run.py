"""The service as a process of its own."""

import asyncio
import signal
import socket
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import ReferenceOptions

ROOT = Path(__file__).parents[3]
SCRIPT = """
import asyncio
from sidecar.demo.reference.run import serve
from sidecar.demo.reference.state import ReferenceOptions
asyncio.run(serve(ReferenceOptions(), "127.0.0.1", 0))
"""


async def start() -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", SCRIPT, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    assert line.startswith("reference config service on http://127.0.0.1:")
    assert line.endswith(" (a fixture for demo and tests, never for production)\n")
    return process, line.split()[4]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_within_a_second_while_requests_hang(stop: signal.Signals) -> None:
    process, url = await start()
    try:
        async with aiohttp.ClientSession(url) as session:
            await session.put("/_reference/fault", json={"mode": "hang"})
            asking = asyncio.create_task(session.get("/health"))
            while (await (await session.get("/_reference")).json())["in_flight"] < 1:
                pass
            began = time.perf_counter()
            process.send_signal(stop)
            assert await process.wait() == 0
            assert time.perf_counter() - began < 10
            with pytest.raises(aiohttp.ClientConnectionError):
                await asking
    finally:
        if process.returncode is None:
            process.kill()
    assert process.stderr is not None
    assert await process.stderr.read() == b""


async def test_a_taken_port_is_an_error_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use\."):
            await serve(ReferenceOptions(), "127.0.0.1", port)
