"""Everything that the sidecar does not answer itself: passed on to the upstream, both ways as a stream."""

import asyncio

from aiohttp import web

from sidecar.core.errors import FAILURE_TABLE, FailureKind, UpstreamFailure
from sidecar.core.events import Proxied
from sidecar.core.hop_by_hop import (
    SAFE_METHODS,
    end_to_end,
    method_label,
    origin_form,
    refusal,
    values_of,
    with_forwarded_for,
    without,
)
from sidecar.server.passage import Passage, Patience, Upload
from sidecar.server.responses import problem
from sidecar.service.forwarding import Forwarding, ForwardRequest, Write, WriteEnd, WriteWatch
from sidecar.service.ports import Clock, Observer
from sidecar.service.trace import request_id

RETRY_AFTER_SECONDS = 1
"""What a client is told to wait: how long it will take, nobody knows."""
NOT_SENT = frozenset({FailureKind.CONNECT_ERROR, FailureKind.CONNECT_TIMEOUT, FailureKind.TLS_ERROR})
"""Failures before any byte of the request was sent."""
DETAILS = {
    FailureKind.CONNECT_ERROR: "The config service cannot be reached.",
    FailureKind.CONNECT_TIMEOUT: "No connection to the config service could be made in time.",
    FailureKind.TLS_ERROR: "No connection to the config service could be trusted: the TLS handshake failed.",
    FailureKind.READ_TIMEOUT: "The config service did not answer in time.",
    FailureKind.RESET: "The connection to the config service broke before it answered.",
    FailureKind.GARBAGE: "The config service's answer is not valid HTTP/1.1.",
}
Outcome = tuple[web.StreamResponse, str]
"""What the client gets, and its name for telemetry."""


class Proxy:
    """The handler of requests that go through.

    `max_in_flight`: requests at the upstream at once; up to `max_queue` more wait for `queue_timeout` seconds at most;
    `response_timeout`: seconds until the head of the answer, anew with each piece of the request's body;
    `idle_timeout`: seconds between two pieces, either way, once it is here. The server must cancel the handler of a
    client that has gone (`handler_cancellation`), else its request goes on without it.
    """

    def __init__(
        self,
        forwarder: Forwarding,
        *,
        watch: WriteWatch | None,
        observer: Observer,
        clock: Clock,
        max_in_flight: int,
        max_queue: int,
        queue_timeout: float,
        response_timeout: float,
        idle_timeout: float,
    ) -> None:
        self._forwarder = forwarder
        self._watch = watch
        self._observe = observer
        self._clock = clock
        self._slots = asyncio.Semaphore(max_in_flight)
        self._queued = 0
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._response_timeout = response_timeout
        self._idle_timeout = idle_timeout

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on, and its answer back."""
        began_at = self._clock()
        result = "crashed"
        try:
            response, result = await self._answer(request)
        except asyncio.CancelledError:
            result = "client_gone"  # or the drain's time is up
            raise
        finally:
            self._observe(Proxied(method_label(request.method), result, self._clock() - began_at))
        return response

    async def _answer(self, request: web.BaseRequest) -> Outcome:
        given = [(str(name), value) for name, value in request.headers.items()]
        if found := refusal(request.method, request.version, given):
            return _refuse(request, *found), "refused"
        try:
            target, host = origin_form(request.method, request.raw_path)
        except ValueError as error:
            return _refuse(request, 400, f"The request cannot be passed on: {error}."), "refused"
        headers = with_forwarded_for(end_to_end(given), request.remote)
        if (known_as := request_id()) is not None and values_of(headers, "x-request-id") != [known_as]:
            headers = [*without(headers, "x-request-id"), ("X-Request-Id", known_as)]
        if host is not None:  # it counts, not what the header says (RFC 9112 §3.2.2)
            headers = [("Host", host), *without(headers, "host")]
        if not await self._takes_a_slot():
            return _refuse(request, 503, "Too many requests are at the config service already."), "overload"
        try:
            return await self._forward(request, ForwardRequest(request.method, target, headers))
        finally:
            self._slots.release()

    async def _takes_a_slot(self) -> bool:
        if self._slots.locked() and self._queued >= self._max_queue:
            return False
        self._queued += 1
        try:
            async with asyncio.timeout(self._queue_timeout):
                return await self._slots.acquire()
        except TimeoutError:
            return False
        finally:
            self._queued -= 1

    async def _forward(self, request: web.BaseRequest, passed: ForwardRequest) -> Outcome:
        patience = Patience(self._response_timeout)
        upload = Upload(request, patience)
        write = _Write(self._watch, passed)
        passage: Passage | None = None
        try:
            await write.prepare()
            async with patience, self._forwarder.open(upload.of(passed)) as answer:
                # A gateway's 504 says as little of what the service still does as no answer at all.
                write.ended(WriteEnd.ANSWERED if answer.status < 500 else WriteEnd.LOST)
                patience.renew(self._idle_timeout)
                passage = Passage(request, answer)
                await passage.run(patience)
                return passage, f"{answer.status // 100}xx"
        except UpstreamFailure as failure:
            kind = failure.kind
            if kind in NOT_SENT:
                write.ended(WriteEnd.NOT_SENT)
        except TimeoutError:
            kind = FailureKind.READ_TIMEOUT
        except ConnectionError:  # of writing to the client; the upstream's are failures
            kind = FailureKind.CANCELLED
        finally:
            write.ended(WriteEnd.LOST)
            if passage is not None:
                passage.break_off()
        response, result = _failed(request, upload, kind)
        return passage or response, result


def _failed(request: web.BaseRequest, upload: Upload, kind: FailureKind) -> Outcome:
    """Say whose fault it was: the client's, if it left, sent nonsense or nothing more, else the upstream's."""
    if request.transport is None or kind is FailureKind.CANCELLED:
        return _refuse(request, 400, "The client has gone."), "client_gone"
    if upload.error is not None:
        return _refuse(request, 400, "The request's body is not valid HTTP/1.1."), "refused"
    if kind is FailureKind.READ_TIMEOUT and upload.waiting:
        return _refuse(request, 408, "The body did not arrive in time."), "client_timeout"
    status = FAILURE_TABLE[kind].status
    assert status is not None
    return _refuse(request, status, DETAILS[kind]), kind.value


def _refuse(request: web.BaseRequest, status: int, detail: str) -> web.Response:
    response = problem(status, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None)
    if status in {400, 501, 505} or not request.content.is_eof():
        response.force_close()  # where the next request would begin is not sure, or the body is not read
    return response


class _Write:
    """A request that may change something: the watch hears that it begins, and once how it ended."""

    def __init__(self, watch: WriteWatch | None, request: ForwardRequest) -> None:
        self._told: Write | None = None
        if watch is not None and request.method not in SAFE_METHODS:
            self._told = watch.began(request.method, request.target)

    async def prepare(self) -> None:
        """Let the watch do what must be done before anything is sent."""
        if self._told is not None:
            await self._told.prepare()

    def ended(self, how: WriteEnd) -> None:
        """Tell, unless it is told."""
        told, self._told = self._told, None
        if told is not None:
            told(how)
