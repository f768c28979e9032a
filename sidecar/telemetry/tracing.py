"""Spans of what is sampled: begun and ended here, sent by `otlp`. What is not sampled costs a look at a variable."""

import random
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

from sidecar.core.events import FreshHit, Outcome, RequestOutcome, UpstreamAttempt
from sidecar.core.trace_context import UNSAMPLED, Trace
from sidecar.service.ports import Clock
from sidecar.service.trace import Attributes, SpanKind, current_trace, trace_at_hand
from sidecar.telemetry.dispatch import Handlers

RANDOM_BITS = 64
"""Of a trace id, the last ones: what they amount to decides, so that all who sample by ratio take the same traces."""
SUCCESSES = frozenset({"ok", "not_modified"})
PASSED_BY: AbstractContextManager[None] = nullcontext(None)


@dataclass(slots=True)
class Recorded:
    """A span; see `service.trace.Span`. Instants are Unix seconds."""

    name: str
    kind: SpanKind
    trace_id: str
    span_id: str
    parent_id: str | None
    link: Trace | None
    """The trace that led to this one."""
    began_at: float
    ended_at: float = 0.0
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    is_failed: bool = False

    def set(self, attributes: Attributes) -> None:
        """Add what is known of it by now."""
        self.attributes.update(attributes)

    def fail(self, error_type: str) -> None:
        """Say that it ends by an error, in a word of a closed set; the first word counts."""
        self.is_failed = True
        self.attributes.setdefault("error.type", error_type)


class Tracing:
    """Records spans, and adds to a request's what its outcome tells. Source: W3C Trace Context, OpenTelemetry SDK."""

    def __init__(
        self,
        send: Callable[[Recorded], None],
        *,
        sample_ratio: float,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        """`send`: takes each span when it has ended; `sample_ratio`: of the traces that begin here, 0 to 1."""
        self._send = send
        self._bound = round(sample_ratio * 2**RANDOM_BITS)
        self._clock = clock
        self._wall = wall
        self._random_bits = random.Random().getrandbits  # noqa: S311 — ids, not secrets
        self._open: ContextVar[Recorded | None] = ContextVar("open_span", default=None)

    def span(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[Recorded | None]:
        """Return what lasts as long as the work; gives None where it is not recorded.

        What nobody else decided is decided by chance, where the trace begins.
        """
        above = trace_at_hand()
        if above is None:
            drawn = self._random_bits(RANDOM_BITS)
            return self._begun(name, kind, drawn, None) if drawn < self._bound else _Unsampled()
        if not above.is_sampled:
            return PASSED_BY
        if above.detached:
            return self._begun(name, kind, self._random_bits(RANDOM_BITS), above)
        trace = Trace(f"00-{above.trace_id}-{self._new_span_id()}-01", above.tracestate)
        return self._recorded(name, kind, trace, above.span_id, None)

    def note(self, attributes: Attributes) -> None:
        """Add to the span at hand, if there is one, what is known of it by now."""
        span = self._at_hand()
        if span is not None:
            span.set(attributes)

    def handlers(self) -> Handlers:
        """Return what the span at hand learns of events."""
        return {RequestOutcome: self._answered, FreshHit: self._answered, UpstreamAttempt: self._attempted}

    def _at_hand(self) -> Recorded | None:
        """Return the open span, unless what goes on has left it behind."""
        span, trace = self._open.get(), trace_at_hand()
        if span is None or trace is None or trace.detached or trace.span_id != span.span_id:
            return None
        return span

    def _attempted(self, attempt: UpstreamAttempt) -> None:
        span = self._at_hand()
        if span is not None:
            span.set({"prompt_sidecar.result": attempt.result})
            if attempt.result not in SUCCESSES:
                span.fail(attempt.result)

    def _answered(self, outcome: RequestOutcome) -> None:
        span = self._at_hand()
        if span is None:
            return
        span.set({"prompt_sidecar.outcome": outcome.outcome.value})
        if outcome.node is not None:
            span.set({"prompt_sidecar.node": outcome.node})
        if outcome.age is not None:
            span.set({"prompt_sidecar.age_seconds": outcome.age})
        if outcome.detail is not None:
            span.set({"prompt_sidecar.detail": outcome.detail})
        if outcome.outcome is Outcome.ERROR and outcome.status >= 500 and outcome.detail is not None:
            span.fail(outcome.detail)
        if outcome.age is not None and outcome.render_seconds is not None:  # measured already, for the metrics
            now = self._wall()
            span_id = self._new_span_id()
            began_at = now - outcome.render_seconds
            self._send(Recorded("render", SpanKind.INTERNAL, span.trace_id, span_id, span.span_id, None, began_at, now))

    def _begun(
        self, name: str, kind: SpanKind, drawn: int, link: Trace | None
    ) -> AbstractContextManager[Recorded | None]:
        """Begin a trace, whose id ends with what was drawn."""
        trace = Trace(f"00-{self._random_bits(128 - RANDOM_BITS) or 1:016x}{drawn:016x}-{self._new_span_id()}-01")
        return self._recorded(name, kind, trace, None, link)

    def _new_span_id(self) -> str:
        return f"{self._random_bits(64) or 1:016x}"  # all zeros is no id

    @contextmanager
    def _recorded(
        self, name: str, kind: SpanKind, trace: Trace, parent_id: str | None, link: Trace | None
    ) -> Iterator[Recorded]:
        began_at, began = self._wall(), self._clock()
        span = Recorded(name, kind, trace.trace_id, trace.span_id, parent_id, link, began_at)
        trace_token, span_token = current_trace.set(trace), self._open.set(span)
        try:
            yield span
        except CancelledError:
            span.fail("cancelled")
            raise
        except BaseException as error:
            span.fail(type(error).__name__)  # never its text, which may quote content
            raise
        finally:
            current_trace.reset(trace_token)
            self._open.reset(span_token)
            span.ended_at = began_at + self._clock() - began
            self._send(span)


class _Unsampled(AbstractContextManager[None]):
    """Lets what is not recorded be one trace all the same, so that nothing below decides again."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = current_trace.set(UNSAMPLED)

    def __exit__(self, *_: object) -> None:
        current_trace.reset(self._token)
