"""LearnFlow's listener: aiohttp's low-level server, a table of routes, problems instead of plain text."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from aiohttp import web
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from sidecar.core.events import Crashed
from sidecar.server.connections import Connection, ConnectionLimits, SlowClients, TurnedAway
from sidecar.server.leaving import LINGER_SECONDS, LeavingProtocol, LeavingRequest, LeavingServer
from sidecar.server.responses import REQUEST_ID, SERVER, problem
from sidecar.service.ports import Observer
from sidecar.service.trace import request_id

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""What answers one request."""
_SERVER_ERROR = 500

READ_BUFFER = 65_536
"""Bytes of a body that are read ahead; twice as many at most (aiohttp's own 256 KiB, for each client, add up)."""


class _Request(LeavingRequest):
    """A request whose answers say of their maker what we want said, and what the request is known by."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        if response.headers.get("Server") == SERVER_SOFTWARE:  # aiohttp's and Python's versions
            response.headers["Server"] = SERVER
        # What is written otherwise has its own way with headers.
        if isinstance(response, web.Response) and (known_as := request_id()) is not None:
            response.headers[REQUEST_ID] = known_as


class _Protocol(LeavingProtocol):
    """aiohttp's protocol, whose own errors are answered as problems, and logged as ours."""

    __slots__ = ("_observe",)

    def __init__(self, server: "_Server", **options: Any) -> None:
        super().__init__(server, **options)
        self._observe = server.observe  # aiohttp forgets the server when the client goes

    @property
    def is_silent(self) -> bool:
        """Whether no request has come yet."""
        return self._request_count == 0

    def data_received(self, data: bytes) -> None:
        """Read; a body that breaks off into nonsense is told to the handler that waits for the rest of it."""
        self.heard_at = self._loop.time()
        RequestHandler.data_received(self, data)  # for each request, and super() costs more
        if self._messages and self._current_request is not None and type(self._messages[-1][0]) is _ErrInfo:
            content = self._current_request.content
            if not content.is_eof() and content.exception() is None:
                content.set_exception(RequestPayloadError("the body is not valid HTTP/1.1"))
                content.feed_eof()  # the rest is not waited for

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 — its interface
        """Read on, if reading was paused: aiohttp asks for it after each body, and it costs a tenth of a fresh hit."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

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
        elif isinstance(exc, (ConnectionError, RequestPayloadError)) and _has_gone(request):
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


def _has_gone(request: web.BaseRequest) -> bool:
    """Return whether the client has; the transport knows it a moment before the request does."""
    return request.transport is None or request.transport.is_closing()


def _refusal(exc: BaseException | None) -> web.Response:
    if isinstance(exc, LineTooLong) or "Too many" in str(exc):
        return problem(431, "The request line or the headers are larger than limits.max_header or limits.max_headers.")
    return problem(400, "The request is not valid HTTP/1.1.")


class _Server(LeavingServer):
    """A server that makes our protocol; aiohttp has no setting for it."""

    request_class = _Request

    def __init__(self, handler: Handler, observer: Observer, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(handler, **options)
        self.observe = observer
        self._limits = limits
        made_here = cast("Mapping[Connection, asyncio.Transport]", self._connections)
        self._slow = SlowClients(made_here, limits, observer)
        self._turned_away: set[TurnedAway] = set()

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        if len(self._connections) >= self._limits.max_connections:
            return TurnedAway(self._turned_away, self._limits, self.observe)
        return _Protocol(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Note a connection, and have it watched."""
        super().connection_made(handler, transport)
        self._slow.watch()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 — its interface
        """End all connections, those with a request after it."""
        await super().shutdown(timeout)
        self._slow.stop()


class Routes:
    """One handler a path and method; anything else goes elsewhere, or is a problem."""

    def __init__(self, table: Mapping[tuple[str, str], Handler], elsewhere: Handler | None = None) -> None:
        self._table = dict(table)
        self._elsewhere = elsewhere
        self._methods: dict[str, list[str]] = {}
        for method, path in self._table:
            self._methods.setdefault(path, []).append(method)

    def become(self, other: "Routes") -> None:
        """Answer as another does the requests that begin from now on."""
        self.__dict__ |= other.__dict__

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer by the table; no coroutine of its own, as all requests come through here."""
        method, target = request.method, request.raw_path
        handler = self._table.get((method, target))
        if handler is None:
            # Only the query is left out: a path spelt in another way is another path, for the upstream to judge.
            path = without_query(target)
            handler = self._table.get((method, path)) or self._elsewhere
            if handler is None:
                return self._nothing(path)
        return handler(request)

    async def _nothing(self, path: str) -> web.StreamResponse:
        if allowed := self._methods.get(path):
            return problem(405, f"{path} takes {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)})
        return problem(404, "There is nothing at this path.")


def without_query(target: str) -> str:
    """Return the path of a request target, which may be in absolute form (RFC 9112 §3.2.2)."""
    if not target.startswith("/"):
        scheme, found, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if found and scheme.lower() in {"http", "https"} else target
    return target.partition("?")[0]


def make_server(
    handler: Handler, observer: Observer, *, max_header: int, max_headers: int, connections: ConnectionLimits
) -> LeavingServer:
    """Make the server of one listener; limits in bytes and in lines."""
    return _Server(
        handler,
        observer,
        connections,
        keepalive_timeout=connections.keep_alive,
        read_bufsize=READ_BUFFER,
        access_log=None,  # one event per decision is logged where it is made
        max_line_size=max_header,
        max_field_size=max_header,
        max_headers=max_headers,
        lingering_time=LINGER_SECONDS,  # aiohttp's 10 s would be more than twice the deadline
        handler_cancellation=True,  # what is passed on for a client ends when it goes
        auto_decompress=False,  # a body that claims an encoding is refused, never inflated
    )
