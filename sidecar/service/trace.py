"""Which trace the work at hand belongs to, and the port to who records it; without one, it is only passed on."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import StrEnum
from secrets import token_hex
from typing import NamedTuple, Protocol

from sidecar.core.trace_context import UNSAMPLED, Trace

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,64}")
"""What identifiers are made of; anything else may be anything, and is not repeated."""
AS_ASKED = Trace("as asked")
"""Says that the work at hand is where its request said."""


class Incoming(Protocol):
    """What a request is known by while it is answered; read when somebody asks, which for most hits nobody does."""

    @property
    def id(self) -> str:
        """Its client's id for it, or ours."""
        ...

    @property
    def given_id(self) -> str | None:
        """Its client's id for it, if that may be repeated."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The trace that it says it belongs to."""
        ...


current_request: ContextVar[Incoming | None] = ContextVar("current_request", default=None)
"""The request being answered. A task begins with that of whoever began it."""
current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=AS_ASKED)
"""Where the work at hand is, if not where its request said; None: nobody said, and nobody records it."""


def trace_at_hand() -> Trace | None:
    """Return where the work at hand is; None: nobody said, and nobody records it."""
    trace = current_trace.get()
    if trace is not AS_ASKED:
        return trace
    request = current_request.get()
    return None if request is None else request.trace


def request_id() -> str | None:
    """Return the id of the request being answered, its client's or ours; None where there is no request."""
    request = current_request.get()
    return None if request is None else request.id


class Example(NamedTuple):
    """How a request can be found again; `kind`: trace_id or request_id."""

    kind: str
    id: str


def example() -> Example | None:
    """Return the trace of the request being answered if somebody records it, else its client's id for it, else None."""
    trace = trace_at_hand()
    if trace is not None and trace.is_sampled:
        return Example("trace_id", trace.trace_id)
    request = current_request.get()
    given = None if request is None else request.given_id
    return None if given is None else Example("request_id", given)


def clean_id(given: str | None) -> str | None:
    """Return an id that may be repeated, else None."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


def trace_headers() -> dict[str, str]:
    """Return what tells the upstream which trace a call belongs to."""
    trace = trace_at_hand()
    if trace is None or trace.detached:
        return {}
    if trace is UNSAMPLED:
        return {"traceparent": f"00-{token_hex(16)}-{token_hex(8)}-00"}
    state = {"tracestate": trace.tracestate} if trace.tracestate else {}
    return {"traceparent": trace.traceparent, **state}


@contextmanager
def detached() -> Iterator[None]:
    """Begin tasks that nobody waits for: they are traces of their own, linked to the one that led to them."""
    trace = trace_at_hand()
    if trace is None or trace is UNSAMPLED:
        yield
        return
    token = current_trace.set(trace._replace(detached=True))
    try:
        yield
    finally:
        current_trace.reset(token)


Attributes = Mapping[str, str | int | float | bool]
"""By OpenTelemetry's semantic conventions where they have a name for it; never content, settings or a user."""


class SpanKind(StrEnum):
    """What a span is to those on either side of it."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(Protocol):
    """A piece of work that is recorded while it lasts."""

    name: str

    def set(self, attributes: Attributes) -> None:
        """Add what is known of it by now."""
        ...

    def fail(self, error_type: str) -> None:
        """Say that it ends by an error, in a word of a closed set."""
        ...


class Tracer(Protocol):
    """Who records spans."""

    def span(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[Span | None]:
        """Return what lasts as long as the work; gives None where it is not recorded.

        An exception that leaves it fails the span, unless it has failed already.
        """
        ...

    def note(self, attributes: Attributes) -> None:
        """Add to the span at hand, if there is one, what is known of it by now."""
        ...


class NoTracer:
    """Records nothing, and costs next to nothing."""

    _none = nullcontext(None)

    def span(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[None]:  # noqa: ARG002 — its interface
        """Return what does nothing."""
        return self._none

    def note(self, attributes: Attributes) -> None:
        """Do nothing."""


NO_TRACER = NoTracer()
