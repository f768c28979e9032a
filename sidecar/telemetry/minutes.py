"""An hour's counts, minute by minute and by node; what is asked of them costs the same however much was counted."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

SLOT_SECONDS = 60.0
SLOTS = 60
RECENT_SLOTS = 2
"""What counts as now: the minute that runs and the one before, so that a quiet sidecar has something to say."""
LATENCY_BOUNDS = tuple(0.00001 * 10 ** (n / 8) for n in range(48))
"""Seconds, from 0.01 ms to 7.5 s: eight to a decade, so that a quantile is within 15 % of the truth."""


class Counts(NamedTuple):
    """How many requests ended how; the last two are those of `stale` and of `error` that an outage made so."""

    fresh: int = 0
    stale: int = 0
    miss: int = 0
    bypass: int = 0
    error: int = 0
    covered: int = 0
    """Stale, because the upstream gave no answer in time."""
    failed: int = 0
    """A 5xx: LearnFlow sees an outage."""

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.fresh + self.stale + self.miss + self.bypass + self.error

    @property
    def hit_ratio(self) -> float | None:
        """Return the share that needed no call, of what is answered from here; None: nothing was."""
        answered = self.fresh + self.stale + self.miss
        return self.fresh / answered if answered else None


class Minute(NamedTuple):
    """One slot of the history; `began_at`: the clock's instant."""

    began_at: float
    counts: Counts
    quantiles: tuple[float, float, float]
    """Seconds: p50, p95, p99."""


Rows = dict[str, list[int]]
"""By node: as many numbers as `Counts` has."""


@dataclass(slots=True)
class Slot:
    """A minute that is being counted."""

    number: int
    ends_at: float
    """The clock's instant at which the next one begins."""
    nodes: Rows = field(default_factory=dict)
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))

    def row(self, node: str) -> list[int]:
        """Return a node's counts, to be added to."""
        return self.nodes.setdefault(node, [0] * len(Counts._fields))

    def told(self) -> Minute:
        """Return it as it is now."""
        return Minute(self.number * SLOT_SECONDS, summed(self.nodes.values()), quantiles(self.latency))


class LastHour:
    """The slots of the last hour, and their sums: a slot is added when it is over and taken off when it is too old."""

    def __init__(self) -> None:
        self._over: deque[tuple[Slot, Minute]] = deque()
        self._running: Slot | None = None
        self._nodes: Rows = {}
        self._latency = [0] * (len(LATENCY_BOUNDS) + 1)

    def slot(self, at: float) -> Slot:
        """Return the slot of an instant, which is never before one that was asked for already."""
        slot = self._running
        if slot is None or at >= slot.ends_at:
            self.expire(at)
            if self._running is not None:
                self._over.append((self._running, self._running.told()))
                self._fold(self._running, 1)
            number = int(at // SLOT_SECONDS)
            slot = self._running = Slot(number, (number + 1) * SLOT_SECONDS)
        return slot

    def expire(self, now: float) -> None:
        """Take off what is older than an hour."""
        first = int(now // SLOT_SECONDS) - SLOTS + 1
        while self._over and self._over[0][0].number < first:
            self._fold(self._over.popleft()[0], -1)
        if self._running is not None and self._running.number < first:
            self._running = None

    def minutes(self) -> list[Minute]:
        """Return the minutes in which something was asked, oldest first."""
        return [told for _, told in self._over] + ([self._running.told()] if self._running else [])

    def quantiles(self) -> tuple[float, float, float]:
        """Return p50, p95 and p99; seconds."""
        running = self._running.latency if self._running else [0] * len(self._latency)
        return quantiles([a + b for a, b in zip(self._latency, running, strict=True)])

    def counts(self, node: str) -> Counts:
        """Return a node's counts."""
        running = self._running.nodes.get(node) if self._running else None
        return summed(row for row in (self._nodes.get(node), running) if row is not None)

    def recent(self, now: float) -> list[Slot]:
        """Return the slots that count as now."""
        first = int(now // SLOT_SECONDS) - RECENT_SLOTS + 1
        last = [slot for slot, _ in list(self._over)[-RECENT_SLOTS:]] + ([self._running] if self._running else [])
        return [slot for slot in last if slot.number >= first]

    def _fold(self, slot: Slot, sign: int) -> None:
        for node, row in slot.nodes.items():
            total = self._nodes.get(node) or [0] * len(row)
            self._nodes[node] = [a + sign * b for a, b in zip(total, row, strict=True)]
        self._latency = [a + sign * b for a, b in zip(self._latency, slot.latency, strict=True)]


def summed(rows: Iterable[Sequence[int]]) -> Counts:
    """Add counts up."""
    return Counts(*map(sum, zip(*rows, strict=True)))


def quantiles(counts: Sequence[int]) -> tuple[float, float, float]:
    """Return p50, p95 and p99 of counts by `LATENCY_BOUNDS`; 0 where there is nothing. Seconds."""
    return _quantile(counts, 0.5), _quantile(counts, 0.95), _quantile(counts, 0.99)


def _quantile(counts: Sequence[int], share: float) -> float:
    """Interpolate within the bucket in which the share is reached."""
    total = sum(counts)
    if not total:
        return 0.0
    rank = share * total
    place = bisect_left([*accumulate(counts)], rank)
    if place >= len(LATENCY_BOUNDS):
        return LATENCY_BOUNDS[-1]
    low = LATENCY_BOUNDS[place - 1] if place else 0.0
    before = sum(counts[:place])
    return low + (LATENCY_BOUNDS[place] - low) * (rank - before) / counts[place]
