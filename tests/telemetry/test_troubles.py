"""What went wrong last, and since when."""

import pytest

from sidecar.core.errors import FailureKind
from sidecar.core.events import (
    BreakerChanged,
    ParityChecked,
    Reloaded,
    RolledBack,
    StoreChanged,
    TemplatesLoaded,
    UpstreamAttempt,
)
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.troubles import MOST_TRANSITIONS, Troubles
from tests.harness import ManualClock


class Told:
    """Troubles that were told of something at second 0, 1, 2 …"""

    def __init__(self, *events: object) -> None:
        self.clock = ManualClock()
        self.clock.now = -1.0
        self.troubles = Troubles(self.clock)
        self.observe = Dispatcher(self.troubles.handlers())
        for event in events:
            self.clock.advance(1)
            self.observe(event)  # type: ignore[arg-type] # each is an event


def attempt(result: str) -> UpstreamAttempt:
    return UpstreamAttempt("placeholders", result, 0.01)


def test_the_service_fails_since_the_first_failure_after_its_last_answer() -> None:
    troubles = Told(attempt("ok"), attempt("reset"), attempt("server_error")).troubles
    assert (troubles.upstream.since, troubles.upstream.at, troubles.upstream.error) == (1, 2, "server_error")
    assert (troubles.answered_at, troubles.endpoint) == (0, "placeholders")


@pytest.mark.parametrize("answer", ["ok", "not_modified", "gone", "refused", "not_admitted"])
def test_any_answer_ends_it_and_the_last_error_stays_known(answer: str) -> None:
    troubles = Told(attempt("reset"), attempt(answer)).troubles
    assert (troubles.upstream.since, troubles.upstream.error, troubles.upstream.at) == (None, "reset", 0)
    assert troubles.answered_at == 1


@pytest.mark.parametrize("result", [FailureKind.CANCELLED.value, "crashed"])
def test_what_was_our_own_doing_says_nothing_of_the_service(result: str) -> None:
    troubles = Told(attempt(result)).troubles
    assert (troubles.upstream.error, troubles.answered_at) == (None, None)


def test_a_store_is_in_trouble_until_it_works_again() -> None:
    told = Told(StoreChanged("full"), StoreChanged("unwritable"))
    assert (told.troubles.store.since, told.troubles.store.error) == (0, "unwritable")
    told.observe(StoreChanged(None))
    assert (told.troubles.store.since, told.troubles.store.error) == (None, "unwritable")


def test_a_template_file_is_in_trouble_until_it_is_taken() -> None:
    told = Told(TemplatesLoaded(1, "line 3: is not a text"))
    assert told.troubles.templates.since == 0
    told.observe(TemplatesLoaded(1, None))
    assert told.troubles.templates.since is None


def test_settings_are_in_trouble_until_they_are_taken() -> None:
    told = Told(Reloaded(0.0, ("a", "b"), ()), Reloaded(0.0, ("c",), ()))
    assert (told.troubles.reload.since, told.troubles.problems, told.troubles.reloaded_at) == (0, ("c",), None)
    told.observe(Reloaded(0.0, (), ("upstream",)))
    assert (told.troubles.reload.since, told.troubles.problems) == (None, ())
    assert (told.troubles.reloaded_at, told.troubles.restart) == (1, ("upstream",))


def test_the_changes_of_each_circuit_are_kept_in_order_and_bounded() -> None:
    told = Told(BreakerChanged("redis", "open"))
    for n in range(MOST_TRANSITIONS + 1):
        told.clock.advance(1)
        told.observe(BreakerChanged("upstream", "closed" if n % 2 else "open"))
    assert list(told.troubles.transitions["redis"]) == [(0, "open")]
    upstream = told.troubles.transitions["upstream"]
    assert (len(upstream), upstream[-1]) == (MOST_TRANSITIONS, (MOST_TRANSITIONS + 1, "open"))


def test_trial_calls_that_fail_for_hours_do_not_make_it_forget_when_the_circuit_opened() -> None:
    told = Told(BreakerChanged("upstream", "open"))
    for _ in range(2 * MOST_TRANSITIONS):
        told.clock.advance(10)
        told.observe(BreakerChanged("upstream", "half-open"))
        told.observe(BreakerChanged("upstream", "open"))
    upstream = told.troubles.transitions["upstream"]
    assert len(upstream) <= MOST_TRANSITIONS
    assert [*upstream][:1] == [(0, "open")]
    states = [to for _, to in upstream]
    assert (set(states[::2]), set(states[1::2])) == ({"open"}, {"half-open"})
    assert upstream[-1][0] == 10 * 2 * MOST_TRANSITIONS


def test_parity_is_counted_by_node_and_a_rollback_has_its_time() -> None:
    told = Told(ParityChecked("quiz", "match"), ParityChecked("quiz", "mismatch"), ParityChecked(None, "match"))
    told.observe(RolledBack("quiz", back=True, reason="parity"))
    quiz = told.troubles.parity["quiz"]
    assert (dict(quiz.results), quiz.set_aside_at) == ({"match": 1, "mismatch": 1}, 2)
    told.observe(RolledBack("quiz", back=False, reason="reset"))
    assert quiz.set_aside_at is None
    assert told.troubles.parity.keys() == {"quiz", "other"}
