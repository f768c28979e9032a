"""A handler whose requests are known by id and trace while they are answered, and recorded where there is a tracer."""

import secrets
from collections.abc import Awaitable, Collection
from itertools import count

from aiohttp import web
from multidict import CIMultiDictProxy, istr

from sidecar.core.hop_by_hop import method_label
from sidecar.core.trace_context import Trace, trace_of
from sidecar.server.listener import Handler, without_query
from sidecar.server.responses import REQUEST_ID, cache_status_of
from sidecar.service.trace import (
    AS_ASKED,
    Attributes,
    Span,
    SpanKind,
    Tracer,
    clean_id,
    current_request,
)

TRACEPARENT = istr("traceparent")
TRACESTATE = istr("tracestate")


class Incoming:
    """A request by its headers; see `service.trace.Incoming`. They are read when somebody asks, which costs less."""

    __slots__ = ("_headers", "_id", "_trace")

    def __init__(self, headers: CIMultiDictProxy[str]) -> None:
        self._headers = headers
        self._id: str | None = None
        self._trace: Trace | None = AS_ASKED

    @property
    def id(self) -> str:
        """Its own; where it has none, or one that may not be repeated, it gets one."""
        if self._id is None:
            self._id = self.given_id or f"{_OURS}-{next(_numbers):x}"
        return self._id

    @property
    def given_id(self) -> str | None:
        """Its own, if it may be repeated."""
        given = self._headers.get(REQUEST_ID)
        return None if given is None else clean_id(given)

    @property
    def trace(self) -> Trace | None:
        """What its headers say."""
        if self._trace is AS_ASKED:
            headers = self._headers
            said = TRACEPARENT in headers
            self._trace = trace_of(headers.getall(TRACEPARENT), headers.getall(TRACESTATE, ())) if said else None
        return self._trace


_OURS, _numbers = secrets.token_hex(4), count(1)


def traced(handler: Handler) -> Handler:
    """Return a handler that notes by what a request is known while it is answered."""

    def answer(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        # Nothing is put back at the end: each request has a task, and so a context, of its own.
        current_request.set(Incoming(request.headers))
        return handler(request)

    return answer


class RequestSpans:
    """A handler whose requests are spans, where they are sampled."""

    def __init__(self, handler: Handler, tracer: Tracer, *, paths: Collection[str], host: str, port: int) -> None:
        """`paths`: those that are named; all others may hold a user's id, and are not."""
        self._handler = handler
        self._tracer = tracer
        self._paths = frozenset(paths)
        self._server: Attributes = {"url.scheme": "http", "server.address": host, "server.port": port}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        with self._tracer.span("HTTP", kind=SpanKind.SERVER) as span:
            if span is None:
                return await self._handler(request)
            method = method_label(request.method)
            path = without_query(request.raw_path)
            span.name = "HTTP" if method == "other" else method
            span.set({"http.request.method": "_OTHER" if method == "other" else method, **self._server})
            if path in self._paths:
                span.name = f"{span.name} {path}"
                span.set({"http.route": path, "url.path": path})
            response = await self._handler(request)
            _note(span, response)
            return response


def _note(span: Span, response: web.StreamResponse) -> None:
    """Say how a request was answered."""
    status = response.status
    span.set({"http.response.status_code": status})
    if said := cache_status_of(response):
        span.set({"prompt_sidecar.cache_status": said})
    if status >= 500:
        span.fail(str(status))
