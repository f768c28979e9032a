"""Writes: what a change of settings makes void, by count and not by time; in faked time."""

import asyncio

import pytest

from sidecar.service.writes import Writes
from tests.fakes import loop_time

pytestmark = pytest.mark.looptime


def epoch_of(writes: Writes, owner: int | None) -> int:
    """Return the epoch of a fetch that begins now, where it may be kept."""
    ticket = writes.ticket(owner)
    assert ticket is not None
    return ticket


async def test_without_a_write_nothing_is_void() -> None:
    writes = Writes(loop_time)
    assert not writes.is_void(1, epoch_of(writes, 1))
    assert not writes.is_void(None, epoch_of(writes, None))


async def test_a_write_makes_void_what_was_asked_for_before_it_and_nothing_after_it() -> None:
    writes = Writes(loop_time)
    before = epoch_of(writes, 1)
    writes.ended(1)
    assert writes.is_void(1, before)
    assert not writes.is_void(1, epoch_of(writes, 1))


async def test_a_second_write_makes_void_what_came_between_the_two() -> None:
    writes = Writes(loop_time)
    writes.ended(1)
    between = epoch_of(writes, 1)
    writes.ended(1)
    assert writes.is_void(1, between)


async def test_time_alone_brings_nothing_back() -> None:
    writes = Writes(loop_time)
    before = epoch_of(writes, 1)
    writes.ended(1, unsettled_for=5)
    await asyncio.sleep(1_000_000)
    assert writes.is_void(1, before)


@pytest.mark.parametrize("other", [2, 12, 11, 10, -1, 0, None])
async def test_a_write_of_user_1_is_nobody_elses(other: int | None) -> None:
    writes = Writes(loop_time)
    before, lane = epoch_of(writes, other), writes.lane(other)
    writes.ended(1, unsettled_for=5)
    assert not writes.is_void(other, before)
    assert writes.ticket(other) is not None
    assert writes.lane(other) == lane


async def test_a_write_of_nobody_is_no_users() -> None:
    writes = Writes(loop_time)
    before = epoch_of(writes, 1)
    writes.ended(None)
    assert writes.is_void(None, before)
    assert not writes.is_void(1, before)
    assert not writes.is_void(0, before)


async def test_requests_share_a_lane_until_a_write_and_another_one_after_it() -> None:
    writes = Writes(loop_time)
    first = writes.lane(1)
    assert writes.lane(1) == first
    writes.ended(1)
    second = writes.lane(1)
    assert second != first
    assert writes.lane(1) == second
    writes.ended(1)
    assert writes.lane(1) not in {first, second}


async def test_while_a_lost_write_may_take_effect_nothing_is_kept_or_served_or_shared() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=5)
    await asyncio.sleep(4.9)
    assert writes.ticket(1) is None
    assert writes.is_void(1, writes._epoch)
    assert len({writes.lane(1) for _ in range(10)}) == 10


async def test_when_a_lost_write_can_take_effect_no_more_all_is_as_before() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=5)
    during = {writes.lane(1) for _ in range(3)}
    await asyncio.sleep(5)
    assert not writes.is_void(1, epoch_of(writes, 1))
    assert writes.lane(1) == writes.lane(1)
    assert writes.lane(1) not in during


async def test_an_answered_write_does_not_end_the_wait_for_a_lost_one() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=5)
    await asyncio.sleep(1)
    writes.ended(1)
    await asyncio.sleep(3.9)
    assert writes.ticket(1) is None
    await asyncio.sleep(0.1)
    assert writes.ticket(1) is not None


async def test_of_two_lost_writes_the_longer_wait_counts() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=5)
    await asyncio.sleep(1)
    writes.ended(1, unsettled_for=1)
    await asyncio.sleep(3)
    assert writes.ticket(1) is None
    writes.ended(1, unsettled_for=10)
    await asyncio.sleep(9.9)
    assert writes.ticket(1) is None
    await asyncio.sleep(0.1)
    assert writes.ticket(1) is not None


async def test_only_so_many_marks_are_kept() -> None:
    writes = Writes(loop_time, max_marks=3)
    for user in range(100):
        writes.ended(user)
    assert list(writes._marks) == [97, 98, 99]


async def test_a_forgotten_mark_makes_void_what_it_would_have_and_what_others_had_from_before_it() -> None:
    writes = Writes(loop_time, max_marks=2)
    before = epoch_of(writes, 1)
    writes.ended(1)
    after = epoch_of(writes, 1)
    writes.ended(2)
    writes.ended(3)
    assert writes.is_void(1, before)
    assert writes.is_void(77, before), "the price: nobody knows any more whose write it was"
    assert not writes.is_void(1, after)
    assert not writes.is_void(77, after)


async def test_a_forgotten_mark_leaves_nobody_on_a_flight_from_before_it() -> None:
    writes = Writes(loop_time, max_marks=1)
    lane = writes.lane(1)
    writes.ended(1)
    writes.ended(2)
    assert writes.lane(1) != lane


async def test_the_mark_that_is_forgotten_is_the_one_whose_last_write_is_oldest() -> None:
    writes = Writes(loop_time, max_marks=2)
    writes.ended(1)
    writes.ended(2)
    writes.ended(1)
    writes.ended(3)
    assert list(writes._marks) == [1, 3]


async def test_a_forgotten_lost_write_may_still_take_effect() -> None:
    writes = Writes(loop_time, max_marks=2)
    writes.ended(1, unsettled_for=5)
    for user in range(2, 10):
        writes.ended(user)
    assert writes.ticket(1) is None, "what is asked for now may be overtaken by the lost write"
    assert writes.is_void(1, writes._epoch)
    assert len({writes.lane(1) for _ in range(3)}) == 3
    await asyncio.sleep(5)
    assert not writes.is_void(1, epoch_of(writes, 1))
    assert writes.lane(1) == writes.lane(1)


async def test_an_answered_write_does_not_end_the_wait_for_a_lost_one_that_was_forgotten() -> None:
    writes = Writes(loop_time, max_marks=1)
    writes.ended(1, unsettled_for=5)
    writes.ended(2)
    writes.ended(1)
    assert writes.ticket(1) is None
    await asyncio.sleep(5)
    assert writes.ticket(1) is not None


async def test_an_invalidation_leaves_a_write_that_is_on_its_way_open() -> None:
    writes = Writes(loop_time)
    writes.began(1)
    before = epoch_of(writes, 1)
    writes.void(1)
    assert writes.is_void(1, before)
    assert not writes.is_settled(1)


async def test_all_of_everybody_may_be_made_void_at_once() -> None:
    writes = Writes(loop_time)
    writes.ended(1)
    before = {owner: epoch_of(writes, owner) for owner in (1, 2, None)}
    writes.void_all()
    for owner, epoch in before.items():
        assert writes.is_void(owner, epoch)
        assert writes.may_land(owner, epoch_of(writes, owner))


async def test_a_lost_write_stays_unsettled_when_all_is_made_void() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=5)
    writes.void_all()
    assert writes.ticket(1) is None
    assert writes.ticket(2) is not None


async def test_what_is_being_fetched_may_be_made_void_and_what_has_landed_stays() -> None:
    writes = Writes(loop_time)
    landed = in_flight = epoch_of(writes, 1)
    lane = writes.lane(1)
    writes.void_flights()
    assert not writes.is_void(1, landed)
    assert not writes.may_land(1, in_flight)
    assert writes.lane(1) != lane
    assert writes.may_land(1, epoch_of(writes, 1))


async def test_a_write_elsewhere_is_unsettled_until_its_end_is_heard_of() -> None:
    writes = Writes(loop_time)
    before = epoch_of(writes, 1)
    writes.began_elsewhere(1, "a", settles_in=30)
    assert writes.is_void(1, before)
    assert writes.ticket(1) is None
    assert writes.lane(1) != writes.lane(1)
    assert writes.ticket(12) is not None
    writes.ended_elsewhere(1, "a")
    assert writes.is_void(1, before)
    assert not writes.is_void(1, epoch_of(writes, 1))


async def test_a_write_elsewhere_whose_end_is_never_heard_of_is_over_in_its_time() -> None:
    writes = Writes(loop_time)
    writes.began_elsewhere(1, "a", settles_in=30)
    await asyncio.sleep(29.9)
    assert writes.ticket(1) is None
    await asyncio.sleep(0.2)
    assert writes.ticket(1) is not None


async def test_two_writes_elsewhere_are_settled_when_both_have_ended() -> None:
    writes = Writes(loop_time)
    writes.began_elsewhere(1, "a", settles_in=30)
    writes.began_elsewhere(1, "b", settles_in=30)
    writes.ended_elsewhere(1, "a")
    assert writes.ticket(1) is None
    writes.ended_elsewhere(1, "b")
    assert writes.ticket(1) is not None


async def test_the_end_of_a_write_elsewhere_does_not_settle_a_lost_one_of_ours() -> None:
    writes = Writes(loop_time)
    writes.ended(1, unsettled_for=60)
    writes.began_elsewhere(1, "a", settles_in=30)
    writes.ended_elsewhere(1, "a")
    assert writes.ticket(1) is None
    await asyncio.sleep(61)
    assert writes.ticket(1) is not None


async def test_what_is_doubted_is_trusted_again_when_the_doubt_is_over() -> None:
    writes = Writes(loop_time)
    writes.ended(2)
    before = {owner: epoch_of(writes, owner) for owner in (1, 2)}
    writes.doubt(1.0)
    assert all(writes.is_void(owner, epoch) for owner, epoch in before.items())
    await asyncio.sleep(1.1)
    assert not any(writes.is_void(owner, epoch) for owner, epoch in before.items())


async def test_what_is_fetched_in_doubt_is_trusted_and_what_was_in_flight_is_not_kept() -> None:
    writes = Writes(loop_time)
    in_flight = epoch_of(writes, 1)
    writes.doubt(1.0)
    assert writes.may_land(1, epoch_of(writes, 1))
    await asyncio.sleep(1.1)
    assert not writes.may_land(1, in_flight)


async def test_what_a_write_made_void_in_doubt_stays_void() -> None:
    writes = Writes(loop_time)
    before = epoch_of(writes, 1)
    writes.doubt(1.0)
    writes.ended_elsewhere(1, "a")
    await asyncio.sleep(2)
    assert writes.is_void(1, before)


async def test_a_mark_forgotten_takes_its_writes_elsewhere_along() -> None:
    writes = Writes(loop_time, max_marks=2)
    writes.began_elsewhere(1, "a", settles_in=30)
    for owner in (2, 3):
        writes.ended(owner)
    assert writes.ticket(1) is None  # the oldest are forgotten safely: nobody unmarked is settled before it is
    assert writes.ticket(4) is None
    await asyncio.sleep(31)
    assert writes.ticket(1) is not None
