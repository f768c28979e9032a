"""The steps of the end: they share a bound, one that hangs is cut and told of, and a second signal hastens."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.drain import BACKGROUND, REQUESTS, STORE, Drain
from sidecar.settings import DrainSettings


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with capture_logs() as events:
        yield events


def cut(logged: list[Any]) -> list[str]:
    return [each["step"] for each in logged if each["event"] == "drain_cut"]


async def forever() -> None:
    await asyncio.Event().wait()


async def stubborn() -> None:
    """Hang whatever is done to it."""
    while True:
        try:
            await forever()
        except asyncio.CancelledError:
            if over:
                raise


over: list[bool] = []


@pytest.fixture(autouse=True)
def is_over_at_the_end() -> Iterator[None]:
    yield
    over.clear()


async def test_a_step_that_ends_in_time_is_not_told_of(logged: list[Any]) -> None:
    ended: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        ended.append("work")

    drain = Drain(DrainSettings(timeout=100))
    await drain.step("requests", work(), until=REQUESTS)
    assert (ended, cut(logged)) == (["work"], [])


async def test_each_step_that_hangs_is_cut_by_its_share_of_the_time_and_the_last_one_is_in_time(
    logged: list[Any],
) -> None:
    drain, loop = Drain(DrainSettings(timeout=0.4)), asyncio.get_running_loop()
    began = loop.time()
    for what, until in (("requests", REQUESTS), ("background", BACKGROUND), ("store", STORE)):
        await drain.step(what, forever(), until=until)
    assert 0.3 <= loop.time() - began < 20
    assert cut(logged) == ["requests", "background", "store"]


async def test_a_step_that_does_not_even_end_when_it_is_cut_is_left_behind(logged: list[Any]) -> None:
    drain, loop = Drain(DrainSettings(timeout=0.1)), asyncio.get_running_loop()
    began = loop.time()
    await drain.step("requests", stubborn(), until=REQUESTS)
    assert loop.time() - began < 20
    assert cut(logged) == ["requests"]
    over.append(True)


async def test_an_error_of_a_step_is_not_swallowed() -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await Drain(DrainSettings()).step("store", fail(), until=STORE)


async def test_haste_cuts_what_others_are_waited_for_and_not_the_store(logged: list[Any]) -> None:
    flushed: list[str] = []

    async def flush() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        flushed.append("store")

    drain = Drain(DrainSettings(delay=100, timeout=100))
    drain.hasten()
    async with asyncio.timeout(50):
        await drain.delay()
        await drain.step("requests", forever(), until=REQUESTS)
        await drain.step("store", flush(), until=STORE)
    assert (cut(logged), flushed) == (["requests"], ["store"])


async def test_the_delay_does_not_count_for_the_steps(logged: list[Any]) -> None:
    drain = Drain(DrainSettings(delay=0.2, timeout=0.1))
    await drain.delay()
    await drain.step("requests", asyncio.sleep(0.01), until=REQUESTS)
    assert cut(logged) == []
