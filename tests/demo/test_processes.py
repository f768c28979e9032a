"""The demo's children: each starts, or says in its own words why not, and none outlives its owner."""

import asyncio
import os
import signal
import socket

import psutil
import pytest

from sidecar.demo import processes
from sidecar.demo.processes import ChildError, child, start
from tests.wire import until

ANYWHERE = ("--listen", "127.0.0.1:0")


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_DEADLINE", "not for a child")


async def test_a_child_is_started_when_it_listens_and_is_gone_after_its_block() -> None:
    async with child("upstream", *ANYWHERE) as started:
        assert started.first_line.startswith("reference config service on http://127.0.0.1:")
        assert [each.pid for each in children()] == [started.pid]
    assert children() == []


async def test_a_child_has_the_settings_it_was_given_and_no_others() -> None:
    elsewhere = {"SIDECAR_OPS__LISTEN": "127.0.0.1:0", "SIDECAR_UPSTREAM__URL": "http://given:1"}
    async with child("run", "--config", "/dev/null", *ANYWHERE, settings=elsewhere) as started:
        assert '"upstream": "http://given:1"' in started.first_line


async def test_a_child_that_refuses_its_settings_is_an_error_in_its_own_words() -> None:
    with pytest.raises(ChildError) as refused:
        await start("run", "--deadline", "soon", "--upstream-url", "ftp://x")
    said = str(refused.value)
    assert said.startswith("prompt-sidecar run did not start (exit code 2): ")
    assert "deadline: 'soon' is not allowed" in said
    assert "upstream.url: 'ftp://x' is not allowed" in said  # all of its words, and not taken for "it listens on http"
    assert children() == []


async def test_a_child_whose_address_is_taken_is_an_error_in_its_own_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ChildError, match=rf"\(exit code 1\): The reference .* cannot listen on {address}"):
            await start("upstream", "--listen", address)


async def test_a_child_that_never_listens_is_an_error_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_SECONDS", 0.01)
    with pytest.raises(ChildError, match=r"upstream did not start .*it did not listen within 0\.01 s"):
        await start("upstream", *ANYWHERE)
    assert children() == []


async def test_a_start_that_is_cancelled_leaves_no_child() -> None:
    starting = asyncio.create_task(start("upstream", *ANYWHERE))
    await until(lambda: bool(children()))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == []


async def test_a_start_that_is_cancelled_at_once_leaves_no_child() -> None:
    starting = asyncio.create_task(start("upstream", *ANYWHERE))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == []


async def test_stopping_returns_the_exit_code_as_often_as_asked() -> None:
    started = await start("upstream", *ANYWHERE)
    assert [await started.stop(), await started.stop()] == [0, 0]


async def test_killing_is_what_a_crash_does() -> None:
    started = await start("upstream", *ANYWHERE)
    await started.kill()
    assert await started.stop() == -signal.SIGKILL


async def test_a_child_that_does_not_listen_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.05)
    started = await start("upstream", *ANYWHERE)
    os.kill(started.pid, signal.SIGSTOP)
    assert await started.stop() == -signal.SIGKILL
    assert children() == []
