"""Delays with full jitter that fit what is left of the deadline, and the budget that all retries share."""

from typing import NamedTuple, Protocol


class Rng(Protocol):
    """Where chance comes from; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number in [a, b]."""
        ...


class RetryRule(NamedTuple):
    """How often and how patiently to retry; seconds."""

    attempts: int
    """The first one included."""
    backoff: float
    max_backoff: float
    min_attempt: float
    """An attempt with less time than this left cannot end in time and is not begun."""


def next_delay(rule: RetryRule, *, attempt: int, remaining: float, retry_after: float | None, rng: Rng) -> float | None:
    """Return the seconds to wait before the next attempt, or None where there shall be none.

    `attempt`: how many were made; `remaining`: seconds to the deadline; `retry_after`: what the upstream asked for.
    Full jitter: uniform in [0, min(max_backoff, backoff * 2^(attempt-1))], on top of what the upstream asked for
    (AWS Architecture Blog, "Exponential Backoff And Jitter"; RFC 9110 §10.2.3).
    """
    if attempt >= rule.attempts:
        return None
    ceiling = min(rule.max_backoff, rule.backoff * 2.0 ** (attempt - 1))
    delay = (retry_after or 0.0) + rng.uniform(0.0, ceiling)
    return delay if delay + rule.min_attempt <= remaining else None


class RetryBudget:
    """Bound the retries of all keys together: a fraction of the fetches, and a small reserve.

    Each fetch pays in `ratio`, each retry takes out 1, and no more than `reserve` is ever saved up; so a storm of
    failures is answered with at most `reserve` + `ratio` * fetches retries, however many keys fail at once.
    """

    __slots__ = ("_ratio", "_reserve", "_tokens")

    def __init__(self, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._reserve = float(reserve)
        self._tokens = self._reserve

    def deposit(self) -> None:
        """Pay in for one fetch."""
        self._tokens = min(self._reserve, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Take out one retry, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
