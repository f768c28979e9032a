"""Warm-ups as jobs: one at a time, the others wait; their status is there to be asked for a while."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress

from sidecar.service.ports import Clock
from sidecar.service.warmup import Job, Pair, State, WarmUp, WarmUpRule

MOST_WAITING = 4
MOST_REMEMBERED = 32
TOLD = 20
"""Failures that a status shows one by one."""


class TooManyJobsError(Exception):
    """Enough jobs are waiting."""


class WarmJobs:
    """The jobs of one sidecar."""

    def __init__(self, warm_up: WarmUp, clock: Clock) -> None:
        self._warm_up = warm_up
        self._clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()

    def submit(self, pairs: AsyncIterator[Pair], total: int | None, rule: WarmUpRule) -> str:
        """Take a job, and return its number; raises `TooManyJobsError`."""
        if self._waiting.qsize() >= MOST_WAITING:
            raise TooManyJobsError
        number = secrets.token_hex(8)
        self._jobs[number] = Job(pairs, total, rule)
        while len(self._jobs) > MOST_REMEMBERED and next(iter(self._jobs.values())).ended.is_set():
            self._jobs.popitem(last=False)
        self._waiting.put_nowait(number)
        return number

    def get(self, number: str) -> Job | None:
        """Return a job, None where it is not known (any more)."""
        return self._jobs.get(number)

    @property
    def latest(self) -> Job | None:
        """The job that was taken last."""
        return next(reversed(self._jobs.values()), None)

    def cancel(self, number: str) -> bool:
        """End a job early; return False where it is not known."""
        job = self._jobs.get(number)
        if job is None:
            return False
        if number in self._tasks:
            self._tasks[number].cancel()
        elif not job.ended.is_set():
            job.state = State.CANCELLED
            job.ended.set()
        return True

    async def work(self) -> None:
        """Do one job after the other, for ever."""
        while True:
            number = await self._waiting.get()
            job = self._jobs[number]
            if job.ended.is_set():
                continue
            self._tasks[number] = task = asyncio.ensure_future(self._warm_up.run(job))
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                del self._tasks[number]

    def status(self, job: Job) -> dict[str, object]:
        """Return how far a job is, for people and machines."""
        now = job.ended_at if job.ended_at is not None else self._clock()
        seconds = now - job.began_at if job.began_at is not None else 0.0
        rate = job.done / seconds if seconds > 0 else 0.0
        left = max(0, job.total - job.done) if job.total is not None else None
        return {
            "state": job.state.value,
            "why": job.why,
            "total": job.total,
            "done": job.done,
            **job.results,
            "seconds": round(seconds, 3),
            "rate": round(rate, 1),
            "remaining_seconds": round(left / rate, 1)
            if rate and left is not None and not job.ended.is_set()
            else None,
            "reasons": dict(job.reasons),
            "failures": [each._asdict() for each in job.failures[:TOLD]],
        }


class Gate:
    """Holds readiness back while the start's warm-up is under way, for a limited time."""

    def __init__(self, job: Job, *, min_ratio: float, until: float, clock: Clock) -> None:
        """`until`: the instant at which the gate opens, whatever happened."""
        self._job = job
        self._min_ratio = min_ratio
        self._until = until
        self._clock = clock

    def closed(self) -> str | None:
        """Return why the sidecar is not ready yet; None: it is, as far as this goes."""
        job = self._job
        if self._min_ratio <= 0 or job.ended.is_set() or self._clock() >= self._until:
            return None
        warm = job.results["stored"] + job.results["fresh"] + job.results["duplicate"]
        if job.total is not None and warm >= self._min_ratio * job.total:
            return None
        known = "an unknown number" if job.total is None else f"{job.total:,}"
        left = max(0.0, self._until - self._clock())
        return (
            f"The sidecar is warming up: {warm:,} of {known} pairs; "
            f"ready at {self._min_ratio:.0%}, or in {left:.0f} s at the latest."
        )
