"""A storm of failures, and a reader of the log that stops: the log stays readable, and serving goes on."""

import asyncio
import fcntl
import json
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.processes import PACKAGE_ROOT, START_SECONDS
from tests.harness import EVENTUALLY_SECONDS, PATH, Client, client_of, eventually, reference, sidecar_process
from tests.scenarios.test_scrapes import ask_for

FAILURES = 10_000
MOST_LINES = 20


def read(log: bytes | bytearray) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def read_all(file: int) -> bytes:
    with os.fdopen(file, "rb") as stream:
        return stream.read()


def happened(lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """Count what the lines stand for."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts[line["event"]] += line.get("repeated", 1)
    return counts


def request(connection: str = "keep-alive") -> bytes:
    body = b'{"user_id": 1, "node_name": "explain", "context": {}}'
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def test_ten_thousand_failures_are_a_handful_of_lines_that_account_for_each(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    async with sidecar_process(dead, tmp_path) as sidecar:
        answers = await asyncio.gather(
            *(sidecar.raw(request() * (FAILURES // 8 - 1), request("close")) for _ in range(8))
        )
        assert sum(answer.count(b"HTTP/1.1 503 ") for answer in answers) == FAILURES
        errors = re.search(r'requests_total\{node="other",outcome="error"\} (\S+)', await sidecar.metrics())
        assert errors is not None
        assert float(errors[1]) == FAILURES
    lines = read(sidecar.log)
    assert len(lines) < MOST_LINES
    assert happened(lines)["prompt_refused"] == FAILURES
    assert {line["event"] for line in lines} >= {"fetch_failed", "circuit_changed"}
    assert lines[-1]["event"] == "stopped"
    assert all(line["first_at"] <= line["last_at"] <= line["timestamp"] for line in lines if "repeated" in line)


async def test_sums_come_while_the_storm_lasts(tmp_path: Path) -> None:
    async with (
        reference() as upstream,
        sidecar_process(upstream.url, tmp_path, LOG__REPEAT_WINDOW="50ms", LOG__MAX_REPEAT_WINDOW="1s") as sidecar,
    ):

        async def is_summed_up() -> bool:
            await ask_for(sidecar, [(1, "unknown")] * 10)
            return b'"repeated"' in sidecar.log

        await eventually(is_summed_up)


@asynccontextmanager
async def telling(url: str, folder: Path, stderr: int | None, *, level: str = "debug") -> AsyncIterator[Client]:
    """Run a sidecar that tells much to this file, which nobody reads; None: standard error is closed."""
    ports = []
    for _ in range(2):
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            ports.append(free.getsockname()[1])
    listen, ops = (f"127.0.0.1:{port}" for port in ports)
    command = [
        *(sys.executable, "-m", "sidecar", "run", "--config", "/dev/null", "--upstream-url", url),
        *("--listen", listen, "--ops-listen", ops, "--log-level", level),
    ]
    if stderr is None:
        command = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    fixed = {"SIDECAR_UPSTREAM__API": "prompt-data", "SIDECAR_STORE__KIND": "file", "SIDECAR_LOG__MAX_LINES": "100"}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **fixed, "PYTHONPATH": str(PACKAGE_ROOT), "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=stderr,
    )
    if stderr is not None:
        os.close(stderr)
    try:
        async with client_of(f"http://{listen}", f"http://{ops}") as client:

            async def is_ready() -> bool:
                with suppress(OSError):
                    async with client.session.get(f"{client.ops}/readyz") as answer:
                        return answer.status == 200
                assert process.returncode is None
                return False

            async with asyncio.timeout(START_SECONDS):
                await eventually(is_ready)
            yield client
        process.terminate()
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            assert await process.wait() == 0  # the drain, too, waits for no reader
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def dropped(client: Client, reason: str) -> float:
    found = re.search(rf'log_lines_dropped_total{{reason="{reason}"}} (\S+)', await client.metrics())
    assert found is not None
    return float(found[1])


async def test_a_full_pipe_that_nobody_reads_holds_up_no_prompt_and_no_stop(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    try:
        async with reference() as upstream, telling(upstream.url, tmp_path, writes) as client:
            async with asyncio.timeout(EVENTUALLY_SECONDS):
                await ask_for(client, [(1, "explain")] * 500)
            assert (await client.ask()).prompt
            assert await dropped(client, "blocked") > 300
    finally:
        os.close(reads)


async def test_a_reader_that_comes_back_hears_how_many_lines_it_missed(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    log: asyncio.Future[bytes]
    async with reference() as upstream, telling(upstream.url, tmp_path, writes) as client:
        await ask_for(client, [(1, "explain")] * 500)
        lost = await dropped(client, "blocked")
        assert lost > 300
        log = asyncio.ensure_future(asyncio.to_thread(read_all, reads))
    lines = read(await log)
    assert sum(line["blocked"] for line in lines if line["event"] == "log_lines_dropped") >= lost
    assert lines[-1]["event"] == "stopped"


def closed_pipe() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("broken", [None, closed_pipe, full_disk], ids=["closed", "a closed pipe", "a full disk"])
async def test_a_standard_error_that_cannot_be_written_ends_nothing(
    tmp_path: Path, broken: Callable[[], int] | None
) -> None:
    stderr = None if broken is None else broken()
    async with reference() as upstream, telling(upstream.url, tmp_path, stderr) as client:
        assert (await client.ask()).prompt
        assert await dropped(client, "failed") > 0
