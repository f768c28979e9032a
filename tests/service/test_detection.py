"""Selection: which generation is in use, found out and looked at again; in faked time."""

import asyncio

import pytest

from sidecar.core.events import Crashed, Event, GenerationChanged
from sidecar.service.background import Background
from sidecar.service.detection import Selection
from sidecar.service.generations import Generation
from tests.fakes import World, loop_time

pytestmark = pytest.mark.looptime

INTERVAL = 30.0


class Detecting:
    """A selection, and a service that has the endpoint, has it not, or does not say."""

    def __init__(self, fixed: Generation | None = None, otherwise: Generation = Generation.PLACEHOLDERS) -> None:
        self.events: list[Event] = []
        self.background = Background(self.events.append)
        self.exists: bool | None = None
        self.crash: Exception | None = None
        self.takes = 0.0
        self.looks = 0
        self.selection = Selection(
            fixed,
            otherwise=otherwise,
            probe=self._probe,
            background=self.background,
            clock=loop_time,
            observer=self.events.append,
        )

    async def _probe(self) -> bool | None:
        self.looks += 1
        exists = self.exists
        await asyncio.sleep(self.takes)
        if self.crash is not None:
            raise self.crash
        return exists

    @property
    def changes(self) -> list[tuple[str | None, str]]:
        return [(event.before, event.to) for event in self.events if isinstance(event, GenerationChanged)]

    def in_use(self) -> Generation | None:
        return self.selection.current

    def watches(self) -> None:
        self.background.keep(self.selection.watch(lambda: INTERVAL), name="watch")


@pytest.mark.parametrize("generation", list(Generation))
async def test_what_the_settings_say_is_used_and_never_looked_at(generation: Generation) -> None:
    detecting = Detecting(generation)
    detecting.exists = generation is not Generation.PROMPT_DATA
    detecting.selection.begin()
    assert detecting.in_use() is generation
    assert await detecting.selection.settle(1) is generation
    assert await detecting.selection.endpoint_exists(1) is (generation is Generation.PROMPT_DATA)
    await detecting.selection.watch(lambda: INTERVAL)
    assert detecting.looks == 0
    assert detecting.changes == [(None, generation.value)]


@pytest.mark.parametrize("otherwise", [Generation.PLACEHOLDERS, Generation.PASSTHROUGH])
@pytest.mark.parametrize("exists", [True, False])
async def test_auto_takes_what_the_service_has(otherwise: Generation, exists: bool) -> None:
    detecting = Detecting(otherwise=otherwise)
    detecting.exists = exists
    detecting.selection.begin()
    assert detecting.in_use() is None
    found = Generation.PROMPT_DATA if exists else otherwise
    assert await detecting.selection.settle(1) is found
    assert detecting.in_use() is found
    assert detecting.changes == [(None, found.value)]


async def test_what_is_known_is_not_looked_at_again_by_a_request() -> None:
    detecting = Detecting()
    detecting.exists = True
    await detecting.selection.settle(1)
    await detecting.selection.settle(1)
    assert detecting.looks == 1


async def test_nothing_is_concluded_while_the_service_does_not_say() -> None:
    detecting = Detecting()
    assert await detecting.selection.settle(1) is None
    assert await detecting.selection.endpoint_exists(1) is None
    assert (detecting.in_use(), detecting.selection.since, detecting.changes) == (None, None, [])
    assert detecting.looks == 2


async def test_what_was_known_stays_while_the_service_does_not_say() -> None:
    detecting = Detecting()
    detecting.exists = True
    await detecting.selection.settle(1)
    detecting.exists = None
    assert await detecting.selection.endpoint_exists(1) is None
    assert detecting.in_use() is Generation.PROMPT_DATA


async def test_many_who_ask_at_once_share_a_look() -> None:
    detecting = Detecting()
    detecting.exists, detecting.takes = True, 0.5
    found = await asyncio.gather(*(detecting.selection.settle(1) for _ in range(20)))
    assert found == [Generation.PROMPT_DATA] * 20
    assert detecting.looks == 1


async def test_who_has_no_more_time_goes_and_the_look_goes_on() -> None:
    detecting = Detecting()
    detecting.exists, detecting.takes = True, 5
    assert await detecting.selection.settle(1) is None
    assert loop_time() == 1
    assert await detecting.selection.settle(0) is None
    assert await detecting.selection.settle(-3) is None
    assert detecting.looks == 1
    await asyncio.sleep(4)
    assert detecting.in_use() is Generation.PROMPT_DATA


async def test_one_who_is_cancelled_takes_the_look_from_nobody() -> None:
    detecting = Detecting()
    detecting.exists, detecting.takes = True, 1
    first = asyncio.ensure_future(detecting.selection.settle(5))
    second = asyncio.ensure_future(detecting.selection.settle(5))
    await asyncio.sleep(0.5)
    first.cancel()
    assert await second is Generation.PROMPT_DATA
    assert detecting.looks == 1


async def test_a_look_that_began_anew_is_not_answered_by_the_one_before() -> None:
    detecting = Detecting()
    detecting.exists = True
    await detecting.selection.endpoint_exists(1)
    detecting.exists = False
    assert await detecting.selection.endpoint_exists(1) is False
    assert detecting.in_use() is Generation.PLACEHOLDERS


async def test_an_upgrade_and_a_roll_back_are_noticed_within_an_interval() -> None:
    detecting = Detecting()
    detecting.exists = False
    detecting.watches()
    await asyncio.sleep(1)
    assert detecting.in_use() is Generation.PLACEHOLDERS
    detecting.exists = True
    await asyncio.sleep(INTERVAL)
    assert detecting.in_use() is Generation.PROMPT_DATA
    assert detecting.selection.since == INTERVAL
    detecting.exists = False
    await asyncio.sleep(INTERVAL)
    assert detecting.changes == [
        (None, "placeholders"),
        ("placeholders", "prompt-data"),
        ("prompt-data", "placeholders"),
    ]
    await detecting.background.drain(1)


async def test_a_service_that_was_never_seen_is_found_when_it_comes() -> None:
    detecting = Detecting()
    detecting.watches()
    await asyncio.sleep(10 * INTERVAL)
    assert detecting.in_use() is None
    detecting.exists = True
    await asyncio.sleep(INTERVAL)
    assert detecting.in_use() is Generation.PROMPT_DATA
    await detecting.background.drain(1)


async def test_a_slow_service_does_not_stop_the_watch() -> None:
    detecting = Detecting()
    detecting.takes = 10 * INTERVAL
    detecting.watches()
    await asyncio.sleep(INTERVAL)
    detecting.exists, detecting.takes = True, 0
    await asyncio.sleep(12 * INTERVAL)
    assert detecting.in_use() is Generation.PROMPT_DATA
    await detecting.background.drain(1)


async def test_listeners_hear_of_changes_only_and_find_the_new_one_in_use() -> None:
    detecting = Detecting()
    heard: list[Generation | None] = []
    detecting.selection.on_change(lambda: heard.append(detecting.in_use()))
    detecting.selection.on_change(lambda: heard.append(None))
    for exists in (True, True, None, False, False, True):
        detecting.exists = exists
        await detecting.selection.endpoint_exists(1)
    assert heard == [Generation.PROMPT_DATA, None, Generation.PLACEHOLDERS, None, Generation.PROMPT_DATA, None]


async def test_a_look_that_crashes_is_told_and_says_nothing() -> None:
    detecting = Detecting()
    detecting.crash = ZeroDivisionError("a bug")
    assert await detecting.selection.settle(1) is None
    assert [event.what for event in detecting.events if isinstance(event, Crashed)] == ["detect"]
    detecting.crash, detecting.exists = None, True
    assert await detecting.selection.settle(1) is Generation.PROMPT_DATA


async def test_the_watch_outlives_a_look_that_crashes() -> None:
    detecting = Detecting()
    detecting.crash = ZeroDivisionError("a bug")
    detecting.watches()
    await asyncio.sleep(1)
    detecting.crash, detecting.exists = None, True
    await asyncio.sleep(INTERVAL)
    assert detecting.in_use() is Generation.PROMPT_DATA
    await detecting.background.drain(1)


async def test_a_request_during_a_look_that_crashes_goes_to_the_service() -> None:
    world = World(generation=None)

    async def crashes() -> bool | None:
        raise ZeroDivisionError("a bug")

    world.selection._probe = crashes
    assert (await world.ask()).provenance.detail == "undetected"
