"""deadline > retry > breaker, asked on every attempt; a bulkhead bounds what is out at the upstream."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from sidecar.core.errors import FailureKind, UpstreamFailure, Verdict
from sidecar.core.events import Retried, UpstreamAttempt
from sidecar.core.model import Document, PromptKey
from sidecar.core.retry import RetryBudget, RetryRule, Rng, next_delay
from sidecar.service.ports import Clock, Observer
from sidecar.upstream.breaker import Breaker

NOT_ASKED = frozenset({FailureKind.CIRCUIT_OPEN, FailureKind.DEADLINE})
"""Failures of ours, before an attempt began: they say less than the failure of the attempt before."""


class Confirmation(NamedTuple):
    """A document, and the instant before the request that brought or confirmed it was sent."""

    document: Document
    confirmed_at: float


class Attempt(Protocol):
    """One call to the upstream, unguarded."""

    endpoint: str

    async def fetch(self, key: PromptKey, known: Document | None) -> Document:
        """Bring the document; returns `known` itself after a 304. Raises `UpstreamFailure`."""
        ...


class GuardedSource:
    """Fetch inside a deadline, whatever the upstream does."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        breaker: Breaker,
        bulkhead: asyncio.Semaphore,
        rule: RetryRule,
        budget: RetryBudget,
        per_try_timeout: float,
        clock: Clock,
        rng: Rng,
        observer: Observer,
        max_quiet: float,
    ) -> None:
        self._attempt = attempt
        self._breaker = breaker
        self._bulkhead = bulkhead
        self._rule = rule
        self._budget = budget
        self._per_try_timeout = per_try_timeout
        self._clock = clock
        self._rng = rng
        self._observe = observer
        self._max_quiet = max_quiet
        self._quiet_until = -math.inf

    def circuit_open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        quiet_for = self._quiet_until - self._clock()
        return quiet_for if quiet_for > 0 else self._breaker.open_for()

    async def fetch(self, key: PromptKey, known: Document | None, deadline_at: float) -> Confirmation:
        """Bring the key's document before `deadline_at`; raises the last attempt's `UpstreamFailure`."""
        self._budget.deposit()
        attempts = 0
        last: UpstreamFailure | None = None
        while True:
            attempts += 1
            try:
                return await self._once(key, known, deadline_at)
            except UpstreamFailure as failure:
                if last is not None and failure.kind in NOT_ASKED:
                    raise last from None
                if not failure.rule.retry:
                    raise
                if failure.kind is FailureKind.TOO_MANY_REQUESTS and failure.retry_after is not None:
                    # Said to us as a whole, so it holds for all keys; as long at most as a circuit would stay open.
                    self._quiet_until = self._clock() + min(failure.retry_after, self._max_quiet)
                delay = next_delay(
                    self._rule,
                    attempt=attempts,
                    remaining=deadline_at - self._clock(),
                    retry_after=failure.retry_after,
                    rng=self._rng,
                )
                if delay is None or self._breaker.open_for() is not None or not self._budget.withdraw():
                    raise
                self._observe(Retried(failure.kind))
                last = failure
            await asyncio.sleep(delay)

    async def _once(self, key: PromptKey, known: Document | None, deadline_at: float) -> Confirmation:
        async with self._slot(deadline_at):
            remaining = deadline_at - self._clock()
            if remaining < self._rule.min_attempt:
                raise _too_late()
            quiet_for = self._quiet_until - self._clock()
            if quiet_for > 0:
                raise UpstreamFailure(
                    FailureKind.CIRCUIT_OPEN, "the config service asked to be left alone (429)", retry_after=quiet_for
                )
            with self._breaker.permit() as permit:
                sent_at = self._clock()
                patience = min(self._per_try_timeout, remaining)
                result = "crashed"
                try:
                    async with asyncio.timeout(patience):
                        document = await self._attempt.fetch(key, known)
                    permit.tell(Verdict.SUCCESS)
                    result = "not_modified" if document is known else "ok"
                except asyncio.CancelledError:
                    result = FailureKind.CANCELLED.value
                    raise
                except TimeoutError as error:
                    # An attempt cut short by the deadline says little of the upstream's health.
                    permit.tell(Verdict.FAILURE if patience * 2 >= self._per_try_timeout else Verdict.NEUTRAL)
                    result = FailureKind.READ_TIMEOUT.value
                    raise UpstreamFailure(
                        FailureKind.READ_TIMEOUT, "the config service did not answer in time"
                    ) from error
                except UpstreamFailure as failure:
                    permit.tell(failure.rule.verdict)
                    result = failure.kind.value
                    raise
                finally:
                    self._observe(UpstreamAttempt(self._attempt.endpoint, result, self._clock() - sent_at))
        return Confirmation(document, sent_at)

    @asynccontextmanager
    async def _slot(self, deadline_at: float) -> AsyncIterator[None]:
        """Hold one of the bulkhead's places; waiting for it counts against the deadline."""
        try:
            async with asyncio.timeout(max(0.0, deadline_at - self._clock())):
                await self._bulkhead.acquire()
        except TimeoutError as error:
            raise _too_late() from error
        try:
            yield
        finally:
            self._bulkhead.release()


def _too_late() -> UpstreamFailure:
    return UpstreamFailure(FailureKind.DEADLINE, "the deadline ran out before the config service could be asked")
