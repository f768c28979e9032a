"""One fetch per key, shared by all who wait, owned by none of them; in faked time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sidecar.core.events import Crashed, Event
from sidecar.service.background import Background
from sidecar.service.single_flight import SingleFlight, wait
from tests.fakes import loop_time

pytestmark = pytest.mark.looptime


class Hangar:
    """Flights, what they bring, and what was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.background = Background(self.events.append)
        self.flights: SingleFlight[str, str] = SingleFlight(self.background, loop_time)
        self.begun: list[str] = []

    def fetch(
        self, brings: str = "result", *, after: float = 1.0, error: Exception | None = None
    ) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            self.begun.append(brings)
            await asyncio.sleep(after)
            if error is not None:
                raise error
            return brings

        return run


@pytest.fixture
def hangar() -> Hangar:
    return Hangar()


async def test_the_first_begins_the_flight_and_all_others_join_it(hangar: Hangar) -> None:
    joined = [hangar.flights.join("a", hangar.fetch()) for _ in range(50)]
    assert [each.collapsed for each in joined] == [False] + [True] * 49
    assert len({each.task for each in joined}) == 1
    assert await asyncio.gather(*(wait(each.task, 5) for each in joined)) == ["result"] * 50
    assert hangar.begun == ["result"]


async def test_flights_of_other_keys_are_others(hangar: Hangar) -> None:
    one = hangar.flights.join("a", hangar.fetch("of a"))
    other = hangar.flights.join("b", hangar.fetch("of b"))
    assert (one.collapsed, other.collapsed, len(hangar.flights)) == (False, False, 2)
    assert [await wait(one.task, 5), await wait(other.task, 5)] == ["of a", "of b"]


@pytest.mark.parametrize("error", [None, ValueError("broken")])
async def test_a_landed_flight_frees_its_key(hangar: Hangar, error: Exception | None) -> None:
    first = hangar.flights.join("a", hangar.fetch(error=error))
    await asyncio.wait([first.task])
    await asyncio.sleep(0)
    assert len(hangar.flights) == 0
    again = hangar.flights.join("a", hangar.fetch("anew"))
    assert not again.collapsed
    assert await wait(again.task, 5) == "anew"


async def test_a_cancelled_flight_frees_its_key(hangar: Hangar) -> None:
    first = hangar.flights.join("a", hangar.fetch())
    first.task.cancel()
    await asyncio.wait([first.task])
    await asyncio.sleep(0)
    assert not hangar.flights.join("a", hangar.fetch()).collapsed
    await hangar.background.drain(5)


async def test_an_error_is_shared_as_a_result_is(hangar: Hangar) -> None:
    joined = [hangar.flights.join("a", hangar.fetch(error=ValueError("broken"))) for _ in range(3)]
    results = await asyncio.gather(*(wait(each.task, 5) for each in joined), return_exceptions=True)
    assert [str(result) for result in results] == ["broken"] * 3
    assert len([event for event in hangar.events if isinstance(event, Crashed)]) == 1


# Who waits


async def test_who_waits_in_vain_leaves_in_time_and_the_flight_goes_on(hangar: Hangar) -> None:
    flight = hangar.flights.join("a", hangar.fetch(after=3))
    with pytest.raises(TimeoutError):
        await wait(flight.task, 2)
    assert (loop_time(), flight.task.done(), len(hangar.flights)) == (2, False, 1)
    later = hangar.flights.join("a", hangar.fetch())
    assert later.collapsed
    assert (await wait(later.task, 5), loop_time()) == ("result", 3)


async def test_the_last_waiters_leaving_does_not_cancel_the_flight(hangar: Hangar) -> None:
    flight = hangar.flights.join("a", hangar.fetch())
    waiters = [asyncio.ensure_future(wait(flight.task, 5)) for _ in range(3)]
    await asyncio.sleep(0.5)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    assert all(waiter.cancelled() for waiter in waiters)
    assert await flight.task == "result"


async def test_one_waiters_leaving_does_not_disturb_the_others(hangar: Hangar) -> None:
    flight = hangar.flights.join("a", hangar.fetch())
    leaving, staying = (asyncio.ensure_future(wait(flight.task, 5)) for _ in range(2))
    await asyncio.sleep(0.5)
    leaving.cancel()
    assert await staying == "result"


async def test_a_flight_that_fails_after_everybody_left_is_told(hangar: Hangar) -> None:
    flight = hangar.flights.join("a", hangar.fetch(error=ValueError("broken")))
    with pytest.raises(TimeoutError):
        await wait(flight.task, 0.5)
    await hangar.background.drain(5)
    assert [event.what for event in hangar.events if isinstance(event, Crashed)] == [flight.task.get_name()]


@pytest.mark.parametrize("timeout_seconds", [0.0, -1.0])
async def test_without_time_what_has_landed_is_taken_and_nothing_is_waited_for(
    hangar: Hangar, timeout_seconds: float
) -> None:
    landed = hangar.flights.join("a", hangar.fetch(after=0))
    await asyncio.sleep(1)
    assert await wait(landed.task, timeout_seconds) == "result"
    flying = hangar.flights.join("a", hangar.fetch(after=5))
    with pytest.raises(TimeoutError):
        await wait(flying.task, timeout_seconds)
    assert loop_time() == 1
    await hangar.background.drain(5)


# Who must not be answered by what was asked before


async def test_a_flight_that_began_too_early_is_left_to_its_own_waiters(hangar: Hangar) -> None:
    early = hangar.flights.join("a", hangar.fetch("before"))
    await asyncio.sleep(0.5)
    mine = hangar.flights.join("a", hangar.fetch("after"), began_after=0.5)
    assert not mine.collapsed
    assert [await wait(each.task, 5) for each in (early, mine)] == ["before", "after"]


async def test_a_flight_that_began_in_time_is_joined(hangar: Hangar) -> None:
    await asyncio.sleep(0.5)
    flight = hangar.flights.join("a", hangar.fetch())
    assert hangar.flights.join("a", hangar.fetch(), began_after=0.5).task is flight.task
    await hangar.background.drain(5)


async def test_the_later_flight_takes_the_key_and_the_earlier_ones_landing_does_not_free_it(hangar: Hangar) -> None:
    hangar.flights.join("a", hangar.fetch("before", after=1))
    await asyncio.sleep(0.5)
    mine = hangar.flights.join("a", hangar.fetch("after", after=2), began_after=0.5)
    await asyncio.sleep(1)
    assert hangar.flights.join("a", hangar.fetch("third")).task is mine.task
    assert await wait(mine.task, 5) == "after"
    await asyncio.sleep(0)
    assert len(hangar.flights) == 0
