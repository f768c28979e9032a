"""Background tasks: owned, named, awaited at the end; in faked time."""

import asyncio
import gc

import pytest

from sidecar.core.events import Crashed, Event
from sidecar.service.background import Background
from tests.fakes import loop_time

pytestmark = pytest.mark.looptime


class Tasks(Background):
    """A background, and what it told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append)


async def fail() -> None:
    raise ZeroDivisionError("a secret")


async def test_a_task_has_its_name_and_its_result() -> None:
    background = Tasks()
    task = background.spawn(asyncio.sleep(1, result=7), name="fetch:0")
    assert task.get_name() == "fetch:0"
    assert await task == 7


async def test_a_task_is_held_until_it_ends() -> None:
    background = Tasks()
    background.spawn(asyncio.sleep(1), name="one")
    background.spawn(asyncio.sleep(2), name="two")
    gc.collect()
    assert len(background) == 2
    await asyncio.sleep(1.5)
    assert len(background) == 1
    await asyncio.sleep(1)
    assert len(background) == 0


async def test_a_crash_is_told_by_the_tasks_name_and_ends_nothing_else() -> None:
    background = Tasks()
    other = background.spawn(asyncio.sleep(1, result=7), name="other")
    task = background.spawn(fail(), name="fetch:0")
    assert await other == 7
    assert isinstance(task.exception(), ZeroDivisionError)
    assert background.events == [Crashed("fetch:0", task.exception())]  # type: ignore[arg-type] # it has one
    assert len(background) == 0


async def test_a_crash_that_nobody_awaits_is_told_once_and_by_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    background = Tasks()
    background.spawn(fail(), name="fetch:0")
    await asyncio.sleep(0.1)
    gc.collect()  # an exception that was never retrieved would be told by asyncio now
    assert len(background.events) == 1
    assert caplog.records == []


async def test_a_cancelled_task_is_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    background = Tasks()
    background.spawn(asyncio.sleep(1), name="one").cancel()
    await background.drain(1)
    assert (background.events, len(background), caplog.records) == ([], 0, [])


async def test_draining_nothing_takes_no_time() -> None:
    await Tasks().drain(60)
    assert loop_time() == 0


async def test_draining_waits_for_what_ends_in_time() -> None:
    background = Tasks()
    task = background.spawn(asyncio.sleep(3, result=7), name="one")
    await background.drain(60)
    assert (task.result(), loop_time()) == (7, 3)


async def test_draining_cancels_what_does_not_end_in_time_and_waits_for_its_tidying_up() -> None:
    tidied_at = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)
            tidied_at.append(loop_time())

    background = Tasks()
    quick = background.spawn(asyncio.sleep(1, result=7), name="quick")
    slow = background.spawn(stubborn(), name="slow")
    await background.drain(2)
    assert (quick.result(), slow.cancelled()) == (7, True)
    assert (tidied_at, len(background), background.events) == ([2.5], 0, [])


async def test_a_crash_during_draining_is_told() -> None:
    async def fails_on_its_way_out() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await fail()

    background = Tasks()
    background.spawn(fails_on_its_way_out(), name="one")
    await background.drain(1)
    assert [event.what for event in background.events if isinstance(event, Crashed)] == ["one"]


async def test_draining_may_be_repeated() -> None:
    background = Tasks()
    background.spawn(asyncio.sleep(1), name="one")
    await background.drain(60)
    background.spawn(asyncio.sleep(1), name="two")
    await background.drain(60)
    assert (len(background), loop_time()) == (0, 2)
