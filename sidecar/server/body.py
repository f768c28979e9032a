"""Reading a request's body: bounded in bytes and in time."""

import asyncio

from aiohttp import web

from sidecar.core.events import Shed
from sidecar.service.ports import Observer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyError(Exception):
    """The body was not taken; `status`: 408, 413, 415 or 503."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class BodyRoom:
    """How many bytes the bodies that are being read may have together."""

    def __init__(self, max_bytes: int, observer: Observer) -> None:
        self._left = max_bytes
        self._observe = observer

    def take(self, size: int) -> None:
        """Take room; raises `BodyError` where there is none."""
        if size > self._left:
            self._observe(Shed("bodies"))
            raise BodyError(503, "Too many large bodies are being read already.")
        self._left -= size

    def give_back(self, size: int) -> None:
        """Give room back."""
        self._left += size


async def read_body(
    request: web.BaseRequest, *, max_bytes: int, timeout_seconds: float, room: BodyRoom | None = None
) -> bytes:
    """Return the whole body; raises `BodyError`.

    A body that came with its headers, as nearly all do, is taken without a timer and needs no `room`.
    """
    content = request.content
    if content.is_eof():
        body = content.read_nowait()
    else:
        held = request.content_length or 0
        if held > max_bytes:
            raise _too_large(max_bytes)
        room = room or BodyRoom(max_bytes, lambda _: None)
        room.take(held)
        parts: list[bytes] = []
        size = 0
        try:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(CONTINUE)
                request.writer.output_size = 0
            async with asyncio.timeout(timeout_seconds):
                async for chunk in content.iter_any():
                    size += len(chunk)
                    if size > max_bytes:
                        raise _too_large(max_bytes)
                    if size > held:  # no length was stated
                        room.take(size - held)
                        held = size
                    parts.append(chunk)
        except TimeoutError:
            raise BodyError(408, "The body did not arrive in time.") from None
        finally:
            room.give_back(held)
        body = b"".join(parts)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> BodyError:
    return BodyError(413, f"The body is larger than limits.max_body ({max_bytes} bytes).")
