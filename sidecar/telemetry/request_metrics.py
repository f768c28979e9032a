"""What is counted of requests: on the hot path, so kept in plain lists until a scrape comes."""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from sidecar.core.errors import FAILURE_TABLE
from sidecar.core.events import Outcome, RequestOutcome
from sidecar.service.trace import example
from sidecar.telemetry.stale_ends import StaleEnds

OTHER = "other"
"""The node label of what the upstream never confirmed: random names make no series."""
REQUEST_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 4.0, 5.0)
"""Seconds: a hit takes tenths of a millisecond, a miss an attempt, the worst the deadline (LearnFlow gives up at 5)."""
RENDER_BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.01, 0.1)
"""Seconds: a plain template takes about 10 µs; the cap is 100 ms."""
AGE_BUCKETS = (1, 10, 30, 60, 300, 600, 900, 1800, 3600, 5400)
"""Seconds: the ttl is minutes to an hour, the end of use a quarter of an hour later."""
SLOW_SECONDS = 0.01
"""Longer than a prompt at hand takes."""
BATCH = 128
"""Requests counted together: one by one, cold, costs about ten times as much; so many take a tenth of a millisecond."""
CHILDREN_AT_ONCE = 4
"""Histograms in one part of a family: about half a millisecond's work."""
COVERING = frozenset({"stale-if-error", "network-timeout"})
"""Why stale data is served when it stands in for an upstream that does not answer."""
STALE_REASONS = ("stale-while-revalidate", "max-stale", *sorted(COVERING))
REFUSALS = ("body", "schema", "unknown_node", "required", "undefined", "output_limit", "time_limit", "error")
"""Why a request is refused for what it, or its template, is."""

T = TypeVar("T")


class BucketTally:
    """One child of a histogram: a bisection and two additions a time; prometheus-client's own walks and locks."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Return the cumulated counts by upper bound, with an exemplar where there is one, as the exposition wants."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        found = self.exemplars
        return [
            (name, count, found[n]) if n in found else (name, count)
            for n, (name, count) in enumerate(zip(names, accumulate(self.counts), strict=True))
        ]


class RequestCollector(Collector):
    """What is counted of requests: on the hot path, so kept in plain lists until a scrape comes."""

    def __init__(self, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._seconds: dict[tuple[str, str], BucketTally] = {}
        self._ages: dict[str, BucketTally] = {}
        self._render = BucketTally(RENDER_BUCKETS)
        self._bypassed: Tally[str] = Tally()
        self._stale: Tally[tuple[str, str]] = Tally()
        self._errors: Tally[tuple[str, str]] = Tally()
        self._ends = StaleEnds()
        self._pending: list[RequestOutcome] = []
        self._children: dict[tuple[str | None, Outcome], tuple[BucketTally, BucketTally]] = {}
        for kind, rule in FAILURE_TABLE.items():
            self._errors["4xx" if rule.status is None else "5xx", kind.value] = 0
        self._errors["5xx", "not_cached"] = 0
        for reason in REFUSALS:
            self._errors["4xx", reason] = 0

    def add(self, outcome: RequestOutcome) -> None:
        """Note a request; it is counted with others, when the code that counts is worth loading."""
        pending = self._pending
        pending.append(outcome)
        waiting = len(pending)
        if waiting == 1 or outcome.seconds > SLOW_SECONDS:  # of the many that are alike, one in a batch is enough
            self._point_out(outcome)
        if waiting >= BATCH:
            self._count()

    def add_uncommon(self, outcome: RequestOutcome) -> None:
        """Note a request that was not simply answered from fresh data."""
        if outcome.usable_until is not None and outcome.outcome is Outcome.STALE and outcome.detail in COVERING:
            self._ends.note(outcome.node or OTHER, outcome.usable_until, self._clock())
        elif outcome.outcome is Outcome.MISS:
            self._ends.forget(outcome.node or OTHER)
        self._point_out(outcome)
        self.add(outcome)

    def _point_out(self, outcome: RequestOutcome) -> None:
        """Keep a request as the example of its bucket, if it can be found again."""
        found = example()
        if found is None:
            return
        tally = self._child(outcome)[0]
        place = bisect_left(tally.bounds, outcome.seconds)
        tally.exemplars[place] = Exemplar({found.kind: found.id}, outcome.seconds, round(self._wall(), 3))

    def _count(self) -> None:
        for outcome in self._pending:
            tallies = self._children.get((outcome.node, outcome.outcome)) or self._child(outcome)
            tallies[0].add(outcome.seconds)
            if outcome.age is not None:
                tallies[1].add(outcome.age)
                if outcome.render_seconds is not None:
                    self._render.add(outcome.render_seconds)
            match outcome.outcome:
                case Outcome.BYPASS:
                    self._bypassed[outcome.detail or "network-only"] += 1
                case Outcome.STALE:
                    self._stale[outcome.node or OTHER, outcome.detail or "stale-while-revalidate"] += 1
                case Outcome.ERROR:
                    self._errors["5xx" if outcome.status >= 500 else "4xx", outcome.detail or "error"] += 1
        self._pending.clear()

    def _child(self, outcome: RequestOutcome) -> tuple[BucketTally, BucketTally]:
        label = OTHER if outcome.node is None else outcome.node
        seconds = self._seconds.setdefault((label, outcome.outcome.value), BucketTally(REQUEST_BUCKETS))
        age = self._ages.setdefault(label, BucketTally(AGE_BUCKETS))
        self._children[outcome.node, outcome.outcome] = (seconds, age)
        return seconds, age

    def collect(self) -> Iterator[Metric]:
        """Yield the families, large ones in parts: between two of them live traffic may have its turn."""
        self._count()
        yield self._requests()
        for part in _parts(self._seconds):
            duration = HistogramMetricFamily(
                "prompt_sidecar_request_duration_seconds",
                "From a request's headers to its answer. Past 4 s LearnFlow is close to giving up.",
                labels=("node", "outcome"),
            )
            for labels, tally in part:
                duration.add_metric(labels, tally.buckets(), tally.total)
            yield duration
        for ages_part in _parts(self._ages):
            ages = HistogramMetricFamily(
                "prompt_sidecar_served_age_seconds",
                "How long ago the config service confirmed what a prompt was made from. Rising: it does not answer.",
                labels=("node",),
            )
            for node, tally in ages_part:
                ages.add_metric((node,), tally.buckets(), tally.total)
            yield ages
        yield HistogramMetricFamily(
            "prompt_sidecar_render_duration_seconds",
            "How long rendering takes. Milliseconds point to a heavy template.",
            buckets=self._render.buckets(),
            sum_value=self._render.total,
        )
        yield from self._reasons()

    def _requests(self) -> Metric:
        requests = CounterMetricFamily(
            "prompt_sidecar_requests",
            "Requests for prompts, by how they ended. `stale`: an outage is being covered; `error`: LearnFlow sees it.",
            labels=("node", "outcome"),
        )
        for node in (OTHER, *(node for node in self._ages if node != OTHER)):
            for outcome in Outcome:  # nought from the beginning, so that a first error is a rise
                tally = self._seconds.get((node, outcome.value))
                requests.add_metric((node, outcome.value), sum(tally.counts) if tally else 0)
        return requests

    def _reasons(self) -> Iterator[Metric]:
        bypassed = CounterMetricFamily(
            "prompt_sidecar_bypassed_requests",
            "Requests that were not answered from here, by reason. `parity` and `not-admitted` are worth a look.",
            labels=("reason",),
        )
        for reason, count in self._bypassed.items():
            bypassed.add_metric((reason,), count)
        yield bypassed
        stale = CounterMetricFamily(
            "prompt_sidecar_stale_requests",
            "Requests answered from stale data, by why. `stale-if-error` and `network-timeout`: the config service "
            "does not answer; see stale_time_left_seconds for how long that can go on.",
            labels=("node", "reason"),
        )
        for node in self._ages:
            for reason in STALE_REASONS:
                stale.add_metric((node, reason), self._stale[node, reason])
        yield stale
        left = GaugeMetricFamily(
            "prompt_sidecar_stale_time_left_seconds",
            "Until the policy ends the use of the oldest stale data served in the last minute. At 0 requests begin to "
            "fail: repair the config service before that. None: nothing is covered.",
            labels=("node",),
        )
        for node, seconds in self._ends.left(self._clock()).items():
            left.add_metric((node,), seconds)
        yield left
        errors = CounterMetricFamily(
            "prompt_sidecar_request_errors",
            "Requests that ended without a prompt. 5xx: an outage that nothing covers; 4xx: LearnFlow asked for what "
            "there is not, or a template wants what it does not give.",
            labels=("status", "reason"),
        )
        for labels, count in self._errors.items():
            errors.add_metric(labels, count)
        yield errors


def _parts(children: dict[T, BucketTally]) -> Iterator[list[tuple[T, BucketTally]]]:
    """Yield the children some at a time, and at least once, so that a family without any is still announced."""
    rest = iter([*children.items()])
    part = [*islice(rest, CHILDREN_AT_ONCE)]
    yield part
    while part := [*islice(rest, CHILDREN_AT_ONCE)]:
        yield part
