"""Invalidation: what is made void here is asked for again, and the group is told; in faked time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from sidecar.core.events import Invalidated
from sidecar.core.policy import Policy
from sidecar.service.invalidation import Forgotten, Invalidations
from tests.fakes import World

pytestmark = pytest.mark.looptime

LONG = Policy(ttl=3600, max_ttl=3600, stale_if_error=3600)
EVERYONE = [(1, "explain"), (12, "explain"), (1, "quiz"), (12, "quiz")]


class FakeGroup:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Change] = []

    async def tell(self, change: Change) -> bool:
        self.told.append(change)
        return True

    def tell_soon(self, change: Change) -> None:
        self.told.append(change)


class Kept(World):
    """A world in which something is kept of two users and two nodes."""

    def __init__(self) -> None:
        super().__init__(LONG)
        self.group = FakeGroup()
        self.invalidations = Invalidations(self.writes, self.tiers, self.events.append, self.group)

    async def asked_again(self) -> list[tuple[int, str]]:
        """Return for whom the upstream is asked when everyone asks."""
        again = []
        for user, node in EVERYONE:
            before = self.fetches
            await self.ask(user, node, topic="tides")
            if self.fetches != before:
                again.append((user, node))
        return again


async def kept() -> Kept:
    world = Kept()
    assert await world.asked_again() == EVERYONE
    assert await world.asked_again() == []
    world.events.clear()
    return world


async def test_a_user_is_invalidated_and_1_is_not_12() -> None:
    world = await kept()
    assert await world.invalidations.user(1) == Forgotten(2, 0, told=True)
    assert await world.asked_again() == [(1, "explain"), (1, "quiz")]
    assert world.group.told == [WriteEnded(1, "")]
    assert world.seen(Invalidated) == [Invalidated("admin", "user")]


async def test_a_node_is_invalidated_for_all_users() -> None:
    world = await kept()
    assert await world.invalidations.node("quiz") == Forgotten(2, 0, told=True)
    assert await world.asked_again() == [(1, "quiz"), (12, "quiz")]
    assert world.group.told == [NodeVoid("quiz")]


async def test_everything_is_invalidated() -> None:
    world = await kept()
    assert await world.invalidations.everything() == Forgotten(4, 0, told=True)
    assert await world.asked_again() == EVERYONE
    assert world.group.told == [AllVoid()]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (WriteEnded(1, "a"), [(1, "explain"), (1, "quiz")]),
        (WriteEnded(None, "a"), []),
        (NodeVoid("quiz"), [(1, "quiz"), (12, "quiz")]),
        (AllVoid(), EVERYONE),
    ],
)
async def test_what_is_heard_is_void_and_not_told_again(change: Change, again: list[tuple[int, str]]) -> None:
    world = await kept()
    world.invalidations.heard([change])
    assert await world.asked_again() == again
    assert world.group.told == []
    assert [event.source for event in world.seen(Invalidated)] == ["group"]


async def test_while_a_write_elsewhere_is_under_way_nothing_of_its_user_is_kept() -> None:
    world = await kept()
    world.invalidations.heard([WriteBegan(1, "a", 30.0)])
    for _ in range(2):
        assert await world.asked_again() == [(1, "explain"), (1, "quiz")]
    world.invalidations.heard([WriteEnded(1, "a")])
    assert await world.asked_again() == [(1, "explain"), (1, "quiz")]
    assert await world.asked_again() == []


async def test_after_a_gap_nothing_is_trusted_until_it_is_confirmed_or_the_window_is_over() -> None:
    world = await kept()
    world.invalidations.doubt(1.0)
    await world.ask(1, "explain", topic="tides")
    assert world.fetches == 5
    await world.ask(1, "explain", topic="tides")
    assert world.fetches == 5, "it is confirmed"
    await asyncio.sleep(1.1)
    assert await world.asked_again() == []


async def test_track_lost_is_all_lost() -> None:
    world = await kept()
    world.invalidations.lost_track()
    assert await world.asked_again() == EVERYONE


@pytest.mark.parametrize("change", [WriteEnded(1, ""), NodeVoid("explain"), AllVoid()])
async def test_a_fetch_in_flight_is_neither_kept_nor_joined(change: Change) -> None:
    world = Kept()
    world.source.takes = 1.0
    early = asyncio.ensure_future(world.ask(1, "explain", topic="tides"))
    await asyncio.sleep(0.5)
    world.invalidations.heard([change])
    late = asyncio.ensure_future(world.ask(1, "explain", topic="tides"))
    await asyncio.gather(early, late)
    assert world.fetches == 2
    await world.ask(1, "explain", topic="tides")
    assert world.fetches == 2, "the second is kept"


async def test_a_storm_of_nodes_looks_through_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await kept()
    looks = []
    drop_where = world.tiers.drop_where

    def noted(matches: Callable[[Any], bool]) -> int:
        looks.append(matches)
        return drop_where(matches)

    monkeypatch.setattr(world.tiers, "drop_where", noted)
    world.invalidations.heard([NodeVoid("explain"), *(NodeVoid(f"node {n}") for n in range(1_000))])
    assert len(looks) == 1
    assert await world.asked_again() == [(1, "explain"), (12, "explain")]
