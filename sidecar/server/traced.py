"""A handler whose requests are known by id and trace while they are answered, and recorded where there is a tracer."""

import secrets
from collections.abc import Collection
from itertools import count

from aiohttp import web
from multidict import istr

from sidecar.core.hop_by_hop import method_label
from sidecar.core.trace_context import trace_of
from sidecar.server.listener import Handler, without_query
from sidecar.server.responses import REQUEST_ID, cache_status_of
from sidecar.service.trace import (
    Attributes,
    Span,
    SpanKind,
    Tracer,
    clean_id,
    current_request_id,
    current_trace,
    given_request_id,
)

TRACEPARENT = istr("traceparent")
TRACESTATE = istr("tracestate")


def traced(handler: Handler) -> Handler:
    """Return a handler that notes id and trace of a request, and says the id on its answer.

    A request without an id of its own, or with one that may not be repeated, gets one.
    """
    ours, numbers = secrets.token_hex(4), count(1)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        # Nothing is put back at the end: each request has a task, and so a context, of its own.
        headers = request.headers
        is_traced = TRACEPARENT in headers
        current_trace.set(trace_of(headers.getall(TRACEPARENT), headers.getall(TRACESTATE, ())) if is_traced else None)
        given = clean_id(headers.get(REQUEST_ID))
        given_request_id.set(given)
        request_id = given or f"{ours}-{next(numbers):x}"
        current_request_id.set(request_id)
        response = await handler(request)
        if isinstance(response, web.Response):  # what is written otherwise has its own way with headers
            response.headers[REQUEST_ID] = request_id
        return response

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
