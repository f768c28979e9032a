"""A load generator that costs less than what it measures: raw HTTP/1.1 on asyncio protocols."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Sample:
    """Latencies of one round, in seconds, and how long the round took."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """What the server's process spent on it, which other processes on the machine hardly change."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


class _Answer(asyncio.Protocol):
    """Reads one response after the other, by Content-Length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._whole: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment] # uvloop's transports are of their own class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._whole is None:
            return
        at = self._buffer.find(b"Content-Length: ", 0, end)
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r\n", at)])
        total = end + 4 + length
        if len(self._buffer) >= total:
            whole, self._buffer = self._buffer[:total], self._buffer[total:]
            self._whole.set_result(whole)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(exc or ConnectionResetError("closed before the answer"))

    async def ask(self, request: bytes) -> bytes:
        self._whole = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(request)
        return await self._whole


async def ask_once(port: int, request: bytes) -> bytes:
    """Return the whole response to one request on a connection of its own."""
    transport, answer = await asyncio.get_running_loop().create_connection(_Answer, "127.0.0.1", port)
    try:
        return await answer.ask(request)
    finally:
        transport.close()


async def round_of(port: int, request: bytes, *, seconds: float, concurrency: int, keep_alive: bool) -> Sample:
    """Ask as fast as `concurrency` clients can, for so long; each answer must be a 200."""
    sample = Sample()
    clock = time.perf_counter
    began = clock()
    until = began + seconds

    async def client() -> None:
        loop = asyncio.get_running_loop()
        transport: asyncio.BaseTransport | None = None
        while clock() < until:
            start = clock()
            if transport is None:
                transport, answer = await loop.create_connection(_Answer, "127.0.0.1", port)
            response = await answer.ask(request)
            sample.latencies.append(clock() - start)
            if not response.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(response[:200].decode())
            if not keep_alive:
                transport.close()
                transport = None
        if transport is not None:
            transport.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    sample.seconds = clock() - began
    return sample
