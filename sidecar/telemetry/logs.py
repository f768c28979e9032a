"""What is told of what happened: one line per decision that matters, and never content (contract §4 promise 1)."""

import logging
from typing import Any

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
    Refused,
    Reloaded,
    RenderedEmpty,
    RequestOutcome,
    Retried,
    RolledBack,
    Shed,
    StoreChanged,
    TemplatesLoaded,
    UpstreamAttempt,
    UpstreamFilesRead,
    WarmUpEnded,
    Written,
)
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.log_setup import where
from sidecar.telemetry.request_metrics import COVERING, OTHER

ANSWERS = frozenset({FailureKind.GONE, FailureKind.REFUSED})
"""Failures that are the upstream's own word, and no trouble."""
NOT_PASSED_ON = frozenset({"5xx", "overload", *(kind.value for kind in FailureKind)})
"""Ends of a request on its way through the proxy that somebody should know of."""
MOST_SEEN = 1000
"""Combinations of node and empty names that are remembered as told."""


class LogListener:
    """Tells the log what happened; what goes well, and happens with each request, at debug level only."""

    def __init__(self) -> None:
        self._seen_empty: set[RenderedEmpty] = set()
        self.look_again()

    def look_again(self) -> None:
        """Take the log as it is configured now; bound once, because that costs more than most lines."""
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind()
        self._debug = self._log.is_enabled_for(logging.DEBUG)

    def handlers(self) -> Handlers:
        """Return what is told of each event."""
        return {
            RequestOutcome: self._request_finished,
            FreshHit: self._served,
            UpstreamAttempt: self._attempted,
            Proxied: self._passed_on,
            Retried: lambda e: self._log.info("upstream_retried", reason=e.reason.value),
            BreakerChanged: lambda e: self._log.warning("circuit_changed", breaker=e.breaker, to=e.to),
            FetchFailed: self._fetch_failed,
            Evicted: lambda e: self._log.info("entry_evicted", node=e.node or OTHER),
            Written: lambda e: self._log.info("settings_written", result=e.result),
            GenerationChanged: self._generation_changed,
            NotAdmitted: lambda e: self._log.warning("template_not_admitted", node=e.node, detail=e.detail),
            TemplatesLoaded: self._templates_loaded,
            UpstreamFilesRead: self._upstream_files_read,
            ParityChecked: self._parity_checked,
            RolledBack: self._rolled_back,
            Reloaded: self._reloaded,
            RecordDropped: lambda e: self._log.warning("record_dropped", reason=e.reason),
            StoreChanged: self._store_changed,
            CollectorChanged: self._collector_changed,
            Invalidated: self._invalidated,
            WarmUpEnded: self._warm_up_ended,
            RenderedEmpty: self._rendered_empty,
            NotRendered: lambda e: self._log.warning("prompt_not_rendered", node=e.node or OTHER, reason=e.reason),
            Refused: lambda e: self._log.warning("request_refused", reason=e.reason),
            Shed: lambda e: self._log.warning("request_shed", reason=e.reason),
            Crashed: self._crashed,
        }

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

    def _upstream_files_read(self, event: UpstreamFilesRead) -> None:
        if event.error is None:
            self._log.info("upstream_files_read", what=event.what)
        else:
            self._log.error("upstream_files_not_read", what=event.what, error=event.error)

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

    def _crashed(self, event: Crashed) -> None:
        error = event.error
        self._log.error("crashed", what=event.what, error=type(error).__name__, where=where(error.__traceback__))

    def _collector_changed(self, event: CollectorChanged) -> None:
        if event.error is None:
            self._log.info("traces_sent_again", lost_spans=event.lost)
        else:
            self._log.warning("traces_not_sent", error=event.error, lost_spans=event.lost)

    def _attempted(self, event: UpstreamAttempt) -> None:
        if self._debug:
            self._log.debug("upstream_called", **event._asdict())

    def _passed_on(self, event: Proxied) -> None:
        if event.result in NOT_PASSED_ON:
            self._log.warning("passing_on_failed", **event._asdict())
        elif self._debug:
            self._log.debug("request_passed_on", **event._asdict())

    def _request_finished(self, outcome: RequestOutcome) -> None:
        if outcome.outcome is Outcome.STALE and outcome.detail in COVERING:
            self._log.warning("stale_prompt_served", **_fields(outcome))
        elif outcome.outcome is Outcome.ERROR:
            log = self._log.warning if outcome.status >= 500 else self._log.info  # below, the client is told why
            log("prompt_refused", **_fields(outcome))
        else:
            self._served(outcome)

    def _served(self, outcome: RequestOutcome) -> None:
        if self._debug:
            self._log.debug("prompt_served", **_fields(outcome))


def _fields(outcome: RequestOutcome) -> dict[str, Any]:
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
    return fields
