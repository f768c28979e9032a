"""The last hour's requests, as the status page shows them; bounded, whatever is asked."""

from bisect import bisect_left
from operator import itemgetter
from typing import NamedTuple

from sidecar.core.events import FreshHit, Outcome, RequestOutcome
from sidecar.service.ports import Clock
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.minutes import LATENCY_BOUNDS, Counts, LastHour, Minute, Slot, summed
from sidecar.telemetry.request_metrics import BATCH, COVERING, OTHER
from sidecar.telemetry.stale_ends import WINDOW_SECONDS, StaleEnds

FRESH, COVERED, FAILED = (Counts._fields.index(name) for name in ("fresh", "covered", "failed"))
PLACES = {outcome: Counts._fields.index(outcome.value) for outcome in Outcome}
QUIET_SECONDS = 2 * WINDOW_SECONDS
"""After so long without need of cover, the next one is another outage."""
_SERVER_ERROR = 500


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


Last = tuple[float, RequestOutcome]
"""When, and what."""


class _Cover(NamedTuple):
    since: float
    last_at: float


class RequestHistory:
    """Listens to requests: an instant and an append each; they are counted in batches, or when someone looks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: list[tuple[float, RequestOutcome]] = []
        self._hour = LastHour()
        self._served: dict[str, Last] = {}
        self._refused: dict[str, Last] = {}
        self._ends = StaleEnds()
        self._covers: dict[str, _Cover] = {}

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
        return self._counted().minutes()

    def quantiles(self) -> tuple[float, float, float]:
        """Return p50, p95 and p99 of the last hour; seconds."""
        return self._counted().quantiles()

    def recent(self) -> Counts:
        """Return the counts of the last minute or two."""
        return summed(row for slot in self._counted().recent(self._clock()) for row in slot.nodes.values())

    def nodes(self) -> list[NodeHistory]:
        """Return the nodes in the order of their names."""
        hour, now = self._counted(), self._clock()
        recent, left = hour.recent(now), self._ends.left(now)
        found = []
        for name in sorted(self._served.keys() | self._refused.keys()):
            served = self._served.get(name)
            at, last = max((each[name] for each in (self._served, self._refused) if name in each), key=itemgetter(0))
            found.append(
                NodeHistory(
                    name,
                    hour.counts(name),
                    summed(slot.nodes[name] for slot in recent if name in slot.nodes),
                    at,
                    last.outcome,
                    served[1].age if served else None,
                    self._covers[name].since if name in left else None,
                    left.get(name),
                )
            )
        return found

    def _counted(self) -> LastHour:
        self._count()
        self._hour.expire(self._clock())
        return self._hour

    def _count(self) -> None:
        slot: Slot | None = None
        for at, outcome in self._pending:
            if slot is None or at >= slot.ends_at:
                slot = self._hour.slot(at)
            name = outcome.node or OTHER
            row = slot.nodes.get(name) or slot.row(name)
            slot.latency[bisect_left(LATENCY_BOUNDS, outcome.seconds)] += 1
            if outcome.outcome is Outcome.FRESH:
                row[FRESH] += 1
                self._served[name] = (at, outcome)
            else:
                self._count_uncommon(name, at, outcome, row)
        self._pending.clear()

    def _count_uncommon(self, name: str, at: float, outcome: RequestOutcome, row: list[int]) -> None:
        row[PLACES[outcome.outcome]] += 1
        match outcome.outcome:
            case Outcome.ERROR:
                row[FAILED] += outcome.status >= _SERVER_ERROR
                self._refused[name] = (at, outcome)
                return
            case Outcome.STALE if outcome.detail in COVERING and outcome.usable_until is not None:
                row[COVERED] += 1
                cover = self._covers.get(name)
                goes_on = cover is not None and at - cover.last_at < QUIET_SECONDS
                self._covers[name] = _Cover(cover.since if cover and goes_on else at, at)
                self._ends.note(name, outcome.usable_until, at)
            case Outcome.MISS:
                self._ends.forget(name)
                self._covers.pop(name, None)
        self._served[name] = (at, outcome)
