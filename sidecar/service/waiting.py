"""The requests that wait for the upstream: bounded, so that a slow one costs neither memory nor other requests."""

from collections.abc import Iterator
from contextlib import contextmanager


class Waiting:
    """How many wait, and how many bytes of request bodies they hold; `has_room` is asked before one more does.

    A fresh hit waits for nothing and asks for no room.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests = 0
        self._bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return self._requests < self._max_requests and self._bytes < self._max_bytes

    @contextmanager
    def one(self, weight: int) -> Iterator[None]:
        """Count a request; `weight`: bytes of its body."""
        self._requests += 1
        self._bytes += weight
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= weight
