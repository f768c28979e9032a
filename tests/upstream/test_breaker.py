"""The circuit breaker: pybreaker's counts and states, by a clock that only the tests move."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.errors import FailureKind, UpstreamFailure, Verdict
from sidecar.core.events import BreakerChanged, Event
from sidecar.upstream.breaker import TRIAL_RETRY_AFTER, Breaker, Permit
from tests.harness import ManualClock

FAIL_MAX, RESET_TIMEOUT, SUCCESS_THRESHOLD = 3, 10.0, 2
SUCCESS, FAILURE, NEUTRAL = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEUTRAL


class Circuit:
    """A breaker, its clock, and what it told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.breaker = Breaker(
            "upstream",
            fail_max=FAIL_MAX,
            reset_timeout=RESET_TIMEOUT,
            success_threshold=SUCCESS_THRESHOLD,
            clock=self.clock,
            observer=self.events.append,
        )

    @property
    def state(self) -> str:
        return self.breaker.state

    def call(self, *verdicts: Verdict) -> None:
        for verdict in verdicts:
            with self.breaker.permit() as permit:
                permit.tell(verdict)

    def fail(self, times: int = FAIL_MAX) -> None:
        self.call(*[FAILURE] * times)

    def half_opened(self) -> "Circuit":
        """Bring it to where its next call is a trial."""
        self.fail()
        self.clock.advance(RESET_TIMEOUT)
        self.call(NEUTRAL)
        assert self.state == "half-open"
        return self

    def permits(self) -> bool:
        return self.breaker.open_for() is None


def ends(permit: Permit, verdict: Verdict) -> None:
    """End the call of a permit that was taken before."""
    with permit:
        permit.tell(verdict)


@pytest.fixture
def circuit() -> Circuit:
    return Circuit()


# Closed


def test_a_new_circuit_is_closed_and_permits_any_number_at_once(circuit: Circuit) -> None:
    permits = [circuit.breaker.permit() for _ in range(50)]
    assert (circuit.state, circuit.breaker.open_for(), len(permits)) == ("closed", None, 50)


def test_so_many_failures_in_a_row_open_it_and_not_one_less(circuit: Circuit) -> None:
    circuit.fail(FAIL_MAX - 1)
    assert circuit.state == "closed"
    circuit.fail(1)
    assert circuit.state == "open"


def test_a_success_between_begins_the_count_again(circuit: Circuit) -> None:
    circuit.call(FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE)
    assert circuit.state == "closed"
    circuit.call(FAILURE)
    assert circuit.state == "open"


def test_a_neutral_outcome_neither_counts_nor_begins_the_count_again(circuit: Circuit) -> None:
    circuit.call(*[NEUTRAL] * 100)
    assert circuit.state == "closed"
    circuit.call(FAILURE, NEUTRAL, FAILURE, NEUTRAL, FAILURE)
    assert circuit.state == "open"


def test_calls_that_fail_at_the_same_time_count_each(circuit: Circuit) -> None:
    permits = [circuit.breaker.permit() for _ in range(FAIL_MAX)]
    for permit in permits:
        ends(permit, FAILURE)
    assert circuit.state == "open"


# Open


def test_open_it_permits_nothing_and_says_for_how_long(circuit: Circuit) -> None:
    circuit.fail()
    circuit.clock.advance(4)
    assert circuit.breaker.open_for() == 6
    with pytest.raises(UpstreamFailure) as caught:
        circuit.breaker.permit()
    assert (caught.value.kind, caught.value.retry_after) == (FailureKind.CIRCUIT_OPEN, 6)


@pytest.mark.parametrize(
    ("after", "open_for"),
    [
        pytest.param(0.0, 10.0, id="at once"),
        pytest.param(9.75, 0.25, id="just before"),
        pytest.param(10.0, None, id="in time"),
        pytest.param(1e6, None, id="long after"),
    ],
)
def test_the_time_left_counts_down_by_the_given_clock(circuit: Circuit, after: float, open_for: float | None) -> None:
    circuit.fail()
    circuit.clock.advance(after)
    assert circuit.breaker.open_for() == open_for


def test_no_other_clock_opens_it_again(circuit: Circuit) -> None:
    # The wall clock moves on by itself here and the given one stands still: what pybreaker compares does not count.
    circuit.fail()
    waits = {circuit.breaker.open_for() for _ in range(1000)}
    assert waits == {RESET_TIMEOUT}


# Half-open


def test_half_open_it_lets_one_of_fifty_through(circuit: Circuit) -> None:
    circuit.fail()
    circuit.clock.advance(RESET_TIMEOUT)
    permitted, refused = [], []
    for _ in range(50):
        try:
            permitted.append(circuit.breaker.permit())
        except UpstreamFailure as failure:
            refused.append(failure)
    assert (len(permitted), len(refused)) == (1, 49)
    assert {(failure.kind, failure.retry_after) for failure in refused} == {
        (FailureKind.CIRCUIT_OPEN, TRIAL_RETRY_AFTER)
    }
    assert circuit.breaker.open_for() == TRIAL_RETRY_AFTER


async def test_of_fifty_tasks_that_wait_for_their_calls_one_goes_through(circuit: Circuit) -> None:
    circuit.half_opened()
    out = asyncio.Event()

    async def call() -> None:
        with circuit.breaker.permit():
            await out.wait()

    calls = [asyncio.ensure_future(call()) for _ in range(50)]
    await asyncio.sleep(0)
    out.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, UpstreamFailure) for result in results) == 49


def succeed(breaker: Breaker) -> None:
    with breaker.permit() as permit:
        permit.tell(SUCCESS)


def say_nothing(breaker: Breaker) -> None:
    with breaker.permit():
        pass


def raise_within(error: type[BaseException]) -> Callable[[Breaker], None]:
    def run(breaker: Breaker) -> None:
        with pytest.raises(error), breaker.permit():
            raise error

    return run


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(succeed, id="success"),
        pytest.param(say_nothing, id="no verdict"),
        pytest.param(raise_within(ValueError), id="an exception"),
        pytest.param(raise_within(asyncio.CancelledError), id="a cancellation"),
        pytest.param(raise_within(GeneratorExit), id="a closed generator"),
        pytest.param(raise_within(KeyboardInterrupt), id="an interrupt"),
    ],
)
def test_the_trial_is_given_back_on_each_path_that_leaves_it_half_open(circuit: Circuit, trial: Any) -> None:
    circuit.half_opened()
    trial(circuit.breaker)
    assert circuit.state == "half-open"
    assert circuit.permits()


def test_the_trial_is_given_back_by_a_failure_too(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.fail(1)
    circuit.clock.advance(RESET_TIMEOUT)
    assert circuit.permits()


async def test_cancelling_the_trial_says_nothing_and_gives_it_back(circuit: Circuit) -> None:
    circuit.half_opened()

    async def hang() -> None:
        with circuit.breaker.permit():
            await asyncio.Event().wait()

    trial = asyncio.ensure_future(hang())
    await asyncio.sleep(0)
    assert not circuit.permits()
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert (circuit.state, circuit.permits()) == ("half-open", True)


async def test_cancelling_calls_never_opens_a_closed_circuit(circuit: Circuit) -> None:
    async def hang() -> None:
        with circuit.breaker.permit():
            await asyncio.Event().wait()

    calls = [asyncio.ensure_future(hang()) for _ in range(50)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert circuit.state == "closed"


def test_so_many_successes_in_a_row_close_it_and_not_one_less(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.call(*[SUCCESS] * (SUCCESS_THRESHOLD - 1))
    assert circuit.state == "half-open"
    circuit.call(SUCCESS)
    assert circuit.state == "closed"


def test_a_failure_begins_the_count_of_successes_again(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.call(SUCCESS, FAILURE)
    circuit.clock.advance(RESET_TIMEOUT)
    circuit.call(SUCCESS)
    assert circuit.state == "half-open"


def test_a_neutral_trial_neither_closes_it_nor_begins_the_count_of_successes_again(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.call(*[NEUTRAL] * 10, SUCCESS, NEUTRAL)
    assert circuit.state == "half-open"
    circuit.call(SUCCESS)
    assert circuit.state == "closed"


def test_one_failed_trial_opens_it_again_and_the_time_begins_anew(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.clock.advance(123)
    circuit.call(FAILURE)
    assert (circuit.state, circuit.breaker.open_for()) == ("open", RESET_TIMEOUT)


def test_once_closed_it_opens_only_after_as_many_failures_as_before(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.call(SUCCESS, SUCCESS)
    circuit.fail(FAIL_MAX - 1)
    assert circuit.state == "closed"


# Late outcomes: of calls that began in an earlier state


@pytest.mark.parametrize("verdict", Verdict)
def test_a_late_outcome_neither_prolongs_nor_ends_an_open_circuit(circuit: Circuit, verdict: Verdict) -> None:
    late = circuit.breaker.permit()
    circuit.fail()
    circuit.clock.advance(6)
    ends(late, verdict)
    assert (circuit.state, circuit.breaker.open_for()) == ("open", 4)


@pytest.mark.parametrize("verdict", Verdict)
def test_late_outcomes_neither_close_nor_open_a_half_open_circuit(circuit: Circuit, verdict: Verdict) -> None:
    late = [circuit.breaker.permit() for _ in range(20)]
    circuit.half_opened()
    for permit in late:
        ends(permit, verdict)
    assert circuit.state == "half-open"


def test_a_late_outcome_does_not_give_back_anothers_trial(circuit: Circuit) -> None:
    late = circuit.breaker.permit()
    circuit.half_opened()
    trial = circuit.breaker.permit()
    ends(late, NEUTRAL)
    assert not circuit.permits()
    ends(trial, NEUTRAL)
    assert circuit.permits()


def test_late_failures_do_not_open_a_circuit_that_has_closed_since(circuit: Circuit) -> None:
    late = [circuit.breaker.permit() for _ in range(20)]
    circuit.half_opened()
    circuit.call(SUCCESS, SUCCESS)
    for permit in late:
        ends(permit, FAILURE)
    assert circuit.state == "closed"


# Telling


def test_each_change_is_told_once(circuit: Circuit) -> None:
    circuit.half_opened()
    circuit.fail(1)
    circuit.clock.advance(RESET_TIMEOUT)
    circuit.call(SUCCESS, SUCCESS)
    assert circuit.events == [
        BreakerChanged("upstream", to) for to in ("open", "half-open", "open", "half-open", "closed")
    ]


def test_what_is_told_last_counts(circuit: Circuit) -> None:
    for _ in range(FAIL_MAX):
        with circuit.breaker.permit() as permit:
            permit.tell(FAILURE)
            permit.tell(NEUTRAL)
    assert circuit.state == "closed"


def some_are_out(machine: "CircuitMachine") -> bool:
    return bool(machine.out)


class CircuitMachine(RuleBasedStateMachine):
    """Any order of calls, outcomes and time, against the rules written down once more in plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.out: list[tuple[Permit, int, bool]] = []
        self.state = "closed"
        self.era = 0
        self.failures = self.successes = 0
        self.opened_at = 0.0

    def to(self, state: str) -> None:
        self.state, self.era, self.failures, self.successes = state, self.era + 1, 0, 0
        if state == "open":
            self.opened_at = self.circuit.clock()

    @property
    def trials_out(self) -> int:
        return sum(trial for _, era, trial in self.out if era == self.era)

    @property
    def due(self) -> bool:
        return self.circuit.clock() >= self.opened_at + RESET_TIMEOUT

    @rule()
    def ask(self) -> None:
        may = {"closed": True, "open": self.due, "half-open": not self.trials_out}[self.state]
        try:
            permit = self.circuit.breaker.permit()
        except UpstreamFailure:
            assert not may
            return
        assert may
        if self.state == "open":
            self.to("half-open")
        self.out.append((permit, self.era, self.state == "half-open"))

    @precondition(some_are_out)
    @rule(which=st.integers(0, 1 << 16), verdict=st.sampled_from(Verdict))
    def end(self, which: int, verdict: Verdict) -> None:
        permit, era, _ = self.out.pop(which % len(self.out))
        ends(permit, verdict)
        if era != self.era or verdict is NEUTRAL:
            return
        if verdict is SUCCESS:
            self.failures, self.successes = 0, self.successes + 1
            if self.state == "half-open" and self.successes == SUCCESS_THRESHOLD:
                self.to("closed")
        else:
            self.failures += 1
            if self.state == "half-open" or self.failures == FAIL_MAX:
                self.to("open")

    @precondition(some_are_out)
    @rule(which=st.integers(0, 1 << 16), error=st.sampled_from([ValueError, asyncio.CancelledError]))
    def abandon(self, which: int, error: type[BaseException]) -> None:
        permit, _, _ = self.out.pop(which % len(self.out))
        with pytest.raises(error), permit:
            raise error

    @rule(seconds=st.sampled_from([0.0, 0.5, 9.5, RESET_TIMEOUT, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.circuit.clock.advance(seconds)

    @invariant()
    def it_is_in_the_state_that_the_rules_say(self) -> None:
        assert self.circuit.state == self.state

    @invariant()
    def at_most_one_trial_is_out(self) -> None:
        assert self.trials_out <= 1

    @invariant()
    def open_it_permits_nothing_before_its_time(self) -> None:
        if self.state == "open" and not self.due:
            assert self.circuit.breaker.open_for() == self.opened_at + RESET_TIMEOUT - self.circuit.clock()

    @invariant()
    def it_says_that_a_call_may_go_out_exactly_where_it_may(self) -> None:
        may = {"closed": True, "open": self.due, "half-open": not self.trials_out}[self.state]
        assert self.circuit.permits() is may

    def teardown(self) -> None:
        """Whatever happened, it recovers: no permit has leaked."""
        while self.out:
            self.end(0, NEUTRAL)
        self.circuit.clock.advance(RESET_TIMEOUT)
        self.circuit.call(*[SUCCESS] * SUCCESS_THRESHOLD)
        assert self.circuit.state == "closed"


TestAnyOrderOfCalls = CircuitMachine.TestCase
TestAnyOrderOfCalls.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Held by hand


def test_held_open_nothing_goes_out_not_even_a_trial_and_later_it_is_due() -> None:
    circuit = Circuit()
    circuit.breaker.force("open", 60.0)
    assert circuit.state == "open"
    circuit.clock.advance(RESET_TIMEOUT + 1)
    assert circuit.breaker.open_for() == pytest.approx(60.0 - RESET_TIMEOUT - 1)
    with pytest.raises(UpstreamFailure, match="held open") as refused:
        circuit.breaker.permit()
    assert refused.value.kind is FailureKind.CIRCUIT_OPEN
    circuit.clock.advance(60.0)
    assert circuit.breaker.forced is None
    circuit.call(SUCCESS)
    assert circuit.state == "half-open"


def test_held_closed_no_failure_opens_it_and_later_they_count_anew() -> None:
    circuit = Circuit()
    circuit.fail()
    circuit.breaker.force("closed", 60.0)
    assert circuit.state == "closed"
    circuit.fail(10 * FAIL_MAX)
    assert circuit.state == "closed"
    circuit.clock.advance(60.0)
    circuit.fail()
    assert circuit.state == "open"


def test_let_go_an_open_one_is_due_for_a_trial_call_at_once() -> None:
    circuit = Circuit()
    circuit.breaker.force("open", 60.0)
    circuit.breaker.force("auto", 1.0)
    assert (circuit.breaker.forced, circuit.permits()) == (None, True)
    circuit.call(*[SUCCESS] * SUCCESS_THRESHOLD)
    assert circuit.state == "closed"


def test_one_that_nobody_holds_is_not_changed_by_letting_go() -> None:
    circuit = Circuit()
    circuit.fail()
    circuit.breaker.force("auto", 1.0)
    assert (circuit.state, circuit.permits()) == ("open", False)


def test_a_call_from_before_it_was_held_says_nothing() -> None:
    circuit = Circuit()
    permit = circuit.breaker.permit()
    circuit.breaker.force("open", 60.0)
    ends(permit, SUCCESS)
    assert circuit.state == "open"
