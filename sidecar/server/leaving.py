"""How a listener's connections end at a drain: what was asked is answered, and nobody gets a reset (RFC 9112 §9.6)."""

import asyncio
import socket
from collections.abc import Coroutine, Iterable
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

LINGER_SECONDS = 1.0
"""How long what still comes is read and dropped, after the last answer of a connection and for what is left of a
refused body: its client gets the answer and not a reset."""
TICK_SECONDS = 0.005
"""Between two looks at the connections that are left; aiohttp says nowhere when one has become idle."""


Finished = tuple[web.StreamResponse, bool]
"""The answer, and whether its client has gone."""


class LeavingProtocol(RequestHandler):
    """aiohttp's protocol, which can end its connection after the answer that is under way.

    `heard_at`: the loop's instant at which the client said something last; noted by the `data_received` of what is
    made of this, so that there is one for each request.
    """

    __slots__ = ("_is_last", "_server", "heard_at")

    def __init__(self, server: "LeavingServer", **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self.heard_at = self._loop.time()
        self._is_last = False

    def goes_on(self) -> bool:
        """Return whether the connection takes requests after the answer that begins; if not, the answer says so."""
        if self._server.is_draining and not self._messages:
            self._is_last = True
        return not self._is_last

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, Finished]:
        """Finish it, and if it was the last, say so by TCP's means, too."""
        finishing = super().finish_response(request, resp, start_time)
        return self._and_half_close(finishing) if self._server.is_draining else finishing

    async def _and_half_close(self, finishing: Coroutine[Any, Any, Finished]) -> Finished:
        finished = await finishing
        if self._is_last:
            self._half_close()
        return finished

    def leave_if_quiet(self, since: float) -> None:
        """End a connection without a request under way, if nothing was heard, or answered, since an instant."""
        is_idle = self._waiter is not None and not self._waiter.done() and not self._force_close
        answered_at = self._next_keepalive_close_time - self._keepalive_timeout
        if is_idle and max(self.heard_at, answered_at) <= since:
            self._half_close()

    def _half_close(self) -> None:
        self._force_close = True  # aiohttp then reads no further request, and drops what still comes
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()  # of a large body that nobody wanted; or the client's end would not be seen
        self._loop.call_later(LINGER_SECONDS, self._linger_over, transport)

    def _linger_over(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size():  # a slow reader: its answer is not whole yet
            self._loop.call_later(LINGER_SECONDS, self._linger_over, transport)
        else:
            transport.abort()


class LeavingRequest(web.BaseRequest):
    """A request whose answer says `Connection: close` when the drain has begun."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays: asked once, when the answer's head is made."""
        return not self._message.should_close and cast("LeavingProtocol", self._protocol).goes_on()


class LeavingServer(web.Server):
    """aiohttp's server, which lets its connections end in good order."""

    is_draining = False
    request_class: type[LeavingRequest] = LeavingRequest

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return self.request_class(message, payload, protocol, writer, task, self._loop)

    async def drain(self, *, idle_grace: float) -> None:
        """Let each connection end: once its requests are answered, or when it is quiet for so long (seconds).

        New ones must not be accepted any more. How long a handler takes is not bounded here.
        """
        loop = asyncio.get_running_loop()
        self.is_draining = True
        while True:
            await asyncio.sleep(TICK_SECONDS)  # first of all: what has been accepted may not be among them yet
            if not self._connections:
                return
            for connection in self.connections:
                if isinstance(connection, LeavingProtocol):
                    connection.leave_if_quiet(loop.time() - idle_grace)


async def accept_rest(listening: Iterable[socket.socket], server: web.Server, *, most: int) -> None:
    """Take what the kernel has accepted for us already, and close: closing alone would reset it."""
    loop = asyncio.get_running_loop()
    for each in listening:
        with each:
            each.settimeout(0)
            for _ in range(most):
                try:
                    connection, _ = each.accept()
                except BlockingIOError:
                    break
                except OSError:
                    continue  # one that has gone meanwhile
                connection.settimeout(0)
                await loop.connect_accepted_socket(server, connection)
