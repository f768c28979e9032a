"""The metrics of contract §6: their names, labels and values, as a scrape reads them."""

from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.cache.memory import MemoryCache
from sidecar.core.errors import FailureKind, PromptError
from sidecar.core.events import (
    BreakerChanged,
    Coalesced,
    Event,
    Evicted,
    FreshHit,
    NotRendered,
    Outcome,
    RenderedEmpty,
    RequestOutcome,
    Retried,
    SpansEnded,
    UpstreamAttempt,
)
from sidecar.core.trace_context import Trace
from sidecar.service.trace import current_trace
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.metrics import Metrics
from tests.fakes import World, answered, loop_time

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WHAT_PROMETHEUS_ASKS = f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

LABELS: dict[str, tuple[str, set[str]]] = {
    "requests": ("counter", {"node", "outcome"}),
    "request_duration_seconds": ("histogram", {"node", "outcome"}),
    "served_age_seconds": ("histogram", {"node"}),
    "cache_lookups": ("counter", {"tier", "result"}),
    "cache_entries": ("gauge", {"tier"}),
    "cache_bytes": ("gauge", {"tier"}),
    "cache_evictions": ("counter", {"tier", "reason"}),
    "upstream_requests": ("counter", {"endpoint", "result"}),
    "upstream_request_duration_seconds": ("histogram", {"endpoint"}),
    "retries": ("counter", {"reason"}),
    "coalesced_requests": ("counter", set()),
    "breaker_state": ("gauge", {"breaker", "state"}),
    "breaker_transitions": ("counter", {"breaker", "to"}),
    "render_duration_seconds": ("histogram", set()),
    "render_errors": ("counter", {"reason"}),
    "invalidations": ("counter", {"source"}),
    "config_last_reload_successful": ("gauge", set()),
    "config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "build_info": ("gauge", {"version"}),
}
"""Contract §6, as far as there is something to count: name without prefix and `_total` → type, labels."""

ONE_OF_EACH: list[Event] = [
    RequestOutcome("explain", Outcome.STALE, 0.002, 0.0001, 700.0, "stale-if-error", 200),
    FreshHit("explain", Outcome.FRESH, 0.001, 0.0001, 5.0, None, 200),
    Coalesced("explain"),
    UpstreamAttempt("prompt-data", "ok", 0.011),
    Retried(FailureKind.RESET),
    BreakerChanged("upstream", "open"),
    Evicted("explain"),
    RenderedEmpty("explain", ("topic",)),
    NotRendered("explain", "required"),
]


class Scraped:
    """Metrics, and what a scrape of them reads."""

    def __init__(self, cache: MemoryCache | None = None) -> None:
        self.cache = cache or MemoryCache(max_entries=10, max_bytes=1 << 20, clock=lambda: 0.0)
        self.now, self.wall = 0.0, 0.0
        self.metrics = Metrics(version="1.2.3", cache=self.cache, clock=lambda: self.now, wall=lambda: self.wall)
        self.observe = Dispatcher(self.metrics.handlers())

    def tell(self, *events: Event) -> "Scraped":
        for event in events:
            self.observe(event)
        return self

    def families(self, accept: str | None = None) -> dict[str, Metric]:
        body, content_type = self.metrics.expose(accept)
        read = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse
        return {family.name: family for family in read(body.decode())}

    def samples(self) -> list[Any]:
        """Return every sample that is ours, without those that say when another began."""
        return [
            sample
            for name, family in self.families().items()
            if name.startswith("prompt_sidecar_") and not name.endswith("_created")
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one sample, or None where there is none."""
        found = [s.value for s in self.samples() if (s.name, s.labels) == (f"prompt_sidecar_{name}", labels)]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(sample.name, frozenset(sample.labels.items())) for sample in self.samples()}


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


# What there is


@pytest.mark.parametrize("accept", [None, WHAT_PROMETHEUS_ASKS], ids=["text", "OpenMetrics"])
@pytest.mark.parametrize(("name", "kind", "labels"), [(name, *rest) for name, rest in LABELS.items()], ids=[*LABELS])
def test_each_metric_of_the_contract_has_its_type_and_labels(
    scraped: Scraped, name: str, kind: str, labels: set[str], accept: str | None
) -> None:
    family = scraped.tell(*ONE_OF_EACH).families(accept)[f"prompt_sidecar_{name}"]
    assert family.type == kind
    assert {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples} == {frozenset(labels)}
    suffixes = {
        "counter": {"_total", "_created"},
        "gauge": {""},
        "histogram": {"_bucket", "_sum", "_count", "_created"},
    }
    assert {sample.name.removeprefix(family.name) for sample in family.samples} <= suffixes[kind]


@pytest.mark.parametrize("accept", [None, WHAT_PROMETHEUS_ASKS], ids=["text", "OpenMetrics"])
def test_each_metric_says_what_it_is(scraped: Scraped, accept: str | None) -> None:
    silent = [name for name, family in scraped.tell(*ONE_OF_EACH).families(accept).items() if not family.documentation]
    assert silent == []


def test_names_are_ours_or_those_of_the_runtime(scraped: Scraped) -> None:
    names = scraped.tell(*ONE_OF_EACH).families()
    strange = [name for name in names if not name.startswith(("prompt_sidecar_", "process_", "python_"))]
    assert strange == []
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"} <= names.keys()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("nonsense;;;q=", "text/plain; version=0.0.4"),
        (OPENMETRICS, OPENMETRICS),
        (WHAT_PROMETHEUS_ASKS, OPENMETRICS),
    ],
)
def test_the_format_is_what_was_asked_for(scraped: Scraped, accept: str | None, content_type: str) -> None:
    assert scraped.metrics.expose(accept)[1].startswith(content_type)


@pytest.mark.parametrize("node", ['say "hi"', "back\\slash", "two\nlines", "ответ", "{}", " "])
def test_any_name_of_a_node_is_exposed_as_it_is(scraped: Scraped, node: str) -> None:
    scraped.tell(RequestOutcome(node, Outcome.MISS, 0.1, 0.0, 0.0, None, 200))
    assert scraped.value("requests_total", node=node, outcome="miss") == 1


def test_what_has_not_happened_yet_is_nought_and_not_absent(scraped: Scraped) -> None:
    for name, labels in [
        ("coalesced_requests_total", {}),
        *[("retries_total", {"reason": kind.value}) for kind in FailureKind],
        *[
            ("breaker_transitions_total", {"breaker": "upstream", "to": state})
            for state in ("closed", "open", "half-open")
        ],
        ("invalidations_total", {"source": "upstream"}),
        *[("cache_lookups_total", {"tier": "memory", "result": result}) for result in ("hit", "miss")],
        *[
            ("cache_evictions_total", {"tier": "memory", "reason": reason})
            for reason in ("entries", "bytes", "expired", "too_large")
        ],
    ]:
        assert scraped.value(name, **labels) == 0, (name, labels)


# What is counted


def test_requests_are_counted_by_node_and_outcome_however_many(scraped: Scraped) -> None:
    miss = RequestOutcome("explain", Outcome.MISS, 0.02, 0.0001, 0.02, None, 200)
    error = RequestOutcome(None, Outcome.ERROR, 4.5, 0.0, None, "deadline", 504)
    scraped.tell(*[FreshHit("explain", Outcome.FRESH, 0.0001, 0.00001, 10.0, None, 200)] * 1000, miss, error, error)
    assert scraped.value("requests_total", node="explain", outcome="fresh") == 1000
    assert scraped.value("requests_total", node="explain", outcome="miss") == 1
    assert scraped.value("requests_total", node="other", outcome="error") == 2
    assert scraped.value("request_duration_seconds_count", node="explain", outcome="fresh") == 1000
    assert scraped.value("request_duration_seconds_sum", node="other", outcome="error") == 9
    assert scraped.value("render_duration_seconds_count") == 1001


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        pytest.param(0.00005, "0.0001", id="below the first bound"),
        pytest.param(0.0001, "0.0001", id="at a bound: in its bucket"),
        pytest.param(0.3, "0.5", id="between bounds"),
        pytest.param(5.0, "5.0", id="at the last bound"),
        pytest.param(5.1, "+Inf", id="above the last bound"),
    ],
)
def test_a_request_is_in_each_bucket_whose_bound_it_does_not_exceed(
    scraped: Scraped, seconds: float, first: str
) -> None:
    scraped.tell(RequestOutcome("explain", Outcome.MISS, seconds, 0.0, 0.0, None, 200))
    buckets = [s for s in scraped.samples() if s.name == "prompt_sidecar_request_duration_seconds_bucket"]
    assert next(bucket.labels["le"] for bucket in buckets if bucket.value == 1) == first
    assert [bucket.value for bucket in buckets] == sorted(bucket.value for bucket in buckets)
    assert (buckets[-1].labels["le"], buckets[-1].value) == ("+Inf", 1)


def test_an_age_is_counted_where_a_prompt_was_served(scraped: Scraped) -> None:
    scraped.tell(
        RequestOutcome("explain", Outcome.STALE, 0.001, 0.0001, 700.0, "stale-if-error", 200),
        RequestOutcome("explain", Outcome.ERROR, 0.001, 0.0, None, "undefined", 422),
    )
    assert scraped.value("served_age_seconds_count", node="explain") == 1
    assert scraped.value("served_age_seconds_sum", node="explain") == 700
    assert scraped.value("render_duration_seconds_count") == 1


def test_calls_to_the_upstream_are_counted_by_result(scraped: Scraped) -> None:
    scraped.tell(*[UpstreamAttempt("prompt-data", result, 0.5) for result in ("ok", "ok", "not_modified", "reset")])
    assert scraped.value("upstream_requests_total", endpoint="prompt-data", result="ok") == 2
    assert scraped.value("upstream_requests_total", endpoint="prompt-data", result="not_modified") == 1
    assert scraped.value("upstream_requests_total", endpoint="prompt-data", result="reset") == 1
    assert scraped.value("upstream_request_duration_seconds_sum", endpoint="prompt-data") == 2


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (Coalesced("explain"), "coalesced_requests_total", {}),
        (Retried(FailureKind.RESET), "retries_total", {"reason": "reset"}),
        (Evicted("explain"), "invalidations_total", {"source": "upstream"}),
        (NotRendered("explain", "required"), "render_errors_total", {"reason": "required"}),
        (RenderedEmpty("explain", ("a", "b")), "undefined_rendered_empty_total", {}),
        (BreakerChanged("upstream", "open"), "breaker_transitions_total", {"breaker": "upstream", "to": "open"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_happens_is_counted(scraped: Scraped, event: Event, name: str, labels: dict[str, str]) -> None:
    scraped.tell(event, event)
    assert scraped.value(name, **labels) == 2


def test_the_circuit_is_in_one_state_at_a_time(scraped: Scraped) -> None:
    states = ("closed", "open", "half-open")

    def state() -> list[float | None]:
        return [scraped.value("breaker_state", breaker="upstream", state=state) for state in states]

    assert state() == [1, 0, 0]
    for index in (1, 2, 1, 2, 0):
        scraped.tell(BreakerChanged("upstream", states[index]))
        assert state() == [float(each == index) for each in range(3)]


def test_the_cache_is_read_when_asked(scraped: Scraped) -> None:
    cache = scraped.cache
    cache._own_bytes, cache.hits, cache.misses = 4096, 3, 2
    cache.evictions["bytes"] = 5
    assert scraped.value("cache_bytes", tier="memory") == 4096
    assert scraped.value("cache_entries", tier="memory") == 0
    assert scraped.value("cache_lookups_total", tier="memory", result="hit") == 3
    assert scraped.value("cache_lookups_total", tier="memory", result="miss") == 2
    assert scraped.value("cache_evictions_total", tier="memory", reason="bytes") == 5


def test_each_requests_error_says_whose_it_was(scraped: Scraped) -> None:
    scraped.tell(
        RequestOutcome(None, Outcome.ERROR, 0.1, 0.0, None, "circuit_open", 503),
        RequestOutcome(None, Outcome.ERROR, 0.1, 0.0, None, "not_cached", 504),
        RequestOutcome(None, Outcome.ERROR, 0.1, 0.0, None, "gone", 404),
        RequestOutcome(None, Outcome.ERROR, 0.1, 0.0, None, "schema", 422),
    )
    counted = [s for s in scraped.samples() if s.name == "prompt_sidecar_request_errors_total" and s.value]
    assert {(s.labels["status"], s.labels["reason"]) for s in counted} == {
        ("5xx", "circuit_open"),
        ("5xx", "not_cached"),
        ("4xx", "gone"),
        ("4xx", "schema"),
    }


def test_stale_answers_are_counted_by_why(scraped: Scraped) -> None:
    stale = RequestOutcome("explain", Outcome.STALE, 0.1, 0.0, 400.0, "stale-if-error", 200)
    revalidated = RequestOutcome("explain", Outcome.STALE, 0.1, 0.0, 310.0, "stale-while-revalidate", 200)
    scraped.tell(stale, revalidated, stale)
    assert scraped.value("stale_requests_total", node="explain", reason="stale-if-error") == 2
    assert scraped.value("stale_requests_total", node="explain", reason="stale-while-revalidate") == 1
    assert scraped.value("stale_requests_total", node="explain", reason="network-timeout") == 0


def test_how_long_stale_data_will_do_counts_down_and_ends_with_the_outage() -> None:
    scraped = Scraped()
    scraped.tell(RequestOutcome("explain", Outcome.STALE, 0.1, 0.0, 400.0, "stale-if-error", 200, 700.0))
    scraped.tell(RequestOutcome("quiz", Outcome.STALE, 0.1, 0.0, 310.0, "stale-while-revalidate", 200, 900.0))
    scraped.now = 100.0
    assert scraped.value("stale_time_left_seconds", node="explain") == 600
    assert scraped.value("stale_time_left_seconds", node="quiz") is None  # no outage is covered by that
    scraped.tell(RequestOutcome("explain", Outcome.MISS, 0.1, 0.0, 0.0, None, 200))
    assert scraped.value("stale_time_left_seconds", node="explain") is None


def test_when_the_upstream_last_answered_and_last_failed_is_told(scraped: Scraped) -> None:
    assert scraped.value("upstream_last_success_timestamp_seconds") is None
    scraped.wall = 1000.0
    scraped.tell(UpstreamAttempt("prompt-data", "ok", 0.1), UpstreamAttempt("prompt-data", "reset", 0.1))
    scraped.wall = 2000.0
    scraped.tell(UpstreamAttempt("prompt-data", "server_error", 0.1))
    assert scraped.value("upstream_last_success_timestamp_seconds") == 1000
    assert scraped.value("upstream_last_failure_timestamp_seconds", reason="reset") == 1000
    assert scraped.value("upstream_last_failure_timestamp_seconds", reason="server_error") == 2000
    scraped.tell(UpstreamAttempt("prompt-data", "gone", 0.1))  # a 404 is an answer
    assert scraped.value("upstream_last_success_timestamp_seconds") == 2000


def test_without_a_store_nothing_is_said_of_one(scraped: Scraped) -> None:
    assert scraped.value("store_ok") is None


def test_without_a_collector_nothing_is_said_of_spans(scraped: Scraped) -> None:
    scraped.tell(SpansEnded("exported", 3))
    assert scraped.value("spans_total", result="exported") is None


def test_what_becomes_of_spans_is_counted_from_nought() -> None:
    metrics = Metrics(version="1", cache=MemoryCache(max_entries=1, max_bytes=1, clock=lambda: 0.0), traces=True)
    Dispatcher(metrics.handlers())(SpansEnded("queue_full", 3))
    said = metrics.expose(None)[0].decode()
    for result, count in (("exported", 0.0), ("queue_full", 3.0), ("refused", 0.0), ("unsent", 0.0)):
        assert f'prompt_sidecar_spans_total{{result="{result}"}} {count}' in said


def test_a_bypass_says_nothing_of_how_long_rendering_takes(scraped: Scraped) -> None:
    scraped.tell(RequestOutcome("explain", Outcome.BYPASS, 0.3, None, 0.0, "rollout", 200))
    assert scraped.value("render_duration_seconds_count") == 0
    assert scraped.value("served_age_seconds_count", node="explain") == 1


def test_a_trace_that_nobody_keeps_is_no_example(scraped: Scraped) -> None:
    token = current_trace.set(Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"))
    scraped.tell(RequestOutcome("explain", Outcome.MISS, 0.3, 0.0, 0.0, None, 200))
    current_trace.reset(token)
    family = scraped.families(OPENMETRICS)["prompt_sidecar_request_duration_seconds"]
    assert not any(sample.exemplar for sample in family.samples)


def test_a_traced_request_is_the_example_of_its_bucket(scraped: Scraped) -> None:
    token = current_trace.set(Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    scraped.wall = 1234.5
    scraped.tell(RequestOutcome("explain", Outcome.MISS, 0.3, 0.0, 0.0, None, 200))
    current_trace.reset(token)
    scraped.tell(RequestOutcome("explain", Outcome.MISS, 0.3, 0.0, 0.0, None, 200))
    family = scraped.families(OPENMETRICS)["prompt_sidecar_request_duration_seconds"]
    (sample,) = [sample for sample in family.samples if sample.exemplar]
    assert sample.exemplar is not None
    assert (sample.labels["le"], sample.value) == ("0.5", 2)
    assert sample.exemplar.labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert (sample.exemplar.value, float(sample.exemplar.timestamp or 0)) == (0.3, 1234.5)
    assert b" # {" not in scraped.metrics.expose(None)[0]


def test_of_fresh_hits_the_first_of_a_batch_and_each_slow_one_is_an_example(scraped: Scraped) -> None:
    def hit(seconds: float, trace: int) -> None:
        token = current_trace.set(Trace(f"00-{trace:032x}-00f067aa0ba902b7-01"))
        scraped.tell(FreshHit("explain", Outcome.FRESH, seconds, 0.0, 1.0, None, 200))
        current_trace.reset(token)

    for trace, seconds in enumerate((0.0002, 0.0002, 0.04, 0.0002), 1):
        hit(seconds, trace)
    family = scraped.families(OPENMETRICS)["prompt_sidecar_request_duration_seconds"]
    found = {s.labels["le"]: int(s.exemplar.labels["trace_id"], 16) for s in family.samples if s.exemplar}
    assert found == {"0.00025": 1, "0.05": 3}
    hit(0.0002, 5)  # a scrape begins a batch, too
    family = scraped.families(OPENMETRICS)["prompt_sidecar_request_duration_seconds"]
    assert 5 in {int(s.exemplar.labels["trace_id"], 16) for s in family.samples if s.exemplar}


def test_settings_are_told_when_they_were_taken(scraped: Scraped) -> None:
    assert scraped.value("config_last_reload_successful") == 0
    scraped.metrics.settings_loaded(1_790_000_000.0)
    assert scraped.value("config_last_reload_successful") == 1
    assert scraped.value("config_last_reload_success_timestamp_seconds") == 1_790_000_000


def test_the_version_is_a_label(scraped: Scraped) -> None:
    assert scraped.value("build_info", version="1.2.3") == 1


def test_two_of_them_share_nothing() -> None:
    one, other = Scraped(), Scraped()
    one.tell(Coalesced("explain"))
    assert other.value("coalesced_requests_total") == 0


# What makes no series


@pytest.mark.looptime
async def test_ten_thousand_random_nodes_and_users_make_no_series() -> None:
    world = World(max_nodes=100)
    scraped = Scraped(world.cache)
    await world.ask(user=1, node="explain")
    world.source.serves = answered(404)
    for n in range(10):
        with pytest.raises(PromptError):
            await world.ask(user=2 + n, node=f"random {n}")
    before = scraped.tell(*world.events).series
    world.events.clear()
    for n in range(10, 10_000):
        with pytest.raises(PromptError):
            await world.ask(user=2 + n, node=f"random {n}")
    assert scraped.tell(*world.events).series == before
    assert scraped.value("requests_total", node="other", outcome="error") == 10_000
    assert loop_time() == 0


@pytest.mark.looptime
async def test_no_more_nodes_make_series_than_the_settings_allow() -> None:
    world = World(max_nodes=5)
    scraped = Scraped(world.cache)
    for n in range(50):
        await world.ask(node=f"node {n}")
    requests = [dict(labels) for name, labels in scraped.tell(*world.events).series if name.endswith("requests_total")]
    nodes = {labels["node"] for labels in requests if "node" in labels}
    assert nodes == {"other", *(f"node {n}" for n in range(5))}


def test_lines_that_the_log_lost_are_counted_by_reason_and_are_nought_where_nothing_is_lost(scraped: Scraped) -> None:
    assert scraped.value("log_lines_dropped_total", reason="blocked") == 0
    scraped.metrics.has_log(lambda: {"blocked": 7, "failed": 2})
    assert scraped.value("log_lines_dropped_total", reason="blocked") == 7
    assert scraped.value("log_lines_dropped_total", reason="failed") == 2
