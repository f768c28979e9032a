"""A handler whose requests are known by their trace while they are answered."""

from aiohttp import web
from multidict import istr

from sidecar.server.listener import Handler
from sidecar.service.trace import current_trace, trace_of

TRACEPARENT = istr("traceparent")
REQUEST_ID = istr("X-Request-Id")


def traced(handler: Handler) -> Handler:
    """Return a handler that notes the trace of a request; one without costs two look-ups."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        traceparent, request_id = headers.get(TRACEPARENT), headers.get(REQUEST_ID)
        if traceparent is None and request_id is None:
            return await handler(request)
        token = current_trace.set(trace_of(traceparent, request_id))
        try:
            return await handler(request)
        finally:
            current_trace.reset(token)  # the connection's next request has the same context

    return answer
