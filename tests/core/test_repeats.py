"""What is written at once, what is counted, and when the sums come."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.repeats import MOST_KINDS, RepeatRule, Repeats, Sum

RULE = RepeatRule(window=10.0, longest=35.0)
WALL = 1_790_000_000.0


def repeats() -> Repeats[str]:
    return Repeats(RULE)


def test_the_first_of_a_kind_is_written_and_its_repeats_are_counted_with_their_first_and_last_instant() -> None:
    seen = repeats()
    assert [seen.is_first("reset", float(n), WALL + n) for n in range(5)] == [True, False, False, False, False]
    assert [*seen.ended(9.9)] == []
    assert [*seen.ended(10.0)] == [("reset", Sum(4, WALL + 1, WALL + 4))]


def test_each_kind_is_counted_on_its_own() -> None:
    seen = repeats()
    assert [seen.is_first(kind, 0.0, WALL) for kind in ("reset", "timeout", "reset")] == [True, True, False]
    assert [*seen.ended(10.0)] == [("reset", Sum(1, WALL, WALL))]


def test_while_the_storm_lasts_each_window_is_twice_the_one_before_up_to_a_limit() -> None:
    seen, ends = repeats(), []
    for second in range(200):
        seen.is_first("reset", float(second), WALL + second)
        ends += [second for _ in seen.ended(float(second))]
    assert ends == [10, 30, 65, 100, 135, 170]  # 10, 20, then 35 s


def test_a_kind_that_did_not_come_again_is_forgotten_and_its_next_line_is_a_first() -> None:
    seen = repeats()
    seen.is_first("reset", 0.0, WALL)
    assert [*seen.ended(10.0)] == []
    assert len(seen) == 0
    assert seen.is_first("reset", 10.0, WALL)


def test_after_a_storm_its_last_sum_is_told_and_then_it_is_over() -> None:
    seen = repeats()
    for now in (0.0, 1.0):
        seen.is_first("reset", now, WALL + now)
    assert len([*seen.ended(10.0)]) == 1
    seen.is_first("reset", 11.0, WALL + 11)
    assert [*seen.ended(29.9)] == []
    assert [*seen.ended(30.0)] == [("reset", Sum(1, WALL + 11, WALL + 11))]
    assert ([*seen.ended(65.0)], len(seen)) == ([], 0)


def test_the_next_end_is_the_soonest_and_none_where_nothing_is_watched() -> None:
    seen = repeats()
    assert seen.next_end() is None
    seen.is_first("reset", 3.0, WALL)
    seen.is_first("timeout", 4.0, WALL)
    assert seen.next_end() == 13.0


def test_what_is_counted_can_be_had_before_its_time() -> None:
    seen = repeats()
    for kind in ("reset", "reset", "timeout"):
        seen.is_first(kind, 0.0, WALL)
    assert [*seen.all()] == [("reset", Sum(1, WALL, WALL))]
    assert len(seen) == 0


def test_the_kinds_that_are_watched_are_bounded() -> None:
    seen = repeats()
    for n in range(MOST_KINDS):
        assert seen.has_room_for(f"kind {n}")
        seen.is_first(f"kind {n}", 0.0, WALL)
    assert seen.has_room_for("kind 0")
    assert not seen.has_room_for("one more")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60))
def test_nothing_is_lost_whatever_comes_and_when(given_: list[tuple[str, float]]) -> None:
    seen, told, now = repeats(), Counter[str](), 0.0
    for kind, pause in given_:
        now += pause
        told.update({each: found.repeated for each, found in seen.ended(now)})
        told[kind] += seen.is_first(kind, now, WALL)
    told.update({each: found.repeated for each, found in seen.all()})
    assert +told == Counter(kind for kind, _ in given_)


@pytest.mark.parametrize("now", [10.0, 1e9])
def test_a_long_silence_ends_a_window_once(now: float) -> None:
    seen = repeats()
    seen.is_first("reset", 0.0, WALL)
    seen.is_first("reset", 0.0, WALL)
    assert len([*seen.ended(now)]) == 1
    assert [*seen.ended(now)] == []
