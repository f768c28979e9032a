"""A handler whose requests are known by their id and their trace while they are answered."""

import secrets
from itertools import count

from aiohttp import web
from multidict import istr

from sidecar.server.listener import Handler
from sidecar.server.responses import REQUEST_ID
from sidecar.service.trace import clean_id, current_request_id, current_trace, trace_of

TRACEPARENT = istr("traceparent")


def traced(handler: Handler) -> Handler:
    """Return a handler that notes id and trace of a request, and says the id on its answer.

    A request without an id of its own, or with one that may not be repeated, gets one.
    """
    ours, numbers = secrets.token_hex(4), count(1)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        # Nothing is put back at the end: each request has a task, and so a context, of its own.
        headers = request.headers
        traceparent, given = headers.get(TRACEPARENT), headers.get(REQUEST_ID)
        if traceparent is not None or given is not None:
            current_trace.set(trace_of(traceparent, given))
        request_id = clean_id(given) or f"{ours}-{next(numbers):x}"
        current_request_id.set(request_id)
        response = await handler(request)
        if isinstance(response, web.Response):  # what is written otherwise has its own way with headers
            response.headers[REQUEST_ID] = request_id
        return response

    return answer
