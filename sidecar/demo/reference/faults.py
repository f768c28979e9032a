"""Fault modes of the reference config service: the ways in which a real one fails, each switchable at run time.

For the demo and the tests, never for production.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Annotated

import msgspec
from aiohttp import hdrs, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Mode(StrEnum):
    """What goes wrong."""

    NONE = "none"
    ERROR = "500"
    UNAVAILABLE = "503"
    TOO_MANY = "429"
    UNAUTHORIZED = "unauthorized"
    HANG = "hang"  # read the request, answer when the fault is lifted
    RESET = "reset"  # TCP RST
    SLOW = "slow"  # the right answer, `delay` seconds late
    DRIP = "drip"  # the right answer, a byte every `delay` seconds
    HALF = "half"  # the right headers, half of the body, end of the connection
    GARBAGE = "garbage"  # 200, text/html
    EMPTY = "empty"  # 200, no body
    WRONG_SHAPE = "wrong-shape"  # 200, JSON of another shape
    EMPTY_TEMPLATE = "empty-template"
    BAD_TEMPLATE = "bad-template"  # does not compile
    HUGE_TEMPLATE = "huge-template"  # compiles, and renders to 200 MB
    DATABASE_DOWN = "database-down"  # as today's service: prompts without settings, 500 elsewhere, /health is well


DEFAULT_DELAY = {
    Mode.SLOW: 1.0,
    Mode.DRIP: 0.05,
}  # seconds: longer than a connect, and a byte well inside any read timeout
TEMPLATES = {
    Mode.EMPTY_TEMPLATE: "",
    Mode.BAD_TEMPLATE: "{% if language %}\nThis block never ends: {{ input_content }}\n",
    Mode.HUGE_TEMPLATE: "{{ 'a'*200000000 }}",
}
FAULT = web.RequestKey("FAULT", Mode)  # for the modes that change what the service makes

_JSON = "application/json"
_WRONG_SHAPE = (
    b'{"template": ["not", "text"], "user_placeholders": [], "placeholders": [], "prompt": 42, "results": {}}'
)
_ANSWERS = {
    Mode.ERROR: (500, _JSON, b'{"detail":"Internal Server Error"}'),
    Mode.UNAVAILABLE: (503, _JSON, b'{"detail":"Service Unavailable"}'),
    Mode.TOO_MANY: (429, _JSON, b'{"detail":"Too Many Requests"}'),
    Mode.UNAUTHORIZED: (401, _JSON, b'{"detail":"Not authenticated"}'),
    Mode.GARBAGE: (200, "text/html", b"<!doctype html><title>Welcome</title><p>It works!</p>"),
    Mode.EMPTY: (200, _JSON, b""),
    Mode.WRONG_SHAPE: (200, _JSON, _WRONG_SHAPE),
}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mode and how far it goes. `delay`, in seconds, comes before the effect (`drip`: before each byte)."""

    mode: Mode = Mode.NONE
    delay: Annotated[float, msgspec.Meta(ge=0)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None  # calls that it applies to; None: all
    endpoint: str | None = None  # the only endpoint that it applies to, by its name in the counters; None: all
    retry_after: Annotated[int, msgspec.Meta(ge=0)] = 1  # seconds, with 503 and 429


class FaultSwitch:
    """The current fault; setting another one lifts it, and so wakes what hangs or waits because of it."""

    def __init__(self) -> None:
        self.closing = False
        self._fault = Fault()
        self.left: int | None = None
        self._lifted = asyncio.Event()

    @property
    def fault(self) -> Fault:
        """The fault that was set last."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self.left = fault.count
        self._lifted.set()
        self._lifted = asyncio.Event()

    def close(self) -> None:
        """Let go of every request that hangs, without an answer."""
        self.closing = True
        self.fault = Fault()

    async def apply(self, request: web.Request, endpoint: str, handler: Handler) -> web.StreamResponse:
        """Answer a request as the current fault wants it."""
        fault, lifted = self._fault, self._lifted
        if fault.mode is Mode.NONE or self.left == 0 or fault.endpoint not in {None, endpoint}:
            return await handler(request)
        if self.left is not None:
            self.left -= 1
        await request.read()
        delay = DEFAULT_DELAY.get(fault.mode, 0.0) if fault.delay is None else fault.delay
        if fault.mode is Mode.HANG:
            await lifted.wait()
        elif fault.mode is not Mode.DRIP:
            await _pause(lifted, delay)
        if self.closing or fault.mode is Mode.RESET:
            return _reset(request)
        if fault.mode in _ANSWERS:
            return _ready_made(fault)
        request[FAULT] = fault.mode
        response = await handler(request)
        if fault.mode is Mode.DRIP:
            return await _drip(request, response, delay, lifted)
        if fault.mode is Mode.HALF:
            return await _half(request, response)
        return response


async def _pause(lifted: asyncio.Event, seconds: float) -> None:
    if seconds:
        with suppress(TimeoutError):
            await asyncio.wait_for(lifted.wait(), seconds)


def _ready_made(fault: Fault) -> web.Response:
    status, content_type, body = _ANSWERS[fault.mode]
    response = web.Response(status=status, body=body, content_type=content_type)
    if fault.mode in {Mode.UNAVAILABLE, Mode.TOO_MANY}:
        response.headers[hdrs.RETRY_AFTER] = str(fault.retry_after)
    return response


def _reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
        request.transport.abort()
    return web.Response()  # nobody is left to read it


async def _begin(request: web.Request, response: web.StreamResponse) -> tuple[web.StreamResponse, bytes]:
    body = response.body if isinstance(response, web.Response) and isinstance(response.body, bytes) else b""
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(body)
    await stream.prepare(request)
    return stream, body


async def _drip(
    request: web.Request, response: web.StreamResponse, delay: float, lifted: asyncio.Event
) -> web.StreamResponse:
    stream, body = await _begin(request, response)
    for position in range(len(body)):
        await _pause(lifted, delay)
        await stream.write(body[position : position + 1])
    return stream


async def _half(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    stream, body = await _begin(request, response)
    await stream.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()  # what was written is sent first
    return stream
