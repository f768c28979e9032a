"""What lies between the proxy that LearnFlow talks to and the forwarder that talks to the upstream."""

from collections.abc import AsyncIterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sidecar.core.hop_by_hop import Headers


class WriteEnd(StrEnum):
    """How a request that may change something ended."""

    NOT_SENT = "not_sent"
    """No connection could be made: the upstream never saw it."""
    ANSWERED = "answered"
    """The head of an answer below 500 is here, and nothing of it is with the client yet."""
    LOST = "lost"
    """It may have been carried out, now or later; nobody knows."""


class Write(Protocol):
    """A request that may change something, on its way."""

    async def prepare(self) -> None:
        """Do what must be done for good before it is sent."""
        ...

    def __call__(self, end: WriteEnd) -> None:
        """Hear how it ended, exactly once."""
        ...


class WriteWatch(Protocol):
    """Who wants to know of writes."""

    def began(self, method: str, target: str) -> Write | None:
        """Hear of a request that may change something, before any byte of it is sent; None if that does not matter."""
        ...


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A request as it goes to the upstream: the target byte for byte, end-to-end headers, the body as it comes."""

    method: str
    target: str
    headers: Headers
    body: AsyncIterable[bytes] | None = None


class ForwardAnswer(Protocol):
    """The upstream's answer: its head, and its body piece by piece. Text is Latin-1: each character is a byte."""

    @property
    def status(self) -> int:
        """The status: 200 to 599."""
        ...

    @property
    def reason(self) -> str:
        """The reason phrase."""
        ...

    @property
    def headers(self) -> Headers:
        """All headers, those for one hop included."""
        ...

    async def read(self) -> bytes:
        """Return the next piece of the body, and nothing at its end; raises `UpstreamFailure` where it breaks off."""
        ...


class Forwarding(Protocol):
    """Who passes requests on."""

    def open(self, request: ForwardRequest) -> AbstractAsyncContextManager[ForwardAnswer]:
        """Send a request, and bring the head of the answer; leaving closes what is not done.

        Raises `UpstreamFailure`: CONNECT_ERROR, CONNECT_TIMEOUT and TLS_ERROR mean that nothing was sent.
        """
        ...
