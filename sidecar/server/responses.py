"""Answers: a prompt, a problem (RFC 9457), or the upstream's own word."""

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from math import ceil

import msgspec
from aiohttp import HttpVersion10, web
from multidict import istr

from sidecar.core.cache_status import Provenance, cache_status
from sidecar.core.errors import PromptError
from sidecar.core.model import Rendered
from sidecar.service.trace import request_id

_encoder = msgspec.json.Encoder()
PROBLEM = "application/problem+json"
SERVER = "prompt-sidecar"
"""What an answer of our own says of its maker: no version, and none of what is below."""
DRAIN_ABOVE = 65_536
"""Bytes; a larger answer waits until the client has taken some of it."""
REQUEST_ID = istr("X-Request-Id")


def prompt_body(rendered: Rendered) -> bytes:
    """Encode `{"prompt", "used_placeholders"}`."""
    return _encoder.encode({"prompt": rendered.prompt, "used_placeholders": rendered.used_placeholders})


class PromptResponse(web.StreamResponse):
    """A 200 that is whole when it begins: head and body leave in one write.

    This is the hot path: aiohttp's own Response keeps headers in a multidict, prepares and serialises them, and passes
    them through a stream writer, which costs about a fifth of a fresh hit (`make bench`).
    """

    def __init__(self, rendered: Rendered) -> None:  # StreamResponse's own state is what this saves
        self._whole = prompt_body(rendered)
        self._provenance = rendered.provenance
        self._request: web.BaseRequest | None = None
        self._persistent = False

    @property
    def status(self) -> int:
        """Always 200."""
        return 200

    @property
    def cache_status(self) -> str:
        """What Cache-Status says."""
        return cache_status(self._provenance)

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays, as the request asked."""
        return self._persistent

    async def prepare(self, request: web.BaseRequest) -> None:
        """Remember who is answered."""
        self._request = request
        self._persistent = request.keep_alive

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 — its interface
        """Write head and body."""
        request = self._request
        assert request is not None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        body = self._whole
        p = self._provenance
        connection = _CONNECTION[self._persistent, request.version == HttpVersion10]
        known_as = request_id()
        id_line = "" if known_as is None else f"X-Request-Id: {known_as}\r\n"
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Status: {cache_status(p)}\r\nAge: {age_seconds(p)}\r\nDate: {_http_date(int(time.time()))}\r\n"
            f"{id_line}{connection}\r\n"
        )
        transport.write(head.encode("ascii") + body)
        request.writer.output_size += len(head) + len(body)
        if request.protocol.writing_paused:  # a client that takes nothing gets no further answers into memory
            await request.writer.drain()


_CONNECTION = {
    (True, False): "",
    (True, True): "Connection: keep-alive\r\n",
    (False, False): "Connection: close\r\n",
    (False, True): "Connection: close\r\n",
}
"""By (stays open, the request is HTTP/1.0): what an answer of HTTP/1.1 does not say by itself (RFC 9112 §9.3)."""


@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def cache_status_of(response: web.StreamResponse) -> str | None:
    """Return what an answer's Cache-Status says; None: it is not from here, and nothing."""
    if isinstance(response, PromptResponse):
        return response.cache_status
    return response.headers.get("Cache-Status") if isinstance(response, web.Response) else None


def age_seconds(provenance: Provenance) -> int:
    """Return Age: whole seconds, never negative (RFC 9111 §5.1)."""
    return max(0, int(provenance.age))


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: object) -> web.Response:
    """Answer with `application/problem+json` (RFC 9457)."""
    return web.Response(
        status=status,
        body=_problem_body(status, detail, members),
        headers={"Content-Type": PROBLEM, **(headers or {})},
    )


def raw_problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a problem after which the connection ends, for a client whose request is not read."""
    body = _problem_body(status, detail, {})
    given = {"Server": SERVER, "Content-Type": PROBLEM, "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("ascii") + body


def _problem_body(status: int, detail: str, members: Mapping[str, object]) -> bytes:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return _encoder.encode(body)


def error_response(error: PromptError) -> web.Response:
    """Answer with a request's error: the upstream's own answer where it gave one, else a problem."""
    headers = {"Cache-Status": cache_status(error.provenance)}
    if error.answer is not None:
        return web.Response(
            status=error.answer.status,
            body=error.answer.body,
            headers={"Content-Type": error.answer.content_type, **headers},
        )
    if error.retry_after is not None:
        headers["Retry-After"] = str(ceil(error.retry_after))
    members = {"missing": list(error.missing)} if error.missing else {}
    return problem(error.status, error.detail, headers=headers, **members)
