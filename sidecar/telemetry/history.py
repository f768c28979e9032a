"""The last hour's requests, minute by minute and by node, as the status page shows them; bounded, whatever is asked."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from sidecar.core.events import FreshHit, Outcome, RequestOutcome
from sidecar.service.ports import Clock
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.request_metrics import BATCH, COVERING, OTHER
from sidecar.telemetry.stale_ends import StaleEnds

SLOT_SECONDS = 60.0
SLOTS = 60
RECENT_SLOTS = 2
"""What counts as now: the minute that runs and the one before, so that a quiet sidecar has something to say."""
LATENCY_BOUNDS = tuple(0.00001 * 10 ** (n / 8) for n in range(48))
"""Seconds, from 0.01 ms to 7.5 s: eight to a decade, so that a quantile is within 15 % of the truth."""
_SERVER_ERROR = 500


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


FRESH, COVERED, FAILED = (Counts._fields.index(name) for name in ("fresh", "covered", "failed"))
PLACES = {outcome: Counts._fields.index(outcome.value) for outcome in Outcome}


class Minute(NamedTuple):
    """One slot of the history; `began_at`: the clock's instant."""

    began_at: float
    counts: Counts
    quantiles: tuple[float, float, float]
    """Seconds: p50, p95, p99."""


class NodeHistory(NamedTuple):
    """One node: the last hour's counts, and its last answer; instants are the clock's."""

    node: str
    counts: Counts
    recent: Counts
    last_at: float
    last_outcome: Outcome
    age: float | None
    """Seconds since the upstream confirmed what was served last, when it was."""
    covered_since: float | None
    cover_left: float | None
    """Seconds until the policy ends the use of the oldest stale data that was served of late."""


@dataclass(slots=True)
class _Slot:
    number: int
    nodes: dict[str, list[int]] = field(default_factory=dict)
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))


Last = tuple[float, RequestOutcome]
"""When, and what."""


class RequestHistory:
    """Listens to requests: an instant and an append each; they are counted in batches, or when someone looks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: list[tuple[float, RequestOutcome]] = []
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)
        self._turns_at = -math.inf
        self._served: dict[str, Last] = {}
        self._refused: dict[str, Last] = {}
        self._ends = StaleEnds()
        self._covered_since: dict[str, float] = {}

    def handlers(self) -> Handlers:
        """Return what is noted of each event."""
        return {FreshHit: self.add, RequestOutcome: self.add}

    def add(self, outcome: RequestOutcome) -> None:
        """Note a request."""
        pending = self._pending
        pending.append((self._clock(), outcome))
        if len(pending) >= BATCH:
            self._count()

    def minutes(self) -> list[Minute]:
        """Return the last hour's minutes in which something was asked, oldest first."""
        return [
            Minute(slot.number * SLOT_SECONDS, _summed(slot.nodes.values()), quantiles(slot.latency))
            for slot in self._kept(SLOTS)
        ]

    def quantiles(self) -> tuple[float, float, float]:
        """Return p50, p95 and p99 of the last hour; seconds."""
        kept = [slot.latency for slot in self._kept(SLOTS)]
        return quantiles([sum(each) for each in zip(*kept, strict=True)])

    def recent(self) -> Counts:
        """Return the counts of the last minute or two."""
        return _summed(counts for slot in self._kept(RECENT_SLOTS) for counts in slot.nodes.values())

    def nodes(self) -> list[NodeHistory]:
        """Return the nodes in the order of their names."""
        now, kept, recent = self._clock(), [*self._kept(SLOTS)], [*self._kept(RECENT_SLOTS)]
        left = self._ends.left(now)
        found = []
        for name in sorted(self._served.keys() | self._refused.keys()):
            served = self._served.get(name)
            at, last = max((each[name] for each in (self._served, self._refused) if name in each), key=itemgetter(0))
            found.append(
                NodeHistory(
                    name,
                    _of(name, kept),
                    _of(name, recent),
                    at,
                    last.outcome,
                    served[1].age if served else None,
                    self._covered_since[name] if name in left else None,
                    left.get(name),
                )
            )
        return found

    def _kept(self, slots: int) -> Iterator[_Slot]:
        self._count()
        first = int(self._clock() // SLOT_SECONDS) - slots + 1
        return (slot for slot in self._slots if slot.number >= first)

    def _count(self) -> None:
        for at, outcome in self._pending:
            if at >= self._turns_at:
                self._turn(at)
            name, slot = outcome.node or OTHER, self._slots[-1]
            counts = slot.nodes.get(name) or slot.nodes.setdefault(name, [0] * len(Counts._fields))
            slot.latency[bisect_left(LATENCY_BOUNDS, outcome.seconds)] += 1
            if outcome.outcome is Outcome.FRESH:
                counts[FRESH] += 1
                self._served[name] = (at, outcome)
            else:
                self._count_uncommon(name, at, outcome, counts)
        self._pending.clear()

    def _turn(self, at: float) -> None:
        number = int(at // SLOT_SECONDS)
        self._slots.append(_Slot(number))
        self._turns_at = (number + 1) * SLOT_SECONDS

    def _count_uncommon(self, name: str, at: float, outcome: RequestOutcome, counts: list[int]) -> None:
        counts[PLACES[outcome.outcome]] += 1
        match outcome.outcome:
            case Outcome.ERROR:
                counts[FAILED] += outcome.status >= _SERVER_ERROR
                self._refused[name] = (at, outcome)
                return
            case Outcome.STALE if outcome.detail in COVERING and outcome.usable_until is not None:
                counts[COVERED] += 1
                if name not in self._ends.left(at):
                    self._covered_since[name] = at
                self._ends.note(name, outcome.usable_until, at)
            case Outcome.MISS:
                self._ends.forget(name)
        self._served[name] = (at, outcome)


def _of(node: str, slots: Iterable[_Slot]) -> Counts:
    return _summed(slot.nodes[node] for slot in slots if node in slot.nodes)


def _summed(rows: Iterable[list[int]]) -> Counts:
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
