"""The arithmetic of the availability report."""

from dataclasses import replace
from typing import Any

import pytest

from sidecar.demo.drill.tally import (
    Asked,
    Bounds,
    Kind,
    Phase,
    PhaseReport,
    Verdict,
    fresh_again,
    numbers,
    percentile,
    percents,
    promises,
    report,
    within,
)

NODE = "answer_question"
PAIRS = [(1, NODE), (2, NODE)]
BOUNDS = Bounds(deadline=4.0, objective=0.99, limit=lambda _: 10.0, recovers_within=5.0)
WELL = Phase(name="all is well", began_at=0.0, ended_at=2.0)
OUTAGE = Phase(name="503", failure="503", is_outage=True, began_at=2.0, ended_at=6.0, circuit_opened_at=3.5)
RECOVERY = Phase(name="recovery", failure="503", began_at=6.0, ended_at=9.0)


def asked(at: float = 0.0, kind: Kind = Kind.FRESH, **more: Any) -> Asked:
    return Asked(**{"at": at, "user": 1, "node": NODE, "kind": kind, "seconds": 0.01, "status": 200, **more})


def test_requests_are_counted_by_how_they_ended() -> None:
    kinds = [Kind.FRESH] * 5 + [Kind.STALE] * 2 + [Kind.REFUSED, Kind.UNANSWERED, Kind.WRONG]
    found = numbers([asked(kind=kind) for kind in kinds])
    assert (found.requests, found.fresh, found.stale) == (10, 5, 2)
    assert (found.refused, found.unanswered, found.wrong) == (1, 1, 1)
    assert found.availability == 0.7  # a wrong prompt is none


def test_statuses_are_counted_of_those_that_had_one() -> None:
    found = numbers([asked(), asked(kind=Kind.REFUSED, status=503), asked(kind=Kind.UNANSWERED, status=None)])
    assert found.statuses == {"200": 1, "503": 1}


def test_the_oldest_is_that_of_what_was_served() -> None:
    found = [asked(age=3.0), asked(kind=Kind.STALE, age=7.5), asked(kind=Kind.REFUSED, age=99.0)]
    assert numbers(found).oldest == 7.5


def test_where_nothing_was_asked_nothing_is_said() -> None:
    nothing = numbers([])
    assert nothing.requests == 0
    assert [nothing.availability, nothing.p50, nothing.p99, nothing.oldest] == [None] * 4


@pytest.mark.parametrize(
    ("many", "share", "found"),
    [(100, 0.5, 50), (100, 0.99, 99), (1, 0.99, 1), (3, 0.5, 2), (200, 0.99, 198), (3, 0, 1)],
)
def test_a_percentile_is_the_nearest_rank(many: int, share: float, found: float) -> None:
    assert percentile([float(each) for each in range(1, many + 1)], share) == found


def test_a_request_belongs_to_the_phase_in_which_it_was_asked() -> None:
    every = [asked(at) for at in (1.99, 2.0, 5.99, 6.0)]
    assert within(OUTAGE, every) == every[1:3]


def test_all_is_fresh_again_when_the_last_pair_had_a_new_prompt() -> None:
    every = [
        asked(5.9, user=1, is_newest=True),  # before the recovery
        asked(6.5, user=1, kind=Kind.STALE),
        asked(7.0, user=1, is_newest=True, seconds=0.5),
        asked(8.0, user=1, is_newest=True),
        asked(6.6, user=2, is_newest=True),
    ]
    assert fresh_again(6.0, every, PAIRS) == pytest.approx(1.5)


@pytest.mark.parametrize("second", [[], [asked(6.5, user=2)], [asked(6.5, user=2, kind=Kind.REFUSED, is_newest=True)]])
def test_it_is_not_fresh_again_while_one_pair_had_none(second: list[Asked]) -> None:
    assert fresh_again(6.0, [asked(6.5, is_newest=True), *second], PAIRS) is None


def test_a_phase_is_summed_up_with_the_sidecar_and_without_it() -> None:
    found = report(OUTAGE, [asked(1.0), asked(3.0), asked(4.0)], [asked(3.0, kind=Kind.UNANSWERED)], PAIRS)
    assert (found.name, found.is_outage, found.seconds) == ("503", True, 4.0)
    assert (found.numbers.requests, found.numbers.availability) == (2, 1.0)
    assert (found.without.requests, found.without.availability) == (1, 0.0)
    assert (found.circuit_open_after, found.fresh_again_after) == (1.5, None)


def test_only_a_recovery_says_when_all_was_fresh_again() -> None:
    every = [asked(at, user=user, is_newest=True) for at in (1.0, 3.0, 7.0) for user in (1, 2)]
    found = [report(phase, every, [], PAIRS).fresh_again_after for phase in (WELL, OUTAGE, RECOVERY)]
    assert found == [None, None, pytest.approx(1.01)]


GOOD = [
    *(asked(at, user=user, is_newest=True) for at in (1.0, 7.0) for user in (1, 2)),
    *(asked(3.0, user=user, kind=Kind.STALE, age=9.0) for user in (1, 2)),
]


def judged(every: list[Asked], bounds: Bounds = BOUNDS, recovery: Phase = RECOVERY) -> list[str]:
    """Return the beginnings of the promises that were not held, and how they ended."""
    phases = [report(each, every, [], PAIRS) for each in (WELL, OUTAGE, recovery)]
    verdicts = promises(phases, every, bounds)
    assert len(verdicts) == 5
    return [f"{promise[:12]}: {verdict}" for promise, verdict in verdicts.items() if verdict is not Verdict.HELD]


def test_what_is_good_breaks_no_promise() -> None:
    assert judged(GOOD) == []


@pytest.mark.parametrize(
    ("another", "broken"),
    [
        (asked(3.0, kind=Kind.WRONG), ["Every prompt: broken", "In each phas: broken"]),
        (asked(3.0, kind=Kind.STALE, age=10.9), []),  # a second is allowed for
        (asked(3.0, kind=Kind.STALE, age=11.1), ["No prompt is: broken"]),
        (asked(3.0, kind=Kind.REFUSED, age=99.0), ["In each phas: broken"]),
        (asked(3.0, seconds=4.9), []),
        (asked(3.0, seconds=5.1), ["Every reques: broken"]),
        (asked(3.0, kind=Kind.UNANSWERED), ["Every reques: broken", "In each phas: broken"]),
    ],
)
def test_one_bad_answer_breaks_the_promise_that_it_breaks(another: Asked, broken: list[str]) -> None:
    assert judged([*GOOD, another]) == broken


def test_the_objective_is_that_of_the_settings_and_of_each_phase() -> None:
    every = [*GOOD, asked(7.0, kind=Kind.REFUSED)]
    assert judged(every) == ["In each phas: broken"]
    assert judged(every, replace(BOUNDS, objective=0.6)) == []


def test_a_recovery_that_had_its_time_and_is_not_fresh_is_a_broken_promise() -> None:
    not_fresh = [replace(each, is_newest=False) for each in GOOD]
    assert judged(not_fresh, recovery=replace(RECOVERY, ended_at=11.0)) == ["After each o: broken"]


def test_a_recovery_that_was_cut_short_says_nothing() -> None:
    not_fresh = [replace(each, is_newest=False) for each in GOOD]
    assert judged(not_fresh) == ["After each o: not rehearsed"]


def test_a_drill_that_ended_before_the_first_recovery_says_nothing_of_it() -> None:
    phases: list[PhaseReport] = [report(each, GOOD, [], PAIRS) for each in (WELL, OUTAGE)]
    verdicts = promises(phases, GOOD, BOUNDS)
    assert [verdict for promise, verdict in verdicts.items() if promise.startswith("After")] == [Verdict.NOT_REHEARSED]


def test_a_phase_without_a_request_is_not_held_against_the_objective() -> None:
    assert judged(GOOD, recovery=replace(RECOVERY, began_at=6.0, ended_at=6.5)) == ["After each o: not rehearsed"]


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.0, "100 %"), (0.999999, "99.99 %"), (0.99994, "99.99 %"), (0.5, "50 %"), (0.0766, "7.66 %"), (0.0, "0 %")],
)
def test_only_all_is_100_percent(share: float, said: str) -> None:
    assert percents(share) == said
