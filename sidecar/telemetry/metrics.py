"""Prometheus metrics (contract §6): a listener, and collectors that cost nothing until a scrape comes."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sidecar.core.errors import FailureKind
from sidecar.core.events import (
    BreakerChanged,
    CertificateSeen,
    Coalesced,
    Crashed,
    Evicted,
    FreshHit,
    GenerationChanged,
    Invalidated,
    NotAdmitted,
    NotRendered,
    ParityChecked,
    Proxied,
    RecordDropped,
    Refused,
    Reloaded,
    RenderedEmpty,
    RequestOutcome,
    Retried,
    RolledBack,
    Shed,
    SpansEnded,
    StoreChanged,
    StoreLookup,
    TemplatesLoaded,
    UpstreamAttempt,
    UpstreamFilesRead,
    WarmedUp,
    Written,
)
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.exposition import Exposition
from sidecar.telemetry.request_metrics import OTHER, RequestCollector

UPSTREAM_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds: today's service answers in about 11 ms, an attempt ends at 1 s."""
PROXY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 25.0)
"""Seconds: a read takes some 10 ms; the bot gives up at 30 s."""
ANSWERED = frozenset({"ok", "not_modified", FailureKind.GONE.value, FailureKind.REFUSED.value})
"""Results of calls that the upstream answered, if only with a 4xx."""
PARITY_RESULTS = ("match", "mismatch", "outdated", "failed", "skipped")
SPAN_RESULTS = ("exported", "queue_full", "refused", "unsent")
BREAKER_STATES = ("closed", "open", "half-open")


class CacheStats(Protocol):
    """What the memory tier counts by itself."""

    hits: int
    misses: int
    evictions: Tally[str]

    @property
    def bytes(self) -> int:
        """Return about what the entries take."""
        ...

    def __len__(self) -> int:
        """Return how many entries there are."""
        ...


class StoreStats(Protocol):
    """What the store behind the memory counts by itself; None: it cannot say."""

    kind: str

    @property
    def entries(self) -> int | None:
        """How many records there are."""
        ...

    @property
    def bytes(self) -> int | None:
        """What they take."""
        ...


class _CacheCollector(Collector):
    """Reads the memory tier's own counts when asked."""

    def __init__(self, cache: CacheStats) -> None:
        self._cache = cache
        self.lookups: Tally[tuple[str, str]] = Tally()
        self.store: StoreStats | None = None

    def collect(self) -> Iterable[Metric]:
        lookups = CounterMetricFamily(
            "prompt_sidecar_cache_lookups",
            "Look-ups by tier and result. A falling share of hits means more traffic to the config service.",
            labels=("tier", "result"),
        )
        lookups.add_metric(("memory", "hit"), self._cache.hits)
        lookups.add_metric(("memory", "miss"), self._cache.misses)
        for labels, count in self.lookups.items():
            lookups.add_metric(labels, count)
        yield lookups
        entries = GaugeMetricFamily(
            "prompt_sidecar_cache_entries", "Entries kept. At cache.max_entries the oldest make room.", labels=("tier",)
        )
        entries.add_metric(("memory",), len(self._cache))
        if self.store is not None and self.store.entries is not None:
            entries.add_metric((self.store.kind,), self.store.entries)
        yield entries
        size = GaugeMetricFamily(
            "prompt_sidecar_cache_bytes",
            "Bytes kept, about. At cache.max_bytes the oldest make room.",
            labels=("tier",),
        )
        size.add_metric(("memory",), self._cache.bytes)
        if self.store is not None and self.store.bytes is not None:
            size.add_metric((self.store.kind,), self.store.bytes)
        yield size
        evictions = CounterMetricFamily(
            "prompt_sidecar_cache_evictions",
            "Entries dropped, by reason. Many for `entries` or `bytes`: raise that limit, or fewer survive an outage.",
            labels=("tier", "reason"),
        )
        for reason, count in self._cache.evictions.items():
            evictions.add_metric(("memory", reason), count)
        yield evictions


class _UpstreamHealth(Collector):
    """When the upstream last answered, and when it last failed in which way; absent until it did."""

    def __init__(self) -> None:
        self.succeeded_at: float | None = None
        self.failed_at: dict[str, float] = {}

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "prompt_sidecar_upstream_last_success_timestamp_seconds",
            "When the config service last answered. Long ago: nobody asked, or it fails; see the last failures.",
            value=self.succeeded_at,
        )
        failed = GaugeMetricFamily(
            "prompt_sidecar_upstream_last_failure_timestamp_seconds",
            "When a call to the config service last failed, by how. The newest says what is wrong with it.",
            labels=("reason",),
        )
        for reason, at in self.failed_at.items():
            failed.add_metric((reason,), at)
        yield failed


class _LogCollector(Collector):
    """Reads what the log's writer counts, when asked."""

    def __init__(self) -> None:
        self.dropped: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterable[Metric]:
        lines = CounterMetricFamily(
            "prompt_sidecar_log_lines_dropped",
            "Log lines lost. blocked: nobody reads standard error, serving goes on; failed: it cannot be written.",
            labels=("reason",),
        )
        for reason, count in {"blocked": 0, "failed": 0, **self.dropped()}.items():
            lines.add_metric((reason,), count)
        yield lines


def _from_nought(
    values: Iterable[str], name: str, says: str, labels: tuple[str], registry: CollectorRegistry | None
) -> Counter:
    """Return a counter whose series are there before anything is counted: a rate needs its beginning."""
    counter = Counter(name, says, labels, registry=registry)
    for value in values:
        counter.labels(value)
    return counter


class Metrics:
    """Counts what happens; children are kept, because `labels()` costs on each call."""

    def __init__(
        self,
        *,
        version: str,
        cache: CacheStats,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        traces: bool = False,
    ) -> None:
        """`traces`: whether spans are sent, so that what becomes of them is shown."""
        self.registry = registry = CollectorRegistry()
        self._exposition = Exposition(registry)
        self._wall = wall
        self._requests = RequestCollector(clock=clock, wall=wall)
        self._health = _UpstreamHealth()
        self._upstream = Counter(
            "prompt_sidecar_upstream_requests_total",
            "Calls to the config service, by result. Anything but ok and not_modified is worth a look there.",
            ("endpoint", "result"),
            registry=registry,
        )
        self._upstream_duration = Histogram(
            "prompt_sidecar_upstream_request_duration_seconds",
            "How long calls to the config service take. Near retry.per_try_timeout they begin to fail.",
            ("endpoint",),
            buckets=UPSTREAM_BUCKETS,
            registry=registry,
        )
        self._retries = Counter(
            "prompt_sidecar_retries_total",
            "Attempts made again, by what failed before.",
            ("reason",),
            registry=registry,
        )
        self._coalesced = Counter(
            "prompt_sidecar_coalesced_requests_total", "Requests that shared another's fetch.", registry=registry
        )
        self._breaker = Gauge(
            "prompt_sidecar_breaker_state",
            "1 for the circuit's state. open: the config service is not asked; see its own health first.",
            ("breaker", "state"),
            registry=registry,
        )
        self._transitions = Counter(
            "prompt_sidecar_breaker_transitions_total",
            "Changes of the circuit. Many: the config service comes and goes.",
            ("breaker", "to"),
            registry=registry,
        )
        self._render_errors = Counter(
            "prompt_sidecar_render_errors_total",
            "Prompts that could not be rendered. `required` or `undefined`: template and LearnFlow disagree.",
            ("reason",),
            registry=registry,
        )
        self._rendered_empty = Counter(
            "prompt_sidecar_undefined_rendered_empty_total",
            "Prompts in which a placeholder that nobody gave became nothing, as the config service's own options say.",
            registry=registry,
        )
        self._warmed_up = _from_nought(
            ("stored", "fresh", "failed"),
            "prompt_sidecar_warmup_pairs_total",
            "Pairs of user and node that a warm-up dealt with. Many for `failed`: /status says why.",
            ("result",),
            registry=registry,
        )
        self._invalidations = Counter(
            "prompt_sidecar_invalidations_total",
            "Entries removed because they no longer hold, by who said so.",
            ("source",),
            registry=registry,
        )
        self._generation = Gauge(
            "prompt_sidecar_upstream_generation",
            "1 for the generation of the config service that is in use. None: it was not reached yet.",
            ("generation",),
            registry=registry,
        )
        self._not_admitted = Counter(
            "prompt_sidecar_templates_not_admitted_total",
            "Templates found that are left to the service's own rendering: no cover in an outage. /status names them.",
            registry=registry,
        )
        self._templates_ok = Gauge(
            "prompt_sidecar_templates_file_ok",
            "0: upstream.templates_file has a mistake, the old templates are in force. /status says which.",
            registry=registry,
        )
        self._templates_ok.set(1)
        self._upstream_files_ok = Gauge(
            "prompt_sidecar_upstream_files_ok",
            "0: certificates or token for the config service cannot be read, the old ones are in force. See /status.",
            ("what",),
            registry=registry,
        )
        self._certificate_expiry = Gauge(
            "prompt_sidecar_upstream_certificate_expiry_timestamp_seconds",
            "When a certificate ends: the sidecar's own (client), or the one that the config service last showed.",
            ("whose",),
            registry=registry,
        )
        self._parity = Counter(
            "prompt_sidecar_parity_checks_total",
            "Comparisons with the service's own prompts. mismatch: local rendering of this node is not to be trusted.",
            ("node", "result"),
            registry=registry,
        )
        self._rolled_back = Gauge(
            "prompt_sidecar_rolled_back",
            "1: the node was taken back to the service's own rendering; its prompts have no cover in an outage.",
            ("node",),
            registry=registry,
        )
        self._proxied = Counter(
            "prompt_sidecar_proxied_requests_total",
            "Requests that were passed on as they came, by how they ended.",
            ("method", "result"),
            registry=registry,
        )
        self._proxied_duration = Histogram(
            "prompt_sidecar_proxied_request_duration_seconds",
            "How long requests that were passed on took, their bodies included.",
            buckets=PROXY_BUCKETS,
            registry=registry,
        )
        self._store_ok = Gauge(
            "prompt_sidecar_store_ok",
            "0: the store behind the memory is in trouble, a restart now would lose what is kept. /status says why.",
            registry=None,  # until there is a store
        )
        self._store_ok.set(1)  # now, because a store tells of its trouble while it is opened
        self._records_dropped = Counter(
            "prompt_sidecar_records_dropped_total",
            "Records of the store that could not be used, by reason. Many for `checksum`: look at the disk.",
            ("reason",),
            registry=registry,
        )
        self._refused = _from_nought(
            ("host", "cross_site", "token", "slow_head", "slow_reader"),
            "prompt_sidecar_requests_refused_total",
            "Clients turned away for how they asked: an unknown Host, another site's page, no token, too slow.",
            ("reason",),
            registry=registry,
        )
        self._shed = _from_nought(
            ("connections", "ops_connections", "bodies", "waiting"),
            "prompt_sidecar_requests_shed_total",
            "Requests turned away with 503 because there were too many at once, by the limit that was met.",
            ("reason",),
            registry=registry,
        )
        self._spans = _from_nought(
            SPAN_RESULTS,
            "prompt_sidecar_spans_total",
            "Spans of traces by what became of them. Anything but `exported` is lost: see the log for the collector.",
            ("result",),
            registry=registry if traces else None,
        )
        self._crashes = Counter(
            "prompt_sidecar_crashes_total",
            "Requests and background tasks that ended by an error that nobody foresaw; the log's `crashed` says where.",
            registry=registry,
        )
        self._reload_successful = Gauge(
            "prompt_sidecar_config_last_reload_successful",
            "1 if the settings last read were taken; 0: the file has a mistake, the old ones are in force.",
            registry=registry,
        )
        self._reload_at = Gauge(
            "prompt_sidecar_config_last_reload_success_timestamp_seconds",
            "When settings were last taken.",
            registry=registry,
        )
        build = Gauge("prompt_sidecar_build_info", "The version that runs.", ("version",), registry=registry)
        build.labels(version).set(1)
        self._cache_collector = _CacheCollector(cache)
        registry.register(self._cache_collector)
        registry.register(self._requests)
        registry.register(self._health)
        self._log = _LogCollector()
        registry.register(self._log)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._shows_breaker("upstream")
        for kind in FailureKind:
            self._retries.labels(kind.value)
        for source in ("upstream", "write", "admin"):
            self._invalidations.labels(source)

    def expose(self, accept: str | None) -> tuple[bytes, str]:
        """Return the body, and its type as the Accept header asks, at once."""
        return self._exposition.whole(accept)

    async def scrape(self, accept: str | None) -> tuple[bytes, str]:
        """Return the same without holding live traffic up."""
        return await self._exposition.in_slices(accept)

    def has_store(self, store: StoreStats | None) -> None:
        """Show a store, too."""
        self._cache_collector.store = store
        if store is None:
            return
        self.registry.register(self._store_ok)
        if store.kind == "redis":
            self._shows_breaker("redis")
            self._invalidations.labels("group")

    def has_log(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Show what the log loses; `dropped`: lines by reason."""
        self._log.dropped = dropped

    def has_upstream_files(self, names: Iterable[str]) -> None:
        """Show whether the files that the way to the upstream is made of can be read."""
        for name in names:
            self._upstream_files_ok.labels(name).set(1)

    def _shows_breaker(self, name: str) -> None:
        for state in BREAKER_STATES:
            self._breaker.labels(name, state).set(state == "closed")
            self._transitions.labels(name, state)

    def settings_loaded(self, at: float) -> None:
        """Tell of settings that were taken; `at`: Unix time in seconds."""
        self._reload_successful.set(1)
        self._reload_at.set(at)

    def handlers(self) -> Handlers:
        """Return what is counted of each event."""
        return {
            RequestOutcome: self._requests.add_uncommon,
            FreshHit: self._requests.add,
            Coalesced: lambda _: self._coalesced.inc(),
            UpstreamAttempt: self._attempted,
            Retried: lambda event: self._retries.labels(event.reason.value).inc(),
            BreakerChanged: self._breaker_changed,
            Evicted: self._evicted,
            RenderedEmpty: lambda _: self._rendered_empty.inc(),
            NotRendered: lambda event: self._render_errors.labels(event.reason).inc(),
            Written: lambda _: self._invalidations.labels("write").inc(),
            Invalidated: lambda event: self._invalidations.labels(event.source).inc(),
            WarmedUp: lambda event: self._warmed_up.labels(event.result).inc(),
            GenerationChanged: self._generation_changed,
            NotAdmitted: lambda _: self._not_admitted.inc(),
            TemplatesLoaded: lambda event: self._templates_ok.set(event.error is None),
            UpstreamFilesRead: lambda event: self._upstream_files_ok.labels(event.what).set(event.error is None),
            CertificateSeen: lambda event: self._certificate_expiry.labels(event.whose).set(event.expires_at),
            ParityChecked: self._compared,
            RolledBack: lambda event: self._rolled_back.labels(event.node).set(event.back),
            Proxied: self._passed_on,
            Reloaded: self._reloaded,
            StoreLookup: lambda event: self._cache_collector.lookups.update({(event.tier, event.result): 1}),
            SpansEnded: lambda event: self._spans.labels(event.result).inc(event.spans),
            StoreChanged: lambda event: self._store_ok.set(event.error is None),
            Refused: lambda event: self._refused.labels(event.reason).inc(),
            Shed: lambda event: self._shed.labels(event.reason).inc(),
            Crashed: lambda _: self._crashes.inc(),
            RecordDropped: lambda event: self._records_dropped.labels(event.reason).inc(),
        }

    def _attempted(self, event: UpstreamAttempt) -> None:
        self._upstream.labels(event.endpoint, event.result).inc()
        self._upstream_duration.labels(event.endpoint).observe(event.seconds)
        if event.result in ANSWERED:
            self._health.succeeded_at = self._wall()
        else:
            self._health.failed_at[event.result] = self._wall()

    def _compared(self, event: ParityChecked) -> None:
        node = event.node or OTHER
        for result in PARITY_RESULTS:  # nought from the first comparison on, so that a first mismatch is a rise
            self._parity.labels(node, result)
        self._parity.labels(node, event.result).inc()

    def _breaker_changed(self, event: BreakerChanged) -> None:
        for state in BREAKER_STATES:
            self._breaker.labels(event.breaker, state).set(state == event.to)
        self._transitions.labels(event.breaker, event.to).inc()

    def _generation_changed(self, event: GenerationChanged) -> None:
        if event.before is not None:
            self._generation.labels(event.before).set(0)
        self._generation.labels(event.to).set(1)

    def _passed_on(self, event: Proxied) -> None:
        self._proxied.labels(event.method, event.result).inc()
        self._proxied_duration.observe(event.seconds)

    def _reloaded(self, event: Reloaded) -> None:
        if event.problems:
            self._reload_successful.set(0)
        else:
            self.settings_loaded(event.at)

    def _evicted(self, _: Evicted) -> None:
        self._invalidations.labels("upstream").inc()
