"""The last hour's requests: by minute, by node, bounded, and cheap to note."""

import random
from itertools import pairwise

import pytest

from sidecar.core.events import FreshHit, Outcome, RequestOutcome
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.history import RequestHistory
from sidecar.telemetry.minutes import LATENCY_BOUNDS, SLOTS, Counts, quantiles
from sidecar.telemetry.request_metrics import BATCH
from tests.harness import ManualClock

NONE = Counts()


class Past:
    """A history, its clock, and requests as the service tells of them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.clock.now = 6_000_000.0  # where a minute begins
        self.history = RequestHistory(self.clock)
        self.observe = Dispatcher(self.history.handlers())

    def ask(
        self,
        outcome: Outcome = Outcome.FRESH,
        node: str | None = "explain",
        *,
        seconds: float = 0.001,
        age: float | None = 5.0,
        detail: str | None = None,
        status: int = 200,
        until: float | None = None,
    ) -> None:
        kind = FreshHit if outcome is Outcome.FRESH else RequestOutcome
        usable_until = None if until is None else self.clock.now + until
        self.observe(kind(node, outcome, seconds, 0.0, age, detail, status, usable_until))

    def fail(self, node: str | None = "explain", status: int = 503) -> None:
        self.ask(Outcome.ERROR, node, age=None, detail="circuit_open", status=status)

    def cover(self, node: str = "explain", *, until: float = 600.0) -> None:
        self.ask(Outcome.STALE, node, detail="stale-if-error", until=until)


def test_what_was_never_asked_has_no_history() -> None:
    history = Past().history
    assert (history.minutes(), history.nodes(), history.recent()) == ([], [], NONE)
    assert history.quantiles() == (0.0, 0.0, 0.0)
    assert NONE.hit_ratio is None


def test_requests_are_counted_in_the_minute_in_which_they_were_answered() -> None:
    past = Past()
    for seconds in (0.0, 59.0, 0.5, 0.5, 120.0):
        past.clock.advance(seconds)
        past.ask()
    minutes = past.history.minutes()
    assert [(minute.began_at - 6_000_000.0, minute.counts.fresh) for minute in minutes] == [(0, 3), (60, 1), (180, 1)]


def test_a_batch_that_fills_up_over_a_long_time_is_still_counted_minute_by_minute() -> None:
    past = Past()
    for _ in range(BATCH + 1):
        past.clock.advance(20.0)
        past.ask()
    assert {minute.counts.requests for minute in past.history.minutes()[1:-1]} == {3}


def test_each_ending_is_counted_as_what_it_is() -> None:
    past = Past()
    past.ask()
    past.ask(Outcome.STALE, detail="stale-while-revalidate", until=90.0)
    past.cover()
    past.ask(Outcome.MISS)
    past.ask(Outcome.BYPASS)
    past.fail()
    past.fail(status=422)
    (minute,) = past.history.minutes()
    assert minute.counts == Counts(fresh=1, stale=2, miss=1, bypass=1, error=2, covered=1, failed=1)
    assert (minute.counts.requests, minute.counts.hit_ratio) == (7, 0.25)
    assert past.history.recent() == minute.counts


def test_now_is_the_minute_that_runs_and_the_one_before() -> None:
    past = Past()
    past.clock.advance(59)
    past.ask()
    past.clock.advance(60)
    assert past.history.recent().requests == 1
    past.clock.advance(1)
    assert past.history.recent() == NONE


def test_an_hour_later_it_is_forgotten_and_so_much_is_kept_at_most() -> None:
    past = Past()
    for _ in range(3 * SLOTS):
        past.ask()
        past.clock.advance(60)
    assert len(past.history.minutes()) == SLOTS - 1
    assert len(past.history._hour._over) < SLOTS
    past.clock.advance(3600)
    (node,) = past.history.nodes()
    assert (past.history.minutes(), node.counts) == ([], NONE)
    assert node.last_at == past.clock.now - 3660  # that it was asked for at all stays known


def test_a_node_is_told_by_its_last_answer_and_the_age_of_the_last_prompt() -> None:
    past = Past()
    past.ask(age=12.0)
    past.clock.advance(1)
    past.fail()
    past.ask(node=None)
    explain, other = past.history.nodes()
    assert (explain.node, explain.last_at, explain.last_outcome) == ("explain", past.clock.now, Outcome.ERROR)
    assert explain.age == 12.0
    assert other.node == "other"
    past.fail("quiz")
    assert past.history.nodes()[2].age is None


def test_a_cover_is_told_from_its_first_to_the_services_next_answer() -> None:
    past = Past()
    began_at = past.clock.now
    past.cover()
    past.clock.advance(50)
    past.cover(until=500)
    past.ask()  # another user's data is still fresh: no end of the outage
    (node,) = past.history.nodes()
    assert (node.covered_since, node.cover_left) == (began_at, 500)
    past.ask(Outcome.MISS)
    (node,) = past.history.nodes()
    assert (node.covered_since, node.cover_left) == (None, None)
    past.clock.advance(1)
    past.cover()
    assert past.history.nodes()[0].covered_since == past.clock.now


def test_a_cover_that_nobody_needed_for_minutes_begins_anew() -> None:
    past = Past()
    past.cover()
    past.clock.advance(300)
    assert past.history.nodes()[0].covered_since is None
    past.cover()
    assert past.history.nodes()[0].covered_since == past.clock.now


@pytest.mark.parametrize("scale", [0.00002, 0.001, 0.5])
def test_a_quantile_is_within_15_percent_of_the_truth(scale: float) -> None:
    past, chance = Past(), random.Random(1)
    took = sorted(scale * chance.lognormvariate(0, 0.5) for _ in range(10_000))
    for seconds in took:
        past.ask(seconds=seconds)
    truth = [took[int(share * len(took))] for share in (0.5, 0.95, 0.99)]
    assert list(past.history.quantiles()) == [pytest.approx(each, rel=0.15) for each in truth]
    assert list(past.history.minutes()[0].quantiles) == list(past.history.quantiles())


def test_what_is_beyond_the_scale_is_told_by_its_ends() -> None:
    past = Past()
    past.ask(seconds=99.0)
    assert past.history.quantiles() == (LATENCY_BOUNDS[-1],) * 3
    assert 0 < quantiles([1] + [0] * len(LATENCY_BOUNDS))[0] < LATENCY_BOUNDS[0]


def test_the_scale_has_eight_steps_to_a_decade() -> None:
    assert all(high / low == pytest.approx(10 ** (1 / 8)) for low, high in pairwise(LATENCY_BOUNDS))


def test_it_does_not_matter_how_often_it_is_read() -> None:
    past = Past()
    for _ in range(5):
        past.ask()
        past.history.minutes()
    assert past.history.minutes()[0].counts == Counts(fresh=5)
