"""Requests passed on to the upstream: streamed, byte for byte, and a write never twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.hop_by_hop import SAFE_METHODS, is_sound, method_label, values_of, without
from sidecar.service.forwarding import ForwardRequest
from sidecar.service.trace import NO_TRACER, Attributes, SpanKind, Tracer, trace_headers
from sidecar.upstream.access import Access
from sidecar.upstream.attempt_spans import server_attributes
from sidecar.upstream.client import IDLE_SECONDS, BaseAddress, SoundRequest, failure_of

MAX_HEAD_LINE = 65_536
"""Bytes of a line of an answer's head; what the upstream sends to LearnFlow is its own affair, within reason."""
MAX_HEADERS = 256
OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add."""


class _Request(SoundRequest):
    """A request that remembers the connection that it took."""

    transport: asyncio.Transport | None = None

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Begin the request."""
        self.transport = conn.transport
        return await super().send(conn)


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Turn aiohttp's errors into ours before it sees them: it sends PUT and DELETE again when a connection breaks."""
    try:
        return await handler(request)
    except BaseException as error:
        if isinstance(request, _Request) and request.transport is not None:
            request.transport.abort()  # a mere close would wait for an upstream that reads no more
        if isinstance(error, (aiohttp.ClientError, OSError)):
            raise failure_of(error) from error
        raise


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.append(True)


def _trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return trace


class Forwarder:
    """Passes requests on.

    Safe requests without a body share kept connections, and one that finds its connection dead (the config service
    closes idle ones) is sent once more. All others go out on a connection of their own, once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float,
        access: Access | None = None,
        adds_token: bool = False,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`adds_token`: whether a request without an Authorization of its own gets the sidecar's."""
        self._base = BaseAddress(base_url)
        self._access = access or Access()
        self._adds_token = adds_token
        self._tracer = tracer
        self._server: Attributes = server_attributes(base_url)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        # The proxy's bulkhead is the limit.
        self._kept = self._session(aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS), _trace())
        self._single = self._session(aiohttp.TCPConnector(limit=0, force_close=True))

    def _session(self, connector: aiohttp.TCPConnector, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=OWN_HEADERS,
            max_line_size=MAX_HEAD_LINE,
            max_field_size=MAX_HEAD_LINE,
            max_headers=MAX_HEADERS,
            middlewares=(_once,),
            request_class=_Request,
            trace_configs=list(traces),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._kept.close()
        await self._single.close()

    @asynccontextmanager
    async def open(self, request: ForwardRequest) -> AsyncIterator["Answer"]:
        """Send a request, and bring the head of its answer; raises `UpstreamFailure`."""
        method = method_label(request.method)
        with self._tracer.span("HTTP" if method == "other" else method, kind=SpanKind.CLIENT) as span:
            if span is not None:  # else the client's own headers go on as they came
                span.set({"http.request.method": "_OTHER" if method == "other" else method, **self._server})
                request = _traced(request)
            answer = Answer(await self._send(request))
            try:
                if span is not None:
                    span.set({"http.response.status_code": answer.status})
                    if answer.status >= 400:
                        span.fail(str(answer.status))
                if not is_sound(answer.status, answer.reason, answer.headers):
                    raise UpstreamFailure(
                        FailureKind.GARBAGE, "the config service answered with a head that cannot be passed on"
                    )
                yield answer
            finally:
                await answer.close()

    async def _send(self, request: ForwardRequest) -> aiohttp.ClientResponse:
        if request.body is None and request.method in SAFE_METHODS:
            reused: list[bool] = []
            try:
                return await self._ask(self._kept, request, trace_request_ctx=reused)
            except UpstreamFailure as failure:
                if failure.kind is not FailureKind.RESET or not reused:
                    raise
        return await self._ask(self._single, request)

    async def _ask(
        self, session: aiohttp.ClientSession, request: ForwardRequest, **options: Any
    ) -> aiohttp.ClientResponse:
        headers = request.headers
        may_lend = self._adds_token and request.method != "TRACE"  # its answer may repeat the request (RFC 9110 §9.3.8)
        token = self._access.authorization if may_lend else None
        is_ours = token is not None and not values_of(headers, "authorization")
        if token is not None and is_ours:
            headers = [*headers, ("Authorization", token)]
        response = await session.request(
            request.method,
            self._base.at(request.target),
            headers=headers,
            data=request.body,
            allow_redirects=False,
            **self._access.connection,
            **options,
        )
        if is_ours and response.status == 401:
            self._access.refused()
        return response


def _traced(request: ForwardRequest) -> ForwardRequest:
    """Return a request that has what is recorded here for a parent."""
    headers = without(without(request.headers, "traceparent"), "tracestate")
    return replace(request, headers=[*headers, *trace_headers().items()])


def _seen(lost: "asyncio.Future[None]") -> None:
    """Look at a lost connection's error, so that asyncio does not complain of it."""
    lost.exception()


class Answer:
    """An answer whose body is still coming; see `service.forwarding.ForwardAnswer`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.status = response.status
        self.reason = (response.reason or "").encode("utf-8", "surrogateescape").decode("latin-1")
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
        self._until_close = not values_of(self.headers, "content-length") and not values_of(
            self.headers, "transfer-encoding"
        )
        connection = response.connection  # None: all of it is here
        protocol = None if connection is None else connection.protocol
        self._lost: asyncio.Future[None] | None = None if protocol is None else protocol.closed
        if self._lost is not None:
            self._lost.remove_done_callback(_seen)  # once for each connection, however many answers it brings
            self._lost.add_done_callback(_seen)
            self._lost.add_done_callback(self._broke)

    def _broke(self, _: "asyncio.Future[None]") -> None:
        """End a body that aiohttp forgets: after a chunk that is none, it lets the reader wait forever."""
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(aiohttp.ClientPayloadError("the body is not valid HTTP/1.1"))

    async def read(self) -> bytes:
        """Return the next piece, and nothing at the end; raises `UpstreamFailure` where the body breaks off."""
        try:
            piece = await self._content.readany()
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise UpstreamFailure(FailureKind.RESET, "the config service's answer broke off") from error
        # A body that ends with the connection ends well only where the connection does; aiohttp takes both for the end.
        lost = self._lost
        if not piece and self._until_close and lost is not None and lost.done() and lost.exception() is not None:
            raise UpstreamFailure(FailureKind.RESET, "the config service's answer broke off")
        return piece

    async def close(self) -> None:
        """Give the connection back if the exchange is whole, else break it."""
        if self._lost is not None:
            self._lost.remove_done_callback(self._broke)
        response = self._response
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # as in `_once`
        response.close()
        await response.wait_for_close()
