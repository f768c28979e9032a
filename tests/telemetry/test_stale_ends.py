"""How long the cover of an outage lasts, as a scrape reads it."""

import pytest

from sidecar.telemetry.stale_ends import WINDOW_SECONDS, StaleEnds


def test_the_soonest_end_counts_and_comes_nearer() -> None:
    ends = StaleEnds()
    ends.note("explain", 900.0, 0.0)
    ends.note("explain", 700.0, 1.0)
    ends.note("explain", 800.0, 2.0)
    ends.note("quiz", 950.0, 2.0)
    assert ends.left(10.0) == {"explain": 690.0, "quiz": 940.0}
    assert ends.left(20.0) == {"explain": 680.0, "quiz": 930.0}


def test_what_is_left_is_never_less_than_nothing() -> None:
    ends = StaleEnds()
    ends.note("explain", 5.0, 0.0)
    assert ends.left(6.0) == {"explain": 0.0}


@pytest.mark.parametrize(
    ("passed", "told"), [(0.0, True), (1.9 * WINDOW_SECONDS, True), (2 * WINDOW_SECONDS, False), (9e9, False)]
)
def test_a_node_is_told_of_until_it_was_not_served_stale_for_a_while(passed: float, *, told: bool) -> None:
    ends = StaleEnds()
    ends.note("explain", 1e10, 0.0)
    assert ("explain" in ends.left(passed)) is told


def test_an_end_that_is_met_no_more_gives_way_to_a_later_one() -> None:
    ends = StaleEnds()
    ends.note("explain", 900.0, 0.0)
    for n in range(1, 4):
        ends.note("explain", 2000.0, n * WINDOW_SECONDS)
    assert ends.left(3 * WINDOW_SECONDS) == {"explain": 2000.0 - 3 * WINDOW_SECONDS}


def test_it_does_not_matter_how_often_it_is_read() -> None:
    ends = StaleEnds()
    ends.note("explain", 900.0, 0.0)
    assert [ends.left(now)["explain"] for now in (30.0, 61.0, 90.0, 119.0)] == [870.0, 839.0, 810.0, 781.0]


def test_the_upstreams_answer_ends_it() -> None:
    ends = StaleEnds()
    ends.note("explain", 900.0, 0.0)
    ends.forget("explain")
    ends.forget("unknown")
    assert ends.left(1.0) == {}
