"""A handler whose requests are known by their trace while they are answered, and recorded where there is a tracer."""

import re
from collections.abc import Collection

from aiohttp import web
from multidict import istr

from sidecar.core.hop_by_hop import method_label
from sidecar.core.trace_context import trace_of
from sidecar.server.listener import Handler, without_query
from sidecar.server.responses import cache_status_of
from sidecar.service.trace import Attributes, Span, SpanKind, Tracer, current_request_id, current_trace

TRACEPARENT = istr("traceparent")
TRACESTATE = istr("tracestate")
REQUEST_ID = istr("X-Request-Id")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,64}")
"""What identifiers are made of; anything else may be anything, and is not repeated."""


def traced(handler: Handler) -> Handler:
    """Return a handler that notes the trace of a request; one without costs two look-ups."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        request_id = headers.get(REQUEST_ID)
        if request_id is None and TRACEPARENT not in headers:
            return await handler(request)
        trace = trace_of(headers.getall(TRACEPARENT, ()), headers.getall(TRACESTATE, ()))
        # The connection's next request has the same context.
        trace_token = current_trace.set(trace)
        id_token = current_request_id.set(request_id if request_id and _REQUEST_ID.fullmatch(request_id) else None)
        try:
            return await handler(request)
        finally:
            current_trace.reset(trace_token)
            current_request_id.reset(id_token)

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
