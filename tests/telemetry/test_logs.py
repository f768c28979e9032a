"""The log: one event per decision that matters, and never content."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from sidecar.core.errors import FailureKind
from sidecar.core.events import (
    BreakerChanged,
    Coalesced,
    Crashed,
    Event,
    Evicted,
    FetchFailed,
    FreshHit,
    NotRendered,
    Outcome,
    RenderedEmpty,
    RequestOutcome,
    Retried,
    UpstreamAttempt,
)
from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.log_setup import LEVELS, Logs
from sidecar.telemetry.logs import LogListener

SECRET = "canary-7f3a"


class Terminal(StringIO):
    """A stream that says that a person reads it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _leaves_logging_as_it_was() -> Iterator[None]:
    root, hooks = logging.getLogger(), (sys.unraisablehook, threading.excepthook)
    handlers, level = root.handlers[:], root.level
    yield
    sys.unraisablehook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def logs_to(stream: StringIO, *, level: str = "info", style: str = "json", **environ: str) -> Logs:
    """Write to this stream, each line."""
    settings = LogSettings(level=LogLevel(level), format=LogFormat(style), repeat_window=0.0)
    logs = Logs(settings, stream, environ=environ)
    logs.take_over()
    return logs


def text_of(*events: Event, level: str = "debug", style: Any = "json", stream: StringIO | None = None) -> str:
    """Return what the log says of these events."""
    stream = stream or StringIO()
    logs_to(stream, level=level, style=style)
    observe = Dispatcher(LogListener().handlers())
    for event in events:
        observe(event)
    return stream.getvalue()


def lines_of(*events: Event, level: str = "debug") -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(*events, level=level).splitlines()]


def crash() -> Crashed:
    """Return the crash of a function whose error and variables hold content."""

    def handle(context: str) -> None:
        secret = {"topic": context}
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError(f"cannot render {secret}") from error

    try:
        handle(SECRET)
    except ValueError as error:
        return Crashed("request", error)
    raise AssertionError


def served(outcome: Outcome, detail: str | None = None) -> RequestOutcome:
    return RequestOutcome("explain", outcome, 0.0123456789, 0.0001, 700.00004, detail, 200)


FRESH_HIT = FreshHit("explain", Outcome.FRESH, 0.0001, 0.00001, 5.0, None, 200)
SERVED = {"node": "explain", "status": 200, "seconds": 0.012346, "age_seconds": 700.0}
SAID: dict[str, tuple[Event, str, str, dict[str, Any]]] = {
    "a fresh hit": (
        FRESH_HIT,
        "debug",
        "prompt_served",
        {"node": "explain", "outcome": "fresh", "status": 200, "seconds": 0.0001, "age_seconds": 5.0},
    ),
    "a miss": (served(Outcome.MISS), "debug", "prompt_served", {**SERVED, "outcome": "miss"}),
    "a bypass": (served(Outcome.BYPASS), "debug", "prompt_served", {**SERVED, "outcome": "bypass"}),
    "stale": (
        served(Outcome.STALE, "stale-if-error"),
        "warning",
        "stale_prompt_served",
        {**SERVED, "outcome": "stale", "detail": "stale-if-error"},
    ),
    "stale, as every day": (
        served(Outcome.STALE, "stale-while-revalidate"),
        "debug",
        "prompt_served",
        {**SERVED, "outcome": "stale", "detail": "stale-while-revalidate"},
    ),
    "an error": (
        RequestOutcome(None, Outcome.ERROR, 4.0, 0.0, None, "deadline", 504),
        "warning",
        "prompt_refused",
        {"node": "other", "outcome": "error", "status": 504, "seconds": 4.0, "detail": "deadline"},
    ),
    "the upstream's own no": (
        RequestOutcome("explain", Outcome.ERROR, 0.02, 0.0, None, "gone", 404),
        "info",
        "prompt_refused",
        {"node": "explain", "outcome": "error", "status": 404, "seconds": 0.02, "detail": "gone"},
    ),
    "an attempt": (
        UpstreamAttempt("prompt-data", "ok", 0.011),
        "debug",
        "upstream_called",
        {"endpoint": "prompt-data", "result": "ok", "seconds": 0.011},
    ),
    "a retry": (Retried(FailureKind.RESET), "info", "upstream_retried", {"reason": "reset"}),
    "a circuit": (
        BreakerChanged("upstream", "open"),
        "warning",
        "circuit_changed",
        {"breaker": "upstream", "to": "open"},
    ),
    "a failed fetch": (
        FetchFailed(None, FailureKind.GARBAGE, "the config service answered with what is not JSON"),
        "warning",
        "fetch_failed",
        {
            "node": "other",
            "reason": "garbage",
            "detail": "the config service answered with what is not JSON",
            "endpoint": "prompt-data",
        },
    ),
    "a fetch that was answered": (
        FetchFailed("explain", FailureKind.GONE, "the config service answered 404"),
        "info",
        "fetch_failed",
        {"node": "explain", "reason": "gone", "detail": "the config service answered 404", "endpoint": "prompt-data"},
    ),
    "an eviction": (Evicted("explain"), "info", "entry_evicted", {"node": "explain"}),
    "an empty placeholder": (
        RenderedEmpty("explain", ("a", "b")),
        "warning",
        "placeholder_rendered_empty",
        {"node": "explain", "names": ["a", "b"]},
    ),
    "no rendering": (
        NotRendered("explain", "required"),
        "warning",
        "prompt_not_rendered",
        {"node": "explain", "reason": "required"},
    ),
}


@pytest.mark.parametrize(("event", "level", "name", "fields"), SAID.values(), ids=SAID)
def test_each_event_is_one_line_with_its_level_name_and_fields(
    event: Event, level: str, name: str, fields: dict[str, Any]
) -> None:
    (line,) = lines_of(event)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {"level": level, "event": name, **fields}
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_below_the_level_is_said(level: str) -> None:
    events = [event for event, *_ in SAID.values()]
    wanted = [name for _, its, name, _ in SAID.values() if LEVELS[its] >= LEVELS[level]]
    assert [line["event"] for line in lines_of(*events, level=level)] == wanted


def test_what_goes_well_and_often_is_said_at_debug_level_only() -> None:
    often: list[Event] = [FRESH_HIT, UpstreamAttempt("prompt-data", "ok", 0.011), Coalesced("explain")]
    assert text_of(*often, level="info") == ""
    assert len(lines_of(*often)) == 2


def test_a_line_is_a_line_whatever_the_names_hold() -> None:
    (line,) = lines_of(Evicted('two\nlines "quoted" ответ'))
    assert line["node"] == 'two\nlines "quoted" ответ'


# Crashes


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_crash_says_where_it_happened_and_neither_its_text_nor_its_variables(style: str) -> None:
    text = text_of(crash(), style=style)
    assert SECRET not in text
    assert "ValueError" in text
    assert "handle" in text


def test_a_crash_says_its_kind_and_its_frames() -> None:
    (line,) = lines_of(crash())
    assert (line["level"], line["event"], line["what"], line["error"]) == ("error", "crashed", "request", "ValueError")
    assert [frame.rsplit(" ", 1)[1] for frame in line["where"]] == ["crash", "handle"]
    assert all(re.fullmatch(r".+\.py:\d+ \w+", frame) for frame in line["where"])


# Libraries


def of_a_library(log: logging.Logger) -> None:
    try:
        raise ConnectionResetError(f"while sending {SECRET}")
    except ConnectionResetError:
        log.exception("Error handling request %s", SECRET)


@pytest.mark.parametrize("name", ["asyncio", "aiohttp.server", "aiohttp.access"])
def test_a_librarys_error_is_passed_on_without_its_text(name: str) -> None:
    stream = StringIO()
    logs_to(stream)
    of_a_library(logging.getLogger(name))
    line = json.loads(stream.getvalue())
    assert SECRET not in stream.getvalue()
    assert (line["level"], line["event"], line["logger"]) == ("error", "library_error", name)
    assert (line["error"], line["where"][0].rsplit(" ", 1)[1]) == ("ConnectionResetError", "of_a_library")


def test_a_librarys_error_without_an_exception_says_who_complained() -> None:
    stream = StringIO()
    logs_to(stream)
    logging.getLogger("asyncio").critical("lost %s", SECRET)
    line = json.loads(stream.getvalue())
    line.pop("timestamp")
    assert line == {"level": "critical", "event": "library_error", "logger": "asyncio"}


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_what_libraries_say_below_an_error_is_left_out(level: str) -> None:
    stream = StringIO()
    logs_to(stream, level="debug")
    getattr(logging.getLogger("aiocache.base"), level)("GET %s", SECRET)
    assert stream.getvalue() == ""


# Who reads it


@pytest.mark.parametrize(
    ("style", "stream", "readable", "coloured"),
    [
        pytest.param("auto", Terminal(), True, True, id="auto, a terminal"),
        pytest.param("auto", StringIO(), False, False, id="auto, a file"),
        pytest.param("json", Terminal(), False, False, id="json, a terminal"),
        pytest.param("console", Terminal(), True, True, id="console, a terminal"),
        pytest.param("console", StringIO(), True, False, id="console, a file"),
    ],
)
def test_a_person_gets_readable_lines_and_a_machine_gets_json(
    style: str, stream: StringIO, *, readable: bool, coloured: bool
) -> None:
    text = text_of(BreakerChanged("upstream", "open"), style=style, stream=stream)
    assert text.count("\n") == 1
    assert "circuit_changed" in text
    assert text.startswith("{") is not readable
    assert ("\x1b[" in text) is coloured


def test_to_configure_again_replaces_what_was() -> None:
    first = StringIO()
    text_of(stream=first)
    second = text_of(BreakerChanged("upstream", "open"), level="info")
    of_a_library(logging.getLogger("asyncio"))
    assert (first.getvalue(), second.count("\n")) == ("", 1)


def test_an_empty_placeholder_is_warned_of_once_for_each_node_and_name() -> None:
    with capture_logs() as events:
        tell = LogListener().handlers()[RenderedEmpty]
        for names in (("a",), ("a",), ("b",), ("a",)):
            tell(RenderedEmpty("explain", names))
    assert [(event["log_level"], event["names"]) for event in events] == [
        ("warning", ("a",)),
        ("debug", ("a",)),
        ("warning", ("b",)),
        ("debug", ("a",)),
    ]
