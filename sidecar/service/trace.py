"""Which request is being answered, and which trace it belongs to; listeners and adapters may ask."""

import re
from contextvars import ContextVar
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,64}")
"""What identifiers are made of; anything else may be anything, and is not repeated."""


class Trace(NamedTuple):
    """`kind`: trace_id or request_id."""

    kind: str
    id: str
    span_id: str | None = None
    """The span that a trace_id came with."""


current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)
"""That of the request being answered; None where its headers named none."""

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""The id of the request being answered, its client's or ours; None where there is no request."""


def trace_of(traceparent: str | None, request_id: str | None) -> Trace | None:
    """Return the trace id (W3C Trace Context §3.2), else the request's own id, else None."""
    if traceparent is not None and (found := _TRACEPARENT.fullmatch(traceparent)):
        return Trace("trace_id", found[1], found[2])
    clean = clean_id(request_id)
    return None if clean is None else Trace("request_id", clean)


def clean_id(request_id: str | None) -> str | None:
    """Return an id that may be repeated, else None."""
    return request_id if request_id is not None and _REQUEST_ID.fullmatch(request_id) else None
