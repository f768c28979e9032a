"""deadline > retry > breaker, asked on every attempt; a bulkhead bounds what is out at the upstream."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from sidecar.core.errors import FailureKind, UpstreamFailure, Verdict
from sidecar.core.events import Retried, UpstreamAttempt
from sidecar.core.model import Kept, Key
from sidecar.core.retry import RetryBudget, RetryRule, Rng, next_delay
from sidecar.service.ports import Clock, Observer
from sidecar.upstream.attempt_spans import AttemptSpans
from sidecar.upstream.breaker import Breaker

NOT_ASKED = frozenset({FailureKind.CIRCUIT_OPEN, FailureKind.DEADLINE})
"""Failures of ours, before an attempt began: they say less than the failure of the attempt before."""

T = TypeVar("T")
K_contra = TypeVar("K_contra", bound=Key, contravariant=True)
K = TypeVar("K", bound=Key)
V = TypeVar("V", bound=Kept)


class Confirmation(NamedTuple, Generic[T]):
    """What a call brought, and the instant before the request that brought or confirmed it was sent."""

    document: T
    confirmed_at: float


class Attempt(Protocol[K_contra, V]):
    """One call to the upstream, unguarded."""

    @property
    def endpoint(self) -> str:
        """Its name in telemetry."""
        ...

    async def fetch(self, key: K_contra, known: V | None, authorization: str | None) -> V:
        """Bring the document; returns `known` itself after a 304. Raises `UpstreamFailure`.

        `authorization`: in whose name; None: in the sidecar's own.
        """
        ...


class Bulkhead:
    """How many calls may be out at once."""

    def __init__(self, size: int) -> None:
        self._places = asyncio.Semaphore(size)
        self._size = size
        self._taken = 0

    @property
    def is_half_empty(self) -> bool:
        """Whether at least half of the places are free."""
        return self._taken * 2 <= self._size and not self._places.locked()

    async def take(self, timeout_seconds: float) -> None:
        """Take a place; raises `TimeoutError` where none is free in time."""
        async with asyncio.timeout(max(0.0, timeout_seconds)):
            await self._places.acquire()
        self._taken += 1

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._places.release()


class GuardRules(NamedTuple):
    """What a call is guarded by, from its beginning to its end; seconds."""

    bulkhead: Bulkhead
    retry: RetryRule
    budget: RetryBudget
    per_try_timeout: float
    max_quiet: float


class Guard:
    """Call the upstream inside a deadline, whatever it does; one for all endpoints of one service."""

    def __init__(
        self,
        rules: GuardRules,
        *,
        breaker: Breaker,
        clock: Clock,
        rng: Rng,
        observer: Observer,
        spans: AttemptSpans | None = None,
    ) -> None:
        self._rules = rules
        self._breaker = breaker
        self._clock = clock
        self._rng = rng
        self._observe = observer
        self._spans = spans or AttemptSpans()
        self._quiet_until = -math.inf
        self._proven = False

    def adopt(self, rules: GuardRules) -> None:
        """Guard by other rules the calls that begin from now on; a new bulkhead knows of none that are out already."""
        self._rules = rules

    def circuit_open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        quiet_for = self._quiet_until - self._clock()
        return quiet_for if quiet_for > 0 else self._breaker.open_for()

    def is_proven(self) -> bool:
        """Return whether the upstream has answered since this process began."""
        return self._proven

    def has_room(self, *, trial: bool = False) -> bool:
        """Return whether a call that nobody waits for may go out: the circuit is closed and the bulkhead half empty.

        `trial`: also while the circuit is not closed, if it is due for a call that may close it.
        """
        is_closed = trial or self._breaker.is_closed
        return self.circuit_open_for() is None and is_closed and self._rules.bulkhead.is_half_empty

    async def call(
        self,
        endpoint: str,
        attempt: Callable[[], Awaitable[T]],
        deadline_at: float,
        *,
        once: bool = False,
        known: object = None,
        per_try_timeout: float | None = None,
    ) -> Confirmation[T]:
        """Return what the attempt brings before `deadline_at`; raises the last attempt's `UpstreamFailure`.

        `once`: neither retried nor counted for the upstream's health; `known`: the result that means "not modified";
        `per_try_timeout`: seconds, where an attempt takes longer than others.
        """
        rules = self._rules
        if per_try_timeout is not None:
            rules = rules._replace(per_try_timeout=per_try_timeout)
        rules.budget.deposit()
        attempts = 0
        last: UpstreamFailure | None = None
        while True:
            attempts += 1
            try:
                return await self._once(
                    endpoint, attempt, deadline_at, known, rules, counts=not once, resend_count=attempts - 1
                )
            except UpstreamFailure as failure:
                if last is not None and failure.kind in NOT_ASKED:
                    raise last from None
                if not failure.rule.retry:
                    raise
                if failure.kind is FailureKind.TOO_MANY_REQUESTS and failure.retry_after is not None:
                    # Said to us as a whole, so it holds for all keys; as long at most as a circuit would stay open.
                    self._quiet_until = self._clock() + min(failure.retry_after, rules.max_quiet)
                delay = next_delay(
                    rules.retry,
                    attempt=attempts,
                    remaining=deadline_at - self._clock(),
                    retry_after=failure.retry_after,
                    rng=self._rng,
                )
                if once or delay is None or self._breaker.open_for() is not None or not rules.budget.withdraw():
                    raise
                self._observe(Retried(failure.kind))
                last = failure
            await asyncio.sleep(delay)

    async def _once(
        self,
        endpoint: str,
        attempt: Callable[[], Awaitable[T]],
        deadline_at: float,
        known: object,
        rules: GuardRules,
        *,
        counts: bool,
        resend_count: int,
    ) -> Confirmation[T]:
        async with self._slot(rules.bulkhead, deadline_at):
            remaining = deadline_at - self._clock()
            if remaining < rules.retry.min_attempt:
                raise _too_late()
            quiet_for = self._quiet_until - self._clock()
            if quiet_for > 0:
                raise UpstreamFailure(
                    FailureKind.CIRCUIT_OPEN, "the config service asked to be left alone (429)", retry_after=quiet_for
                )
            with self._breaker.permit() as permit, self._spans.of(endpoint, resend_count):
                sent_at = self._clock()
                patience = min(rules.per_try_timeout, remaining)
                result = "crashed"
                verdict = Verdict.NEUTRAL
                try:
                    async with asyncio.timeout(patience):
                        document = await attempt()
                    verdict = Verdict.SUCCESS
                    result = "not_modified" if known is not None and document is known else "ok"
                except asyncio.CancelledError:
                    result = FailureKind.CANCELLED.value
                    raise
                except TimeoutError as error:
                    # An attempt cut short by the deadline says little of the upstream's health.
                    verdict = Verdict.FAILURE if patience * 2 >= rules.per_try_timeout else Verdict.NEUTRAL
                    result = FailureKind.READ_TIMEOUT.value
                    raise UpstreamFailure(
                        FailureKind.READ_TIMEOUT, "the config service did not answer in time"
                    ) from error
                except UpstreamFailure as failure:
                    verdict = failure.rule.verdict
                    result = failure.kind.value
                    raise
                finally:
                    self._proven |= verdict is Verdict.SUCCESS
                    permit.tell(verdict if counts else Verdict.NEUTRAL)
                    self._observe(UpstreamAttempt(endpoint, result, self._clock() - sent_at))
        return Confirmation(document, sent_at)

    @asynccontextmanager
    async def _slot(self, bulkhead: Bulkhead, deadline_at: float) -> AsyncIterator[None]:
        """Hold one of the bulkhead's places; waiting for it counts against the deadline."""
        try:
            await bulkhead.take(deadline_at - self._clock())
        except TimeoutError as error:
            raise _too_late() from error
        try:
            yield
        finally:
            bulkhead.give_back()


class GuardedSource(Generic[K, V]):
    """Fetch documents of one kind through the guard."""

    def __init__(self, guard: Guard, attempt: Attempt[K, V]) -> None:
        self._guard = guard
        self._attempt = attempt
        self.circuit_open_for = guard.circuit_open_for
        self.is_proven = guard.is_proven

    @property
    def endpoint(self) -> str:
        """Its name in telemetry."""
        return self._attempt.endpoint

    async def fetch(
        self, key: K, known: V | None, deadline_at: float, authorization: str | None = None
    ) -> Confirmation[V]:
        """Bring the key's document before `deadline_at`; raises the last attempt's `UpstreamFailure`."""
        attempt = partial(self._attempt.fetch, key, known, authorization)
        return await self._guard.call(self._attempt.endpoint, attempt, deadline_at, known=known)


def _too_late() -> UpstreamFailure:
    return UpstreamFailure(FailureKind.DEADLINE, "the deadline ran out before the config service could be asked")
