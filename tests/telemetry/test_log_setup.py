"""How lines come out: repeats summed up, with the ids of their request, readable where a person reads them."""

import asyncio
import gc
import json
import logging
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from io import StringIO
from typing import Any

import pytest
import structlog
from multidict import CIMultiDict, CIMultiDictProxy

from sidecar.core.errors import FailureKind
from sidecar.core.events import FetchFailed, NotRendered, Outcome, RequestOutcome, RolledBack
from sidecar.core.repeats import MOST_KINDS
from sidecar.core.trace_context import Trace
from sidecar.server.traced import Incoming
from sidecar.service.trace import current_request, current_trace
from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.log_setup import Logs, may_colour
from sidecar.telemetry.logs import LogListener

SECRET = "canary-7f3a"
REFUSED = RequestOutcome("explain", Outcome.ERROR, 0.01, 0.0, None, "circuit_open", 503)
TIMED_OUT = RequestOutcome("explain", Outcome.ERROR, 4.0, 0.0, None, "deadline", 504)
NOBODY_THERE = FetchFailed("explain", FailureKind.CONNECT_ERROR, "no connection to the config service")
SETTINGS = LogSettings(format=LogFormat.JSON)


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


class Told:
    """A log whose time passes when a test says so."""

    def __init__(self, settings: LogSettings = SETTINGS) -> None:
        self.now = 0.0
        self.stream = StringIO()
        self.logs = Logs(
            settings, self.stream, environ={}, clock=lambda: self.now, wall=lambda: 1_790_000_000.0 + self.now
        )
        self.listener = LogListener()
        self.observe = Dispatcher(self.listener.handlers())

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was written since the last look."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return [json.loads(line) for line in text.splitlines()]


async def passes(told: Told, seconds: float) -> None:
    """Let time pass, for the log and for the loop (which looptime fakes)."""
    loop = asyncio.get_running_loop()
    began, before = loop.time(), told.now
    while (left := began + seconds - loop.time()) > 0:
        await asyncio.sleep(min(1.0, left))
        told.now = before + loop.time() - began


# Repeats


def test_ten_thousand_failures_are_a_line_of_each_kind_and_a_sum() -> None:
    told = Told()
    for _ in range(10_000):
        told.observe(NOBODY_THERE)
        told.observe(REFUSED)
    first = told.lines
    assert [line["event"] for line in first] == ["fetch_failed", "prompt_refused"]
    assert "repeated" not in first[0]
    told.now = 7.0
    told.logs.tell_all()
    assert told.lines == [
        {
            "timestamp": "2026-09-21T14:13:27.000Z",
            "level": "warning",
            "event": name,
            **fields,
            "repeated": 9999,
            "first_at": "2026-09-21T14:13:20.000Z",
            "last_at": "2026-09-21T14:13:20.000Z",
        }
        for name, fields in (
            (
                "fetch_failed",
                {"endpoint": "prompt-data", "reason": "connect_error", "detail": "no connection to the config service"},
            ),
            ("prompt_refused", {"status": 503, "detail": "circuit_open"}),
        )
    ]


def test_another_cause_is_another_kind_and_is_told_at_once() -> None:
    told = Told()
    for event in (REFUSED, TIMED_OUT, REFUSED, TIMED_OUT):
        told.observe(event)
    assert [line["status"] for line in told.lines] == [503, 504]


def test_failures_of_many_nodes_for_one_cause_are_one_kind_but_templates_are_told_apart() -> None:
    told = Told()
    for node in ("explain", "quiz"):
        told.observe(FetchFailed(node, FailureKind.RESET, "it broke"))
        told.observe(NotRendered(node, "required"))
    assert [(line["event"], line["node"]) for line in told.lines] == [
        ("fetch_failed", "explain"),
        ("prompt_not_rendered", "explain"),
        ("prompt_not_rendered", "quiz"),
    ]


def test_what_is_never_a_repeat_is_written_each_time() -> None:
    told = Told()
    for _ in range(3):
        told.observe(RolledBack("explain", back=True, reason="3 mismatches"))
    assert len(told.lines) == 3


@pytest.mark.looptime
async def test_sums_come_by_themselves_when_they_are_due_in_longer_and_longer_windows() -> None:
    told = Told(LogSettings(format=LogFormat.JSON, repeat_window=10.0, max_repeat_window=20.0))
    attending = asyncio.ensure_future(told.logs.attend())
    sums: list[tuple[int, int]] = []
    for second in range(120):
        if second < 60:
            told.observe(REFUSED)
        await passes(told, 1.0)
        sums += [(second + 1, line.get("repeated", 0)) for line in told.lines]
    assert [at for at, _ in sums] == [1, 11, 31, 51, 71]
    assert sum(repeated or 1 for _, repeated in sums) == 60
    told.observe(REFUSED)
    assert "repeated" not in told.lines[0]
    attending.cancel()


def test_with_a_window_of_nought_each_line_is_written() -> None:
    told = Told(LogSettings(format=LogFormat.JSON, repeat_window=0.0))
    for _ in range(5):
        told.observe(REFUSED)
    assert len(told.lines) == 5


def test_at_debug_level_nothing_is_summed_up() -> None:
    told = Told(LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG))
    for _ in range(5):
        told.observe(REFUSED)
    assert len(told.lines) == 5


def test_more_kinds_than_are_watched_are_summed_up_by_their_event() -> None:
    told = Told()
    for n in range(MOST_KINDS + 50):
        told.observe(NotRendered(f"node {n}", "required"))
    assert len(told.lines) == MOST_KINDS + 1
    told.logs.tell_all()
    (line,) = told.lines
    assert (line["event"], line["repeated"], "node" in line) == ("prompt_not_rendered", 49, False)


def test_threads_lose_no_line() -> None:
    told = Told()

    def storm() -> None:
        for _ in range(500):
            told.observe(REFUSED)

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.logs.tell_all()
    assert sum(line.get("repeated", 1) for line in told.lines) == 2000


# Settings that change


def test_another_level_holds_at_once_and_what_was_counted_is_told() -> None:
    told = Told()
    for _ in range(3):
        told.observe(REFUSED)
    told.logs.adopt(LogSettings(format=LogFormat.JSON, level=LogLevel.ERROR))
    told.listener.look_again()
    told.observe(TIMED_OUT)
    assert [line.get("repeated", 1) for line in told.lines] == [1, 2]
    told.logs.adopt(LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG))
    told.listener.look_again()
    told.observe(RequestOutcome("explain", Outcome.MISS, 0.01, 0.0, 1.0, None, 200))
    assert [line["event"] for line in told.lines] == ["prompt_served"]


# Ids


def test_a_line_has_the_ids_of_its_request_right_after_its_name() -> None:
    told = Told()

    def request() -> None:
        current_request.set(Incoming(CIMultiDictProxy(CIMultiDict({"X-Request-Id": "a-1"}))))
        current_trace.set(Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
        told.observe(REFUSED)

    copy_context().run(request)
    told.observe(TIMED_OUT)
    with_ids, without = told.lines
    assert [*with_ids][:6] == ["timestamp", "level", "event", "request_id", "trace_id", "span_id"]
    assert (with_ids["request_id"], with_ids["span_id"]) == ("a-1", "00f067aa0ba902b7")
    assert not {"request_id", "trace_id", "span_id"} & without.keys()


# Python's own complaints


def test_a_warning_of_pythons_does_not_reach_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    told.logs.take_over()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn(f"never awaited: {SECRET}", RuntimeWarning, stacklevel=1)
    assert (told.lines, capsys.readouterr().err) == ([], "")


class Breaks:
    def __del__(self) -> None:
        raise ValueError(SECRET)


def test_an_error_that_nobody_can_catch_is_told_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    told.logs.take_over()
    Breaks()
    gc.collect()

    def fails() -> None:
        raise KeyError(SECRET)

    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    lines = told.lines
    assert [(line["event"], line["logger"], line["error"]) for line in lines] == [
        ("library_error", "unraisable", "ValueError"),
        ("library_error", "thread", "KeyError"),
    ]
    assert SECRET not in json.dumps(lines)
    assert capsys.readouterr().err == ""


async def test_an_error_of_a_task_that_nobody_awaits_is_told_once_and_without_its_text() -> None:
    told = Told()
    told.logs.take_over()

    async def fails() -> None:
        raise ValueError(SECRET)

    task = asyncio.ensure_future(fails())
    await asyncio.wait([task])
    del task
    gc.collect()
    (line,) = told.lines
    assert (line["event"], line["logger"], line["error"]) == ("library_error", "asyncio", "ValueError")
    assert SECRET not in json.dumps(line)


def test_what_json_does_not_know_is_told_by_its_kind() -> None:
    told = Told()

    class Holds:
        def __repr__(self) -> str:
            return SECRET

    structlog.get_logger().error("started", listen=Holds(), ops=[Holds()])
    (line,) = told.lines
    assert (line["listen"], line["ops"]) == ("<Holds>", ["<Holds>"])


# For people


@pytest.mark.parametrize(
    ("environ", "is_terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
        ({"TERM": "xterm"}, True, True),
    ],
)
def test_colours_are_for_terminals_unless_the_environment_says_otherwise(
    environ: dict[str, str], *, is_terminal: bool, coloured: bool
) -> None:
    assert may_colour(environ, is_terminal=is_terminal) is coloured


def test_a_readable_line_is_a_line_and_sends_the_terminal_nothing() -> None:
    told = Told(LogSettings(format=LogFormat.CONSOLE))
    told.observe(NotRendered("two\nlines\x1b[2J", "required"))
    text = told.stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert re.search(r"prompt_not_rendered +node=two\\nlines\\x1b\[2J reason=required", text)


def test_kinds_of_the_same_event_at_two_levels_are_two() -> None:
    told = Told()
    told.observe(RequestOutcome("explain", Outcome.ERROR, 0.01, 0.0, None, "x", 404))
    told.observe(RequestOutcome("explain", Outcome.ERROR, 0.01, 0.0, None, "x", 503))
    assert Counter(line["level"] for line in told.lines) == {"info": 1, "warning": 1}
