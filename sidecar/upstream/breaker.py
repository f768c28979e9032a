"""pybreaker, asked before and told after; one trial call in half-open.

pybreaker knows no asyncio (measured with 1.4.1): held across an await it lets every waiting call through in half-open,
lets late failures prolong an open circuit, takes cancellation for a failure, and compares wall-clock times. So it is
never held across an await: it counts and holds the state; when to try again, who may try, and whose outcome still
counts is decided here, by a monotonic clock.
"""

import contextlib
from types import TracebackType
from typing import Any, NoReturn, Self

import pybreaker

from sidecar.core.errors import FailureKind, UpstreamFailure, Verdict
from sidecar.core.events import BreakerChanged
from sidecar.service.ports import Clock, Observer

AUTO = "auto"
"""What a circuit is when nobody holds it."""
TRIAL_RETRY_AFTER = 1.0
"""Seconds to wait while another's trial call is out: about what an attempt takes."""


class _AttemptFailedError(Exception):
    """What pybreaker is told: that an attempt failed, not how."""


def _failed() -> NoReturn:
    raise _AttemptFailedError


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: "Breaker") -> None:
        self._breaker = breaker

    def state_change(self, cb: pybreaker.CircuitBreaker, old_state: Any, new_state: Any) -> None:  # noqa: ARG002 — its interface
        self._breaker.changed(new_state.name)


class Permit:
    """The right to make one call, given back on every path: leaving its block without a verdict is neutral."""

    __slots__ = ("_breaker", "_generation", "_told", "_trial")

    def __init__(self, breaker: "Breaker", generation: int, *, trial: bool) -> None:
        self._breaker = breaker
        self._generation = generation
        self._trial = trial
        self._told = Verdict.NEUTRAL

    def tell(self, verdict: Verdict) -> None:
        """Say how the call ended; what is said last counts."""
        self._told = verdict

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._breaker.done(self._told, self._generation, trial=self._trial)


class Breaker:
    """A circuit breaker for many concurrent calls.

    `fail_max` consecutive failures open it; after `reset_timeout` seconds one call at a time is tried, and
    `success_threshold` successes in a row close it. An outcome counts only in the state in which its call began.
    """

    def __init__(
        self,
        name: str,
        *,
        fail_max: int,
        reset_timeout: float,
        success_threshold: int,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._name = name
        self._clock = clock
        self._observe = observer
        self._reset_timeout = reset_timeout
        self._opened_at = 0.0
        self._generation = 0
        self._trial_out = False
        self._state: str = pybreaker.STATE_CLOSED
        self._forced: str | None = None
        self._forced_until = 0.0
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            listeners=[_Listener(self)],
            name=name,
        )

    def adopt(self, *, fail_max: int, reset_timeout: float, success_threshold: int) -> None:
        """Go by other numbers from now on; the state, and what was counted, stays."""
        self._reset_timeout = reset_timeout
        self._circuit.fail_max = fail_max
        self._circuit.reset_timeout = reset_timeout
        self._circuit.success_threshold = success_threshold

    def force(self, state: str, seconds: float) -> None:
        """Hold the circuit `open` or `closed` for a while, whatever calls say; `auto`: hold it no more.

        Held open, not even a trial call goes out; held closed, failures are not counted. Afterwards it is as any other:
        an open one is due for its trial call.
        """
        if state == AUTO and self._forced == pybreaker.STATE_OPEN:
            self._opened_at = -self._reset_timeout  # nobody knows how the upstream is: try
        self._forced = None if state == AUTO else state
        self._forced_until = self._clock() + seconds
        if state == pybreaker.STATE_OPEN and self._state != pybreaker.STATE_OPEN:
            self._circuit.open()
        elif state == pybreaker.STATE_CLOSED and not self.is_closed:
            self._circuit.close()

    @property
    def forced(self) -> tuple[str, float] | None:
        """The state in which it is held, and for how many seconds more."""
        left = self._forced_until - self._clock()
        return (self._forced, left) if self._forced is not None and left > 0 else None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Whether calls go out as usual."""
        return self._state == pybreaker.STATE_CLOSED

    def open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        state = self._state
        if state == pybreaker.STATE_CLOSED:
            return None
        if (forced := self.forced) is not None:
            return forced[1]
        if state == pybreaker.STATE_OPEN:
            left = self._opened_at + self._reset_timeout - self._clock()
            return left if left > 0 else None
        return TRIAL_RETRY_AFTER if self._trial_out else None

    def permit(self) -> Permit:
        """Return the right to make one call; raises `UpstreamFailure` (circuit_open) where there is none."""
        wait = self.open_for()
        if wait is not None:
            raise UpstreamFailure(
                FailureKind.CIRCUIT_OPEN,
                "the circuit to the config service is open after repeated failures"
                if self.forced is None
                else "the circuit to the config service is held open",
                retry_after=wait,
            )
        if self._state == pybreaker.STATE_OPEN:
            self._circuit.half_open()
        trial = self._state == pybreaker.STATE_HALF_OPEN
        if trial:
            self._trial_out = True
        return Permit(self, self._generation, trial=trial)

    def done(self, verdict: Verdict, generation: int, *, trial: bool) -> None:
        """Take a permit back, and its verdict if the state is still that in which the call began."""
        if generation != self._generation:
            return  # a call of an earlier state: its outcome says nothing of this one
        if trial:
            self._trial_out = False
        if verdict is Verdict.SUCCESS:
            self._circuit.call(lambda: None)
        elif verdict is Verdict.FAILURE and self.forced is None:
            with contextlib.suppress(_AttemptFailedError, pybreaker.CircuitBreakerError):
                self._circuit.call(_failed)

    def changed(self, to: str) -> None:
        """Note a transition of the circuit."""
        self._state = to
        self._generation += 1
        self._trial_out = False
        if to == pybreaker.STATE_OPEN:
            self._opened_at = self._clock()
        self._observe(BreakerChanged(self._name, to))
