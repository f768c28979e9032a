"""Delays with full jitter, and the budget."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.retry import RetryBudget, RetryRule, next_delay

RULE = RetryRule(attempts=3, backoff=0.1, max_backoff=1.0, min_attempt=0.05)


class Top:
    """Chance at its most."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0
        return b


@pytest.mark.parametrize(
    ("attempt", "delay"),
    [pytest.param(1, 0.1, id="after the first"), pytest.param(2, 0.2, id="after the second, doubled")],
)
def test_backoff_doubles(attempt: int, delay: float) -> None:
    assert next_delay(RULE, attempt=attempt, remaining=4, retry_after=None, rng=Top()) == pytest.approx(delay)


def test_backoff_is_capped() -> None:
    rule = RULE._replace(attempts=2000)
    assert next_delay(rule, attempt=1000, remaining=4, retry_after=None, rng=Top()) == 1.0


def test_no_more_attempts_than_the_rule_says() -> None:
    assert next_delay(RULE, attempt=3, remaining=4, retry_after=None, rng=Top()) is None


def test_retry_after_is_waited_for_in_full() -> None:
    assert next_delay(RULE, attempt=1, remaining=4, retry_after=2, rng=Top()) == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("remaining", "made"),
    [
        pytest.param(0.151, True, id="just fits"),
        pytest.param(0.1499, False, id="cannot end in time"),
        pytest.param(0.0, False, id="no time left"),
        pytest.param(-1.0, False, id="past the deadline"),
    ],
)
def test_an_attempt_that_cannot_end_in_time_is_not_made(remaining: float, made: bool) -> None:
    delay = next_delay(RULE, attempt=1, remaining=remaining, retry_after=None, rng=Top())
    assert (delay is not None) is made


def test_a_retry_after_beyond_the_deadline_ends_the_retries() -> None:
    assert next_delay(RULE, attempt=1, remaining=4, retry_after=30, rng=Top()) is None


@given(st.integers(1, 5), st.floats(0, 10), st.floats(0, 10) | st.none(), st.integers())
def test_jitter_stays_inside_its_bounds(attempt: int, remaining: float, retry_after: float | None, seed: int) -> None:
    rule = RULE._replace(attempts=6)
    delay = next_delay(rule, attempt=attempt, remaining=remaining, retry_after=retry_after, rng=random.Random(seed))
    if delay is not None:
        asked = retry_after or 0.0
        assert asked <= delay <= asked + 0.1 * 2 ** (attempt - 1)
        assert delay + rule.min_attempt <= remaining


def test_a_quiet_sidecar_may_spend_its_reserve() -> None:
    budget = RetryBudget(0.2, 3)
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]


def test_five_fetches_pay_for_one_retry() -> None:
    budget = RetryBudget(0.2, 1)
    assert budget.withdraw()
    for _ in range(4):
        budget.deposit()
        assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()


def test_no_more_than_the_reserve_is_saved_up() -> None:
    budget = RetryBudget(0.2, 2)
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
