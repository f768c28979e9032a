"""The two ways through the proxy: a request's body up, an answer down, and how long nothing may move on either."""

import asyncio
import struct
import time
from dataclasses import replace
from email.utils import formatdate
from socket import SO_LINGER, SOL_SOCKET
from types import TracebackType

from aiohttp import HttpVersion10, web

from sidecar.core.hop_by_hop import Headers, end_to_end, has_body, values_of, without
from sidecar.server.body import CONTINUE
from sidecar.service.forwarding import ForwardAnswer, ForwardRequest

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's way to end a connection by a reset."""


class Patience:
    """How long nothing may move, either way; it begins anew with each piece. Raises `TimeoutError` when it ends."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)
        self._holds = False

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._holds = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holds = False  # an upload that is being cancelled may still speak
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self, seconds: float | None = None) -> None:
        """Wait anew; `seconds`: from now on for so long."""
        self._seconds = self._seconds if seconds is None else seconds
        self._end_in(self._seconds)

    def end(self) -> None:
        """Wait no longer."""
        self._end_in(0.0)

    def _end_in(self, seconds: float) -> None:
        if self._holds and not self._timeout.expired():
            self._timeout.reschedule(self._loop.time() + seconds)


class Upload:
    """The client's body on its way; each piece is asked for when the upstream has taken the one before.

    Where the client waits for leave to send it (`Expect: 100-continue`), that is given when the upstream gives it.
    """

    def __init__(self, request: web.BaseRequest, patience: Patience) -> None:
        self._request = request
        self._patience = patience
        self._expected = (
            request.headers.get("Expect", "").lower() == "100-continue"
            and request.version != HttpVersion10  # which cannot know of it (RFC 9110 §10.1.1)
            and request.body_exists
        )
        self._announced = False
        self.waiting = False
        """Is it the client that nothing comes from?"""
        self.error: Exception | None = None

    def of(self, passed: ForwardRequest) -> ForwardRequest:
        """Return the request with its body, if it has one."""
        headers = passed.headers if self._expected else without(passed.headers, "expect")
        return replace(passed, headers=headers, body=self if self._request.body_exists else None)

    def __aiter__(self) -> "Upload":
        return self

    async def __anext__(self) -> bytes:
        request = self._request
        try:
            if self._expected and request.writer.output_size == 0:  # else the answer proper is begun
                self._expected = False
                await request.writer.write(CONTINUE)
                request.writer.output_size = 0
            if not self._announced:
                self._announced = True
                if request.content.total_bytes == 0 and not request.content.is_eof():
                    return b""  # so that the head goes out now, and not with the first piece
            self.waiting = True
            piece = await request.content.readany()
        except Exception as error:
            self.error = error
            self._patience.end()
            raise
        self.waiting = False
        self._patience.renew()
        if not piece:
            raise StopAsyncIteration
        return piece


class Passage(web.StreamResponse):
    """The upstream's answer on its way: its own head, to which only framing is added, and its body as it comes."""

    def __init__(self, request: web.BaseRequest, answer: ForwardAnswer) -> None:  # StreamResponse's state is not used
        self._request = request
        self._answer = answer
        self._begun = self._whole = False
        self._has_body = has_body(request.method, answer.status)
        self._chunked = self._until_close = False
        if self._has_body and not values_of(answer.headers, "content-length"):
            self._until_close = request.version == HttpVersion10
            self._chunked = not self._until_close
        # With a body that nobody has read, the client cannot be sure where its next request begins.
        self._persistent = request.keep_alive and request.content.is_eof() and not self._until_close

    @property
    def status(self) -> int:
        """The upstream's."""
        return self._answer.status

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays."""
        return self._persistent

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: the handler has written it all."""

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 — its interface
        """Let the connection end where the answer did."""
        if not self._whole:
            raise ConnectionResetError("the answer broke off")

    async def run(self, patience: Patience) -> None:
        """Write head and body; raises `UpstreamFailure`, `ConnectionError` where the client has gone."""
        self._begin()
        writer = self._request.writer
        if self._has_body:
            while piece := await self._answer.read():
                patience.renew()
                await writer.write(piece)
                patience.renew()
        await writer.write_eof()
        self._whole = True

    def break_off(self) -> None:
        """Leave the client in no doubt that this was not all."""
        transport = self._request.transport
        if not self._begun or self._whole or transport is None:
            return
        if self._until_close:  # else a length that is not reached, or a last chunk that never comes, tells it
            transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
        transport.abort()

    def _begin(self) -> None:
        request, answer = self._request, self._answer
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        headers: Headers = end_to_end(answer.headers)
        if answer.status == 204:
            headers = without(headers, "content-length")  # RFC 9110 §8.6
        if not values_of(headers, "date"):
            headers.append(("Date", formatdate(time.time(), usegmt=True)))  # RFC 9110 §6.6.1
        if self._chunked:
            headers.append(("Transfer-Encoding", "chunked"))
            request.writer.enable_chunking()
        if not self._persistent:
            headers.append(("Connection", "close"))
        elif request.version == HttpVersion10:
            headers.append(("Connection", "keep-alive"))
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in headers)]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self._begun = True
        transport.write(head)
        request.writer.output_size += len(head)
