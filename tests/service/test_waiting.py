"""More requests wait for the upstream than may: hits and stale answers go out, further ones are refused at once."""

import asyncio
from contextlib import suppress

import pytest

from sidecar.core.cache_status import cache_status
from sidecar.core.decision import Directives
from sidecar.core.errors import PromptError, UpstreamFailure
from sidecar.core.events import Outcome, RequestOutcome, Shed
from sidecar.core.model import Rendered
from sidecar.core.policy import Policy
from sidecar.service.generations import Generation
from sidecar.service.waiting import Waiting
from tests.fakes import MAX_BODIES, World, loop_time

POLICY = Policy(max_ttl=100.0, stale_while_revalidate=30.0, stale_if_error=900.0, network_timeout=1.0)
FULL = 3
pytestmark = pytest.mark.looptime


async def crowded(world: World, *, weight: int = 0) -> list[asyncio.Task[Rendered]]:
    """Have requests wait for a service that does not answer."""
    world.source.takes = world.service.takes = 60.0
    ask = world.manager.get_rendered_prompt
    waiting = [asyncio.create_task(ask(user, "crowd", {"topic": "x"}, weight=weight)) for user in range(1, FULL + 1)]
    await asyncio.sleep(0.1)
    return waiting


async def refused(world: World) -> PromptError:
    began_at = loop_time()
    with pytest.raises(PromptError) as caught:
        await world.ask(99)
    assert loop_time() == began_at
    return caught.value


async def test_one_too_many_is_503_at_once_and_is_told() -> None:
    world = World(POLICY, max_waiting=FULL)
    waiting = await crowded(world)
    fetches = world.fetches
    error = await refused(world)
    assert (error.status, error.retry_after, error.reason) == (503, 1.0, "overload")
    assert error.detail == (
        "No prompt: too many requests wait for the config service already, and the policy allows no stale data."
    )
    assert cache_status(error.provenance) == "prompt-sidecar; detail=overload"
    assert world.fetches == fetches
    assert world.seen(Shed) == [Shed("waiting")]
    assert [(each.outcome, each.status) for each in world.seen(RequestOutcome)] == [(Outcome.ERROR, 503)]
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_fresh_and_stale_prompts_are_served_meanwhile_and_no_fetch_is_begun() -> None:
    world = World(POLICY, max_waiting=FULL)
    await world.ask(1)
    waiting = await crowded(world)
    fetches = world.fetches
    assert cache_status((await world.ask(1)).provenance) == "prompt-sidecar; hit; ttl=99"
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.sleep(110)
    waiting = await crowded(world)
    fetches = world.fetches
    assert "hit; ttl=-1" in cache_status((await world.ask(1)).provenance)
    await asyncio.sleep(3.8)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert world.fetches == fetches


async def test_when_those_who_waited_are_answered_there_is_room_again() -> None:
    world = World(POLICY, max_waiting=FULL)
    await asyncio.gather(*await crowded(world), return_exceptions=True)
    world.source.takes = 0.0
    assert (await world.ask(99)).prompt


async def test_those_who_left_make_room() -> None:
    world = World(POLICY, max_waiting=FULL)
    for task in await crowded(world):
        task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.source.takes = 0.0
    assert (await world.ask(99)).prompt


async def test_few_that_hold_much_are_too_many() -> None:
    world = World(POLICY)
    waiting = await crowded(world, weight=MAX_BODIES // FULL + 1)
    assert (await refused(world)).reason == "overload"
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("generation", [Generation.PASSTHROUGH, None], ids=["passthrough", "not known yet"])
async def test_where_the_service_renders_one_too_many_is_refused_as_well(generation: Generation | None) -> None:
    world = World(POLICY, generation=generation, max_waiting=FULL)
    world.exists = None
    waiting = await crowded(world)
    calls = len(world.service.calls)
    assert (await refused(world)).reason == "overload"
    assert len(world.service.calls) == calls
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_wants_the_parts_is_refused_as_well_or_gets_what_is_kept() -> None:
    world = World(POLICY, max_waiting=FULL)
    await world.ask(1)
    waiting = await crowded(world)
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(99, "explain")
    assert caught.value.reason == "overload"
    assert await world.manager.get_prompt_data(1, "explain")
    no_cache = Directives(no_cache=True, only_if_cached=False, max_stale=None)
    with pytest.raises((PromptError, UpstreamFailure)):
        await world.ask(99, directives=no_cache)
    await asyncio.gather(*waiting, return_exceptions=True)


def test_room_is_given_back_after_an_error_too() -> None:
    waiting = Waiting(max_requests=1, max_bytes=10)
    with suppress(RuntimeError), waiting.one(5):
        raise RuntimeError
    assert waiting.has_room


def test_there_is_room_until_either_bound_is_met() -> None:
    waiting = Waiting(max_requests=2, max_bytes=10)
    with waiting.one(9):
        one = waiting.has_room
        with waiting.one(0):
            two = waiting.has_room
    with waiting.one(10):
        large = waiting.has_room
    assert (one, two, large) == (True, False, False)
