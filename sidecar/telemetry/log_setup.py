"""How a line gets to standard error: summed up, stamped, as JSON or for a person to read."""

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from sidecar.core.repeats import RepeatRule, Repeats, Sum
from sidecar.core.trace_context import UNSAMPLED
from sidecar.service.trace import request_id, trace_at_hand
from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.log_events import EVENTS
from sidecar.telemetry.log_writer import LogWriter

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LOOK_SECONDS = 10.0
"""How often to look, at least, whether lines were dropped."""

Fields = MutableMapping[str, Any]
Kind = tuple[str, str, tuple[Any, ...]]
"""An event, its level, and the values by which its lines are told apart."""


class Logs:
    """The log of this process; everything that is told by structlog or logging comes out of it."""

    def __init__(
        self,
        settings: LogSettings,
        stream: TextIO | LogWriter,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream
        self._colours = may_colour(environ, is_terminal=stream.isatty())
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()  # a file is read, and a store written to, by threads
        self._repeats: Repeats[Kind] = Repeats(RepeatRule(0.0, 0.0))
        self._told_dropped: Mapping[str, int] = dict(self.dropped)
        self._structlog: structlog.stdlib.BoundLogger = structlog.get_logger()
        self.adopt(settings)

    @classmethod
    def to_standard_error(cls, settings: LogSettings) -> "Logs":
        """Make the log of a command that serves."""
        logs = cls(settings, LogWriter(sys.stderr, max_lines=settings.max_lines))
        logs.take_over()
        return logs

    @property
    def dropped(self) -> Mapping[str, int]:
        """Lines that were dropped, by reason."""
        return self._stream.dropped if isinstance(self._stream, LogWriter) else {}

    def adopt(self, settings: LogSettings) -> None:
        """Write by these settings from now on; who chases a single request, at debug level, gets every line."""
        self.tell_all()
        if isinstance(self._stream, LogWriter):
            self._stream.max_lines = settings.max_lines
        window = 0.0 if settings.level is LogLevel.DEBUG else settings.repeat_window
        self._repeats.rule = RepeatRule(window, max(window, settings.max_repeat_window))
        readable = settings.format is LogFormat.CONSOLE or (settings.format is LogFormat.AUTO and self._stream.isatty())
        renderers: list[Any] = (
            [_printable, structlog.dev.ConsoleRenderer(colors=self._colours, sort_keys=False)]
            if readable
            else [structlog.processors.JSONRenderer(default=_kind_of)]
        )
        structlog.configure(
            processors=[self._sum_up, self._stamp, *renderers],
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level.value]),
            logger_factory=structlog.WriteLoggerFactory(cast("TextIO", self._stream)),
            cache_logger_on_first_use=False,
        )

    def take_over(self) -> None:
        """Bring out what libraries and Python itself complain of as ours, without their text: it may quote content."""
        logging.basicConfig(level=logging.ERROR, handlers=[_Forward()], force=True)
        logging.captureWarnings(capture=True)
        sys.unraisablehook = lambda found: _complain("error", "unraisable", found.exc_value, found.exc_traceback)
        threading.excepthook = lambda found: _complain("error", "thread", found.exc_value, found.exc_traceback)

    def tell_of_crash(self, what: str, error: BaseException) -> None:
        """Tell of an error that ends the process, in the place of Python's traceback, which quotes it."""
        self._structlog.critical("crashed", what=what, error=type(error).__name__, where=where(error.__traceback__))

    async def attend(self) -> None:
        """Write the sums when they are due, and what was dropped, for ever."""
        while True:
            await asyncio.sleep(self._pause())
            with self._lock:
                due = [*self._repeats.ended(self._clock())]
            self._tell_sums(due)
            self._tell_dropped()

    def tell_all(self) -> None:
        """Write what is counted so far."""
        with self._lock:
            due = [*self._repeats.all()]
        self._tell_sums(due)
        self._tell_dropped()

    def close(self) -> None:
        """Write what is left, if it can be written in time."""
        self.tell_all()
        if isinstance(self._stream, LogWriter):
            self._stream.close()

    def _pause(self) -> float:
        window, end = self._repeats.rule.window or LOOK_SECONDS, self._repeats.next_end()
        left = window if end is None else min(window, end - self._clock())
        return max(0.0, min(left, LOOK_SECONDS))

    def _sum_up(self, _: Any, level: str, fields: Fields) -> Fields:
        known = EVENTS.get(fields["event"])
        if self._repeats.rule.window == 0 or known is None or known.kind is None or "repeated" in fields:
            return fields
        if level == "debug":
            return fields
        kind: Kind = (fields["event"], level, tuple([fields.get(name) for name in known.kind]))
        with self._lock:
            if not self._repeats.has_room_for(kind):
                kind = (fields["event"], level, ())
            if self._repeats.is_first(kind, self._clock(), self._wall()):
                return fields
        raise structlog.DropEvent

    def _stamp(self, _: Any, level: str, fields: Fields) -> Fields:
        stamped: dict[str, Any] = {"timestamp": _rfc3339(self._wall()), "level": level, "event": fields.pop("event")}
        if (known_as := request_id()) is not None:
            stamped["request_id"] = known_as
        if (trace := trace_at_hand()) is not None and trace is not UNSAMPLED:
            stamped |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
        return {**stamped, **fields}

    def _tell_sums(self, due: Iterable[tuple[Kind, Sum]]) -> None:
        for (event, level, values), found in due:
            fields = dict(zip(EVENTS[event].kind or (), values, strict=False))  # a coarse kind has no values
            first_at, last_at = _rfc3339(found.first_at), _rfc3339(found.last_at)
            tell = getattr(self._structlog, level)
            tell(event, **fields, repeated=found.repeated, first_at=first_at, last_at=last_at)

    def _tell_dropped(self) -> None:
        now, before = dict(self.dropped), self._told_dropped
        if now != before:
            self._structlog.warning("log_lines_dropped", **{why: now[why] - before[why] for why in now})
            self._told_dropped = now


def may_colour(environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Return whether lines have colours; in CPython's order: NO_COLOR, FORCE_COLOR, TERM, the terminal."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal and environ.get("TERM") != "dumb"


def where(trace: TracebackType | None) -> tuple[str, ...]:
    """Return the frames of an error, and neither its text nor its variables: both may hold content."""
    return tuple(
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in traceback.walk_tb(trace)
    )


class _Forward(logging.Handler):
    """Hands the libraries' records on: who complained, and the kind of error, never its text."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        level = "critical" if record.levelno >= logging.CRITICAL else "error"
        _complain(level, record.name, error, error.__traceback__ if error else None)


def _complain(level: str, logger: str, error: BaseException | None, trace: TracebackType | None) -> None:
    fields = {"error": type(error).__name__, "where": where(trace)} if error else {}
    getattr(structlog.get_logger(), level)("library_error", logger=logger, **fields)


def _printable(_: Any, __: str, fields: Fields) -> Fields:
    """Keep a line a line, and a terminal's control sequences away from it."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in fields.items()}


def _escaped(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _kind_of(value: object) -> str:
    """Stand for what JSON does not know: its own text may hold anything."""
    return f"<{type(value).__name__}>"


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
