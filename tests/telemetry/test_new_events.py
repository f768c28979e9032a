"""The events of generations, templates, parity, reload and proxy: each its line in the log and its metric."""

import json
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any, get_args

import pytest
import structlog
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.cache.memory import MemoryCache
from sidecar.core.errors import FailureKind
from sidecar.core.events import (
    CertificateSeen,
    CollectorChanged,
    Crashed,
    Event,
    FetchFailed,
    FreshHit,
    GenerationChanged,
    NotAdmitted,
    Outcome,
    ParityChecked,
    Proxied,
    Reloaded,
    RequestOutcome,
    RolledBack,
    TemplatesLoaded,
    UpstreamFilesRead,
    Written,
)
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.log_setup import LEVELS
from sidecar.telemetry.logs import LogListener
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.request_metrics import BATCH

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PREFIX = "prompt_sidecar_"
MISTAKE = "prompts.yaml, line 2, key 'b_system_prompt': is not a text"
DIFFERENT = ParityChecked("explain", "mismatch", "11166a7c1ded", "prompt", 17, 120, 121)
NO_DIFFERENCE = {"template": None, "part": None, "position": 0, "our_length": 0, "their_length": 0}


class Told:
    """Log and metrics together, as a sidecar has them."""

    def __init__(self, level: str = "debug") -> None:
        self.stream = StringIO()
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
            logger_factory=structlog.PrintLoggerFactory(self.stream),
            cache_logger_on_first_use=False,
        )
        self.metrics = Metrics(version="1", cache=MemoryCache(max_entries=1, max_bytes=1, clock=lambda: 0.0))
        self.observe = Dispatcher(self.metrics.handlers(), LogListener().handlers())

    def tell(self, *events: Event) -> "Told":
        for event in events:
            self.observe(event)
        return self

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def families(self, accept: str | None = None) -> dict[str, Metric]:
        body, content_type = self.metrics.expose(accept)
        read = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse
        return {family.name: family for family in read(body.decode())}

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return the samples of this name by their labels, the same in both formats."""
        found = [
            {
                frozenset(sample.labels.items()): sample.value
                for family in self.families(accept).values()
                for sample in family.samples
                if sample.name == PREFIX + name
            }
            for accept in (None, OPENMETRICS)
        ]
        assert found[0] == found[1]
        return found[0]

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples(name).get(frozenset(labels.items()))


@pytest.fixture(autouse=True)
def _leaves_logging_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def told() -> Told:
    return Told()


# The log

SAID: dict[str, tuple[Event, str, str, dict[str, Any]]] = {
    "a write": (Written("answered"), "info", "settings_written", {"result": "answered"}),
    "a write whose answer was lost": (Written("lost"), "info", "settings_written", {"result": "lost"}),
    "the first generation found": (
        GenerationChanged("placeholders", None),
        "info",
        "generation_changed",
        {"to": "placeholders", "before": None},
    ),
    "another generation": (
        GenerationChanged("prompt-data", "placeholders"),
        "warning",
        "generation_changed",
        {"to": "prompt-data", "before": "placeholders"},
    ),
    "not admitted": (
        NotAdmitted("odd", "line 2: filter `center` is refused"),
        "warning",
        "template_not_admitted",
        {"node": "odd", "detail": "line 2: filter `center` is refused"},
    ),
    "templates": (TemplatesLoaded(11, None), "info", "templates_loaded", {"nodes": 11}),
    "a mistake in the templates": (
        TemplatesLoaded(11, MISTAKE),
        "error",
        "templates_not_loaded",
        {"error": MISTAKE, "nodes_in_force": 11},
    ),
    "new certificates": (UpstreamFilesRead("tls", None), "info", "upstream_files_read", {"what": "tls"}),
    "a mistake in the token": (
        UpstreamFilesRead("token", "upstream.token_file: /t is empty"),
        "error",
        "upstream_files_not_read",
        {"what": "token", "error": "upstream.token_file: /t is empty"},
    ),
    "a match": (ParityChecked("explain", "match"), "debug", "parity_checked", {"node": "explain", "result": "match"}),
    "a comparison that failed": (
        ParityChecked(None, "failed"),
        "debug",
        "parity_checked",
        {"node": "other", "result": "failed"},
    ),
    "a mismatch": (
        DIFFERENT,
        "warning",
        "parity_mismatch",
        {
            "node": "explain",
            "result": "mismatch",
            "template": "11166a7c1ded",
            "part": "prompt",
            "position": 17,
            "our_length": 120,
            "their_length": 121,
        },
    ),
    "a mismatch of a node that is not known": (
        ParityChecked(None, "mismatch"),
        "warning",
        "parity_mismatch",
        {"node": "other", "result": "mismatch", **NO_DIFFERENCE},
    ),
    "a node taken back": (
        RolledBack("explain", back=True, reason="3 mismatches"),
        "error",
        "node_rolled_back",
        {"node": "explain", "reason": "3 mismatches"},
    ),
    "a node taken into service": (
        RolledBack("explain", back=False, reason="reset"),
        "warning",
        "node_taken_into_service",
        {"node": "explain", "reason": "reset"},
    ),
    "a reload": (Reloaded(7.0, (), ()), "info", "settings_reloaded", {"waiting_for_restart": []}),
    "a reload with more to come": (
        Reloaded(7.0, (), ("deadline", "retry")),
        "info",
        "settings_reloaded",
        {"waiting_for_restart": ["deadline", "retry"]},
    ),
    "a reload refused": (
        Reloaded(7.0, ("deadline: '4' is not allowed", "x: is no known key"), ()),
        "error",
        "settings_not_reloaded",
        {"problems": ["deadline: '4' is not allowed", "x: is no known key"]},
    ),
    "a collector in trouble": (
        CollectorChanged("status 404", 7),
        "warning",
        "traces_not_sent",
        {"error": "status 404", "lost_spans": 7},
    ),
    "a collector that takes traces again": (
        CollectorChanged(None, 7),
        "info",
        "traces_sent_again",
        {"lost_spans": 7},
    ),
    "a request passed on": (
        Proxied("GET", "2xx", 0.25),
        "debug",
        "request_passed_on",
        {"method": "GET", "result": "2xx", "seconds": 0.25},
    ),
    **{
        f"passing on: {result}": (
            Proxied("PUT", result, 0.25),
            "warning",
            "passing_on_failed",
            {"method": "PUT", "result": result, "seconds": 0.25},
        )
        for result in ("5xx", "overload", "reset", "connect_error")
    },
    "settings not read": (
        FetchFailed(None, FailureKind.RESET, "it broke", "user-placeholders"),
        "warning",
        "fetch_failed",
        {"node": "other", "reason": "reset", "detail": "it broke", "endpoint": "user-placeholders"},
    ),
    "a bypass and its reason": (
        RequestOutcome("explain", Outcome.BYPASS, 0.5, 0.0, 0.0, "rollout", 200),
        "debug",
        "prompt_served",
        {
            "node": "explain",
            "outcome": "bypass",
            "status": 200,
            "seconds": 0.5,
            "age_seconds": 0.0,
            "detail": "rollout",
        },
    ),
}


@pytest.mark.parametrize(("event", "level", "name", "fields"), SAID.values(), ids=SAID)
def test_each_event_is_one_line_with_its_level_name_and_fields(
    told: Told, event: Event, level: str, name: str, fields: dict[str, Any]
) -> None:
    (line,) = told.tell(event).lines
    assert line == {"level": level, "event": name, **fields}
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_below_the_level_is_said(level: str) -> None:
    told = Told(level).tell(*(event for event, *_ in SAID.values()))
    wanted = [name for _, its, name, _ in SAID.values() if LEVELS[its] >= LEVELS[level]]
    assert [line["event"] for line in told.lines] == wanted


def test_a_generation_that_the_settings_name_is_no_news(told: Told) -> None:
    assert told.tell(GenerationChanged("placeholders", None, configured=True)).lines == []
    assert told.value("upstream_generation", generation="placeholders") == 1


def test_every_event_is_told_of_in_log_or_metrics(told: Told) -> None:
    handled = {*told.metrics.handlers(), *LogListener().handlers()}
    assert set(get_args(Event)) == handled


# The metrics


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (Written("answered"), "invalidations_total", {"source": "write"}),
        (Written("lost"), "invalidations_total", {"source": "write"}),
        (NotAdmitted("odd", "x"), "templates_not_admitted_total", {}),
        (DIFFERENT, "parity_checks_total", {"node": "explain", "result": "mismatch"}),
        *[
            (ParityChecked("explain", result), "parity_checks_total", {"node": "explain", "result": result})
            for result in ("match", "outdated", "failed", "skipped")
        ],
        (ParityChecked(None, "skipped"), "parity_checks_total", {"node": "other", "result": "skipped"}),
        (Proxied("GET", "2xx", 0.25), "proxied_requests_total", {"method": "GET", "result": "2xx"}),
        (Proxied("other", "refused", 0.25), "proxied_requests_total", {"method": "other", "result": "refused"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, tuple) else None,
)
def test_what_happens_is_counted(told: Told, event: Event, name: str, labels: dict[str, str]) -> None:
    assert told.tell(event, event).value(name, **labels) == 2
    assert sum(told.samples(name).values()) == 2


def test_one_generation_is_in_use_at_a_time(told: Told) -> None:
    names = ("passthrough", "placeholders", "prompt-data", "placeholders")
    assert told.samples("upstream_generation") == {}
    before = None
    for to in names:
        told.tell(GenerationChanged(to, before))
        in_use = [dict(labels)["generation"] for labels, value in told.samples("upstream_generation").items() if value]
        assert in_use == [to]
        before = to
    assert set(told.samples("upstream_generation").values()) == {0, 1}


def test_the_template_file_is_well_or_not(told: Told) -> None:
    for error, value in ((None, 1), (MISTAKE, 0), (MISTAKE, 0), (None, 1)):
        assert told.tell(TemplatesLoaded(11, error)).value("templates_file_ok") == value


def test_the_files_of_the_upstream_are_well_or_not(told: Told) -> None:
    for error, value in ((None, 1), ("broken", 0), ("broken", 0), (None, 1)):
        assert told.tell(UpstreamFilesRead("tls", error)).value("upstream_files_ok", what="tls") == value


def test_the_end_of_a_certificate_is_told(told: Told) -> None:
    for at in (1.8e9, 1.9e9):
        told.tell(CertificateSeen("server", at))
        assert told.value("upstream_certificate_expiry_timestamp_seconds", whose="server") == at


def test_where_there_is_no_template_file_there_is_no_mistake_in_it(told: Told) -> None:
    assert told.value("templates_file_ok") in {None, 1}


def test_a_node_is_taken_back_until_it_is_taken_into_service(told: Told) -> None:
    assert told.samples("rolled_back") == {}
    told.tell(RolledBack("explain", back=True, reason="x"), RolledBack("quiz", back=True, reason="x"))
    assert told.value("rolled_back", node="explain") == told.value("rolled_back", node="quiz") == 1
    told.tell(RolledBack("explain", back=False, reason="reset"))
    assert (told.value("rolled_back", node="explain"), told.value("rolled_back", node="quiz")) == (0, 1)


def test_a_reload_is_told_with_its_instant_and_a_refused_one_leaves_that_as_it_was(told: Told) -> None:
    def state() -> tuple[float | None, float | None]:
        return (
            told.value("config_last_reload_successful"),
            told.value("config_last_reload_success_timestamp_seconds"),
        )

    told.tell(Reloaded(1_790_000_000.5, (), ("deadline",)))
    assert state() == (1, 1_790_000_000.5)
    told.tell(Reloaded(1_790_000_007.0, ("x: is no known key",), ()))
    assert state() == (0, 1_790_000_000.5)
    told.tell(Reloaded(1_790_000_009.0, (), ()))
    assert state() == (1, 1_790_000_009.0)


def test_how_long_requests_took_that_were_passed_on_is_told_whatever_came_of_them(told: Told) -> None:
    told.tell(Proxied("GET", "2xx", 0.01), Proxied("PUT", "client_gone", 7.0), Proxied("GET", "crashed", 60.0))
    assert told.value("proxied_request_duration_seconds_count") == 3
    assert told.value("proxied_request_duration_seconds_sum") == pytest.approx(67.01)
    buckets = {
        dict(labels)["le"]: value for labels, value in told.samples("proxied_request_duration_seconds_bucket").items()
    }
    assert (buckets["0.01"], buckets["5.0"], buckets["25.0"], buckets["+Inf"]) == (1, 1, 2, 3)


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ("rollout", "rollout"),
        ("parity", "parity"),
        ("not-admitted", "not-admitted"),
        ("passthrough", "passthrough"),
        ("undetected", "undetected"),
        ("endpoint-gone", "endpoint-gone"),
        (None, "network-only"),
    ],
)
def test_bypassed_requests_are_counted_by_their_reason(told: Told, detail: str | None, reason: str) -> None:
    told.tell(*[RequestOutcome("explain", Outcome.BYPASS, 0.5, 0.0, 0.0, detail, 200)] * 3)
    assert told.samples("bypassed_requests_total") == {frozenset({("reason", reason)}): 3}
    assert told.value("requests_total", node="explain", outcome="bypass") == 3


def test_what_was_not_bypassed_has_no_reason_to_be(told: Told) -> None:
    told.tell(
        FreshHit("explain", Outcome.FRESH, 0.5, 0.0, 0.0, "no-settings", 200),
        RequestOutcome("explain", Outcome.STALE, 0.5, 0.0, 9.0, "stale-if-error", 200),
        RequestOutcome(None, Outcome.ERROR, 0.5, 0.0, None, "rollout", 503),
    )
    assert told.samples("bypassed_requests_total") == {}


def test_bypassed_requests_are_counted_however_many_come_between_two_scrapes(told: Told) -> None:
    one = RequestOutcome("explain", Outcome.BYPASS, 0.5, 0.0, 0.0, "rollout", 200)
    other = RequestOutcome("quiz", Outcome.BYPASS, 0.5, 0.0, 0.0, "parity", 200)
    told.tell(*[one] * (BATCH + 1), *[other] * 2)
    for _ in range(2):
        assert told.value("bypassed_requests_total", reason="rollout") == BATCH + 1
        assert told.value("bypassed_requests_total", reason="parity") == 2


# What is exposed

FAMILIES: dict[str, tuple[str, set[str]]] = {
    "upstream_generation": ("gauge", {"generation"}),
    "templates_not_admitted": ("counter", set()),
    "templates_file_ok": ("gauge", set()),
    "parity_checks": ("counter", {"node", "result"}),
    "rolled_back": ("gauge", {"node"}),
    "proxied_requests": ("counter", {"method", "result"}),
    "proxied_request_duration_seconds": ("histogram", set()),
    "bypassed_requests": ("counter", {"reason"}),
    "config_last_reload_successful": ("gauge", set()),
    "invalidations": ("counter", {"source"}),
}
EVERYTHING = [event for event, *_ in SAID.values()]


@pytest.mark.parametrize("accept", [None, OPENMETRICS], ids=["text", "OpenMetrics"])
@pytest.mark.parametrize(("name", "kind", "labels"), [(name, *rest) for name, rest in FAMILIES.items()], ids=FAMILIES)
def test_each_metric_has_its_type_its_labels_and_a_word_on_what_it_is(
    told: Told, name: str, kind: str, labels: set[str], accept: str | None
) -> None:
    family = told.tell(*EVERYTHING).families(accept)[PREFIX + name]
    assert family.type == kind
    assert family.documentation.endswith(".")
    assert {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples} == {frozenset(labels)}


def test_only_a_closed_set_of_words_and_nodes_become_labels(told: Told) -> None:
    details = [MISTAKE, "line 2", "3 mismatches", "11166a7c1ded", "is not allowed", "it broke"]
    text = told.tell(*EVERYTHING).metrics.expose(None)[0].decode()
    assert [detail for detail in details if detail in text] == []


def test_an_event_has_no_field_for_a_user_a_path_or_content() -> None:
    names: set[str] = set()
    for event in get_args(Event):
        names |= set(getattr(event, "_fields", None) or event.__struct_fields__)
    forbidden = r"(user|path|target|prompt|context|content|settings|value|query|host|header|body|secret|token)"
    assert [name for name in names if re.search(forbidden, name)] == []


def test_no_event_but_a_crash_carries_an_object_whose_text_could_be_logged() -> None:
    carrying = [
        event
        for event in get_args(Event)
        if any("BaseException" in str(kind) or kind is Any for kind in event.__annotations__.values())
    ]
    assert carrying == [Crashed]


def test_names_of_nodes_are_exposed_as_they_are(told: Told) -> None:
    for node in ('say "hi"', "back\\slash", "two\nlines", "ответ"):
        told.tell(ParityChecked(node, "match"), RolledBack(node, back=True, reason="x"))
        assert told.value("parity_checks_total", node=node, result="match") == 1
        assert told.value("rolled_back", node=node) == 1
