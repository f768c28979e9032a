"""LearnFlow's listener: aiohttp's low-level server, a table of routes, problems instead of plain text."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from sidecar.core.events import Crashed
from sidecar.server.responses import problem
from sidecar.service.ports import Observer

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""What answers one request."""
_SERVER_ERROR = 500

LINGER_SECONDS = 1.0
"""How long what is left of a refused body is read and dropped, so that its client gets the answer and not a reset."""


class _Protocol(RequestHandler):
    """aiohttp's protocol, whose own errors are answered as problems, and logged as ours."""

    __slots__ = ("_observe",)

    def __init__(self, server: "_Server", **options: Any) -> None:
        super().__init__(server, **options)
        self._observe = server.observe  # aiohttp forgets the server when the client goes

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 — it quotes the client's bytes
    ) -> web.StreamResponse:
        """Answer what was no HTTP request, or what a handler did not foresee."""
        exc = sys.exc_info()[1] if exc is None else exc  # aiohttp does not hand on a handler's TimeoutError
        if status < _SERVER_ERROR:
            response = _refusal(exc)
        elif isinstance(exc, (ConnectionError, RequestPayloadError)) and request.transport is None:
            raise ConnectionError("the client has gone") from exc
        elif isinstance(exc, RequestPayloadError):
            response = _refusal(exc)
        else:
            if exc is not None:
                self._observe(Crashed("request", exc))
            response = problem(500, "The sidecar failed to answer; its log says why.")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response.force_close()
        return response


def _refusal(exc: BaseException | None) -> web.Response:
    if isinstance(exc, LineTooLong) or "Too many" in str(exc):
        return problem(431, "The request line or the headers are larger than limits.max_header or limits.max_headers.")
    return problem(400, "The request is not valid HTTP/1.1.")


class _Server(web.Server):
    """A server that makes our protocol; aiohttp has no setting for it."""

    def __init__(self, handler: Handler, observer: Observer, **options: Any) -> None:
        super().__init__(handler, **options)
        self.observe = observer

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=asyncio.get_running_loop(), **self._kwargs)


class Routes:
    """One handler a path and method; anything else goes elsewhere, or is a problem."""

    def __init__(self, table: Mapping[tuple[str, str], Handler], elsewhere: Handler | None = None) -> None:
        self._table = dict(table)
        self._elsewhere = elsewhere
        self._methods: dict[str, list[str]] = {}
        for method, path in self._table:
            self._methods.setdefault(path, []).append(method)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer by the table."""
        method, target = request.method, request.raw_path
        handler = self._table.get((method, target))
        if handler is None:
            # Only the query is left out: a path spelt in another way is another path, for the upstream to judge.
            path = without_query(target)
            handler = self._table.get((method, path))
            if handler is None:
                if self._elsewhere is not None:
                    return await self._elsewhere(request)
                if allowed := self._methods.get(path):
                    return problem(405, f"{path} takes {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)})
                return problem(404, "There is nothing at this path.")
        return await handler(request)


def without_query(target: str) -> str:
    """Return the path of a request target, which may be in absolute form (RFC 9112 §3.2.2)."""
    if not target.startswith("/"):
        scheme, found, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if found and scheme.lower() in {"http", "https"} else target
    return target.partition("?")[0]


def make_server(
    handler: Handler, observer: Observer, *, max_header: int, max_headers: int, **options: Any
) -> web.Server:
    """Make the server of one listener; limits in bytes and in lines."""
    return _Server(
        handler,
        observer,
        access_log=None,  # one event per decision is logged where it is made
        max_line_size=max_header,
        max_field_size=max_header,
        max_headers=max_headers,
        lingering_time=LINGER_SECONDS,  # aiohttp's 10 s would be more than twice the deadline
        handler_cancellation=True,  # what is passed on for a client ends when it goes
        auto_decompress=False,  # a body that claims an encoding is refused, never inflated
        **options,
    )
