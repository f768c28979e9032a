"""structlog: one event per decision that matters, JSON or readable on a terminal (contract §4 promise 1)."""

import logging
import sys
import traceback
from typing import Literal, TextIO

import structlog

from sidecar.core.errors import FailureKind
from sidecar.core.events import (
    BreakerChanged,
    CollectorChanged,
    Crashed,
    Evicted,
    FetchFailed,
    FreshHit,
    GenerationChanged,
    Invalidated,
    NotAdmitted,
    NotRendered,
    Outcome,
    ParityChecked,
    Proxied,
    RecordDropped,
    Reloaded,
    RenderedEmpty,
    RequestOutcome,
    Retried,
    RolledBack,
    StoreChanged,
    TemplatesLoaded,
    UpstreamAttempt,
    WarmUpEnded,
    Written,
)
from sidecar.telemetry.dispatch import Handlers

ANSWERS = frozenset({FailureKind.GONE, FailureKind.REFUSED})
"""Failures that are the upstream's own word, and no trouble."""
OTHER = "other"
"""What stands for a node that the upstream never confirmed."""

MOST_SEEN = 1000
"""Combinations of node and empty names that are remembered as told."""

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logs(*, level: str, style: Literal["auto", "json", "console"], stream: TextIO | None = None) -> None:
    """Send events to standard error; `auto` is readable on a terminal and JSON elsewhere."""
    stream = sys.stderr if stream is None else stream
    readable = style == "console" or (style == "auto" and stream.isatty())
    renderers: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())] if readable else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    # asyncio's and aiohttp's own complaints come out as ours do, without the client's bytes.
    logging.basicConfig(level=logging.ERROR, handlers=[_Forward()], force=True)


def where(error: BaseException) -> list[str]:
    """Return the frames of an error, and neither its text nor its variables: both may hold content."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


class _Forward(logging.Handler):
    """Hands the libraries' records to structlog: who complained, and the kind of error, never its text."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields = {"error": type(error).__name__, "where": where(error)} if error else {}
        log = structlog.get_logger()
        tell = log.critical if record.levelno >= logging.CRITICAL else log.error
        tell("library_error", logger=record.name, **fields)


class LogListener:
    """Tells the log what happened; what goes well is told at debug level only."""

    def __init__(self) -> None:
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._debug = self._log.is_enabled_for(logging.DEBUG)
        self._seen_empty: set[RenderedEmpty] = set()

    def handlers(self) -> Handlers:
        """Return what is told of each event."""
        log = self._log
        at_debug: Handlers = {
            UpstreamAttempt: self._attempted,
            FreshHit: self._request_finished,
            Proxied: lambda e: log.debug("request_passed_on", **e._asdict()),
        }
        always: Handlers = {
            RequestOutcome: self._request_finished,
            Retried: lambda e: log.info("upstream_retried", reason=e.reason.value),
            BreakerChanged: lambda e: log.warning("circuit_changed", breaker=e.breaker, to=e.to),
            FetchFailed: self._fetch_failed,
            Evicted: lambda e: log.info("entry_evicted", node=e.node or OTHER),
            Written: lambda e: log.info("settings_written", result=e.result),
            GenerationChanged: self._generation_changed,
            NotAdmitted: lambda e: log.warning("template_not_admitted", node=e.node, detail=e.detail),
            TemplatesLoaded: self._templates_loaded,
            ParityChecked: self._parity_checked,
            RolledBack: self._rolled_back,
            Reloaded: self._reloaded,
            RecordDropped: lambda e: log.warning("record_dropped", reason=e.reason),
            StoreChanged: self._store_changed,
            CollectorChanged: self._collector_changed,
            Invalidated: self._invalidated,
            WarmUpEnded: self._warm_up_ended,
            RenderedEmpty: self._rendered_empty,
            NotRendered: lambda e: log.warning("prompt_not_rendered", node=e.node or OTHER, reason=e.reason),
            Crashed: lambda e: log.error("crashed", what=e.what, error=type(e.error).__name__, where=where(e.error)),
        }
        return {**always, **at_debug} if self._debug else always

    def _fetch_failed(self, event: FetchFailed) -> None:
        log = self._log.info if event.kind in ANSWERS else self._log.warning
        log(
            "fetch_failed",
            node=event.node or OTHER,
            reason=event.kind.value,
            detail=event.detail,
            endpoint=event.endpoint,
        )

    def _rendered_empty(self, event: RenderedEmpty) -> None:
        """Warn once of each: for today's service a missing key is nothing out of the way."""
        known = event in self._seen_empty
        if not known and len(self._seen_empty) < MOST_SEEN:
            self._seen_empty.add(event)
        log = self._log.debug if known else self._log.warning
        log("placeholder_rendered_empty", node=event.node or OTHER, names=event.names)

    def _generation_changed(self, event: GenerationChanged) -> None:
        if event.configured:
            return
        log = self._log.info if event.before is None else self._log.warning
        log("generation_changed", to=event.to, before=event.before)

    def _templates_loaded(self, event: TemplatesLoaded) -> None:
        if event.error is None:
            self._log.info("templates_loaded", nodes=event.nodes)
        else:
            self._log.error("templates_not_loaded", error=event.error, nodes_in_force=event.nodes)

    def _parity_checked(self, event: ParityChecked) -> None:
        node = event.node or OTHER
        if event.result == "mismatch":
            self._log.warning("parity_mismatch", **(event._asdict() | {"node": node}))
        else:
            self._log.debug("parity_checked", node=node, result=event.result)

    def _rolled_back(self, event: RolledBack) -> None:
        if event.back:
            self._log.error("node_rolled_back", node=event.node, reason=event.reason)
        else:
            self._log.warning("node_taken_into_service", node=event.node, reason=event.reason)

    def _reloaded(self, event: Reloaded) -> None:
        if event.problems:
            self._log.error("settings_not_reloaded", problems=event.problems)
        else:
            self._log.info("settings_reloaded", waiting_for_restart=event.restart)

    def _warm_up_ended(self, event: WarmUpEnded) -> None:
        tell = self._log.info if event.state == "done" and not event.results["failed"] else self._log.warning
        tell("warm_up_ended", state=event.state, **event.results, reasons=event.reasons)

    def _invalidated(self, event: Invalidated) -> None:
        if event.source == "admin" or event.scope != "user":
            self._log.info("invalidated", source=event.source, scope=event.scope)

    def _store_changed(self, event: StoreChanged) -> None:
        if event.error is None:
            self._log.info("store_recovered")
        else:
            self._log.error("store_degraded", error=event.error)

    def _collector_changed(self, event: CollectorChanged) -> None:
        if event.error is None:
            self._log.info("traces_sent_again", lost_spans=event.lost)
        else:
            self._log.warning("traces_not_sent", error=event.error, lost_spans=event.lost)

    def _attempted(self, event: UpstreamAttempt) -> None:
        self._log.debug("upstream_called", **event._asdict())

    def _request_finished(self, outcome: RequestOutcome) -> None:
        fields = {
            "node": outcome.node or OTHER,
            "outcome": outcome.outcome.value,
            "status": outcome.status,
            "seconds": round(outcome.seconds, 6),
        }
        if outcome.age is not None:
            fields["age_seconds"] = round(outcome.age, 3)
        if outcome.detail is not None:
            fields["detail"] = outcome.detail
        match outcome.outcome:
            case Outcome.FRESH if outcome.detail is None:
                self._log.debug("prompt_served", **fields)
            case Outcome.STALE:
                self._log.warning("stale_prompt_served", **fields)
            case Outcome.ERROR:
                log = self._log.warning if outcome.status >= 500 else self._log.info  # below, the client is told why
                log("prompt_refused", **fields)
            case _:
                self._log.info("prompt_served", **fields)
