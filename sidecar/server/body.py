"""Reading a request's body: bounded in bytes and in time."""

import asyncio

from aiohttp import web

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyError(Exception):
    """The body was not taken; `status`: 408, 413 or 415."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


async def read_body(request: web.BaseRequest, *, max_bytes: int, timeout_seconds: float) -> bytes:
    """Return the whole body; raises `BodyError`.

    A body that came with its headers, as nearly all do, is taken without a timer.
    """
    content = request.content
    if content.is_eof():
        body = content.read_nowait()
    else:
        if (request.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(CONTINUE)
            request.writer.output_size = 0
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_seconds):
                async for chunk in content.iter_any():
                    size += len(chunk)
                    if size > max_bytes:
                        raise _too_large(max_bytes)
                    parts.append(chunk)
        except TimeoutError:
            raise BodyError(408, "The body did not arrive in time.") from None
        body = b"".join(parts)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> BodyError:
    return BodyError(413, f"The body is larger than limits.max_body ({max_bytes} bytes).")
