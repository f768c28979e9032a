"""What systemd is told, heard on a real datagram socket."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import looptime
import pytest

from sidecar.sd_notify import Notifier
from tests.harness import sidecar_process

UNITS = 1_000_000
SECONDS = 10.0


class Manager:
    """The service manager's end."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        bound.settimeout(SECONDS)

    def heard(self) -> list[str]:
        """Return the lines of the next datagram."""
        return self._socket.recv(4096).decode().splitlines()

    def silent(self) -> bool:
        """Whether nothing was said."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def at(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(at: str) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(at)
        yield Manager(bound)


# What is said


def test_ready_comes_with_a_status_and_stopping_too(at: str, manager: Manager) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": at})
    notifier.ready("Answering on 127.0.0.1:8002.")
    assert manager.heard() == ["READY=1", "STATUS=Answering on 127.0.0.1:8002."]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1", "STATUS=Draining."]


def test_an_abstract_socket_is_reached_too() -> None:
    name = f"prompt-sidecar-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0{name}")
        Notifier.of({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert Manager(bound).heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_reload_is_announced_with_the_monotonic_time_and_ends_with_ready(
    at: str, manager: Manager, *, fails: bool
) -> None:
    heard: list[list[str]] = []

    async def reload() -> None:
        heard.append(manager.heard())
        if fails:
            raise RuntimeError("ours")

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told = Notifier.of({"NOTIFY_SOCKET": at}).reloading(reload)
    if fails:
        with pytest.raises(RuntimeError, match="ours"):
            await told()
    else:
        await told()
    (begun, stamp) = heard[0]
    assert begun == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.heard() == ["READY=1"]


@pytest.mark.looptime
@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_PID": str(os.getpid())}])
async def test_the_watchdog_is_fed_at_half_its_time(at: str, manager: Manager, environ: dict[str, str]) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, looptime.LoopTimeEventLoop)
    notifier = Notifier.of({"NOTIFY_SOCKET": at, "WATCHDOG_USEC": str(30 * UNITS), **environ})
    assert notifier.watchdog_seconds == 30
    began = loop.time()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(notifier.feed(), 50)
    assert loop.time() - began == pytest.approx(50)
    assert [manager.heard() for _ in range(4)] == 4 * [["WATCHDOG=1"]]  # at 0, 15, 30 and 45 s
    assert manager.silent()


# What is not


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_watchdog_of_ours_none_is_fed(at: str, manager: Manager, environ: dict[str, str]) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": at, **environ})
    assert notifier.watchdog_seconds is None
    await notifier.feed()
    assert manager.silent()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
async def test_without_a_manager_nothing_is_said(environ: dict[str, str]) -> None:
    notifier = Notifier.of(environ | {"WATCHDOG_USEC": "1000"})
    notifier.ready("here")
    await notifier.feed()


def test_a_manager_that_went_or_does_not_read_is_no_trouble(tmp_path: Path) -> None:
    Notifier.of({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier.of({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        for _ in range(10_000):  # far more than a socket's buffer holds; one that waited would never come back
            notifier.alive()


# The process


class Ear(asyncio.DatagramProtocol):
    """What hears the datagrams of a process, and its end as one more."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[list[str]] = asyncio.Queue()

    def datagram_received(self, data: bytes, _address: object) -> None:
        self.heard.put_nowait(data.decode().splitlines())

    async def until(self, first: str) -> list[str]:
        """Return the lines of the next datagram that begins so."""
        while True:
            lines = await self.heard.get()
            if lines[0] == first:
                return lines


async def test_a_sidecar_says_that_it_is_ready_alive_reloading_and_stopping(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    transport, ear = await loop.create_datagram_endpoint(Ear, local_addr=at, family=socket.AF_UNIX)
    monkeypatch.setenv("NOTIFY_SOCKET", at)
    monkeypatch.setenv("WATCHDOG_USEC", str(UNITS // 10))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    async with asyncio.timeout(3 * SECONDS), sidecar_process("http://127.0.0.1:9", tmp_path) as sidecar:
        assert (await ear.until("READY=1"))[1] == f"STATUS=Answering on {sidecar.base.removeprefix('http://')}."
        for _ in range(3):
            await ear.until("WATCHDOG=1")
        os.kill(sidecar.pid, signal.SIGHUP)
        await ear.until("RELOADING=1")
        await ear.until("READY=1")
        os.kill(sidecar.pid, signal.SIGTERM)
        await ear.until("STOPPING=1")
        assert await sidecar.process.wait() == 0
    transport.close()
