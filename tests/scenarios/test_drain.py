"""SIGTERM while something hangs: the process ends within drain.timeout; what it had to cut is told of."""

import asyncio
import fcntl
import itertools
import json
import os
import signal
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.demo.reference.faults import Mode
from tests.harness import Client, address_in, client_of, reference, sidecar_process
from tests.redis_servers import server
from tests.wire import until

QUICK = {
    "DEADLINE": "500ms",
    "RETRY__PER_TRY_TIMEOUT": "300ms",
    "POLICY__DEFAULT__NETWORK_TIMEOUT": "300ms",
    "DRAIN__TIMEOUT": "2s",
    "DRAIN__IDLE_GRACE": "100ms",
}
TIMEOUT = 2.0
"""Seconds; DRAIN__TIMEOUT."""
SLACK = 8.0
"""Seconds that a busy machine may add."""
SMALL_PIPE = 4096
LONGEST_LINE = 400
"""Bytes; more than any of the log's."""


def events(log: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]


async def ends(process: asyncio.subprocess.Process, *, within: float = TIMEOUT + SLACK) -> int:
    """Wait for the end of a process, and return its exit code."""
    async with asyncio.timeout(within):
        return await process.wait()


async def test_a_call_that_would_hang_for_long_is_cut_and_told_of(tmp_path: Path) -> None:
    async with (
        reference() as upstream,
        sidecar_process(upstream.url, tmp_path, **QUICK) as sidecar,
    ):
        upstream.fails(Mode.HANG)
        passed_on = asyncio.ensure_future(sidecar.raw(b"GET /api/v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        await until(lambda: upstream.state.in_flight == 1)
        began = time.monotonic()
        sidecar.process.send_signal(signal.SIGTERM)
        assert await ends(sidecar.process) == 0
        assert time.monotonic() - began >= TIMEOUT / 2  # it was given its time
        assert await passed_on == b""
        log = bytes(sidecar.log)
    assert [each.get("step") for each in events(log) if each["event"] == "drain_cut"] == ["requests"]


async def test_a_second_signal_hastens_the_end_and_the_store_is_flushed_all_the_same(tmp_path: Path) -> None:
    store = {"STORE__KIND": "file", "STORE__PATH": str(tmp_path / "cache.db")}
    async with reference() as upstream:
        async with sidecar_process(upstream.url, tmp_path, **store, DRAIN__DELAY="5m", DRAIN__TIMEOUT="5m") as sidecar:
            assert (await sidecar.ask(7)).status == 200
            sidecar.process.send_signal(signal.SIGTERM)

            async def is_unready() -> bool:
                async with sidecar.session.get(f"{sidecar.ops}/readyz") as response:
                    return response.status == 503

            await until(is_unready)
            assert (await sidecar.ask(8)).status == 200  # during drain.delay
            sidecar.process.send_signal(signal.SIGINT)
            assert await ends(sidecar.process) == 0
        upstream.fails(Mode.UNAVAILABLE)
        async with sidecar_process(upstream.url, tmp_path, **store) as sidecar:
            for user in (7, 8):
                assert (await sidecar.ask(user)).status == 200


async def test_a_redis_that_hangs_does_not_hold_the_end_up(tmp_path: Path) -> None:
    async with reference() as upstream, server() as redis:
        store = {"STORE__KIND": "redis", "STORE__REDIS__URL": redis.url}
        async with sidecar_process(upstream.url, tmp_path, **QUICK, **store) as sidecar:
            assert (await sidecar.ask(1)).status == 200
            redis.send(signal.SIGSTOP)
            assert (await sidecar.ask(2)).status == 200
            sidecar.process.send_signal(signal.SIGTERM)
            assert await ends(sidecar.process) == 0


@asynccontextmanager
async def unread(
    url: str, folder: Path, *, settings_are_piped: bool = False
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client, int]]:
    """Run a sidecar whose log nobody reads after its start; yield it, a client, and the pipe that nobody reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))}
    settings = {**QUICK, "STORE__KIND": "none", "UPSTREAM__API": "prompt-data", "UPSTREAM__URL": url}
    settings |= {"LISTEN": "127.0.0.1:0", "OPS__LISTEN": "127.0.0.1:0", "LOG__LEVEL": "debug"}
    if settings_are_piped:
        os.mkfifo(folder / "sidecar.yaml")
    else:
        (folder / "sidecar.yaml").write_text("")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "run", "--config", str(folder / "sidecar.yaml")),
        cwd=folder,
        env=environ
        | {"PYTHONPATH": str(PACKAGE_ROOT)}
        | {f"SIDECAR_{name}": value for name, value in settings.items()},
        stderr=writing,
    )
    os.close(writing)
    try:
        if settings_are_piped:
            os.close(await reader_of(folder / "sidecar.yaml"))  # which says nothing, and ends
        log = bytearray()
        while b'"started"' not in log:
            log += await asyncio.to_thread(os.read, reading, SMALL_PIPE)
        async with client_of(*(f"http://{address_in(log, key)}" for key in ("listen", "ops"))) as client:
            yield process, client, reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(reading)


async def reader_of(pipe: Path) -> int:
    """Wait until somebody reads a named pipe; return the end that he waits for."""
    writing: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # nobody reads yet
            writing.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writing)

    await until(is_read)
    return writing[0]


def waiting_in(pipe: int) -> int:
    """Return how many bytes nobody has read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_log_that_nobody_reads_holds_up_neither_an_answer_nor_the_end(tmp_path: Path) -> None:
    async with reference() as upstream, unread(upstream.url, tmp_path) as (process, client, log):
        users = itertools.count(1)
        while waiting_in(log) <= SMALL_PIPE - LONGEST_LINE:
            await client.ask(next(users))
        for _ in range(20):
            assert (await client.ask(next(users))).status == 200
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == 0


async def test_a_disk_that_hangs_does_not_hold_the_end_up(tmp_path: Path) -> None:
    async with (
        reference() as upstream,
        unread(upstream.url, tmp_path, settings_are_piped=True) as (process, client, _),
    ):
        process.send_signal(signal.SIGHUP)
        writing = await reader_of(tmp_path / "sidecar.yaml")  # whose read hangs, as one of a dead disk does
        assert (await client.ask()).status == 200
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == -signal.SIGALRM
        os.close(writing)
