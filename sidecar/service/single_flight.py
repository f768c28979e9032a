"""One fetch per key; the fetch belongs to nobody, and each waiter keeps its own deadline."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sidecar.service.background import Background
from sidecar.service.ports import Clock

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Joined(Generic[T]):
    """A flight, and whether somebody else began it."""

    task: asyncio.Task[T]
    collapsed: bool


@dataclass(frozen=True, slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    began_at: float


class SingleFlight(Generic[K, T]):
    """Collapse concurrent fetches of a key into one task, owned by `Background`.

    A waiter awaits it by `wait`, which a waiter's cancellation or timeout does not hand on: the last waiter's leaving
    leaves the fetch running, and its result is kept for the next.
    """

    def __init__(self, background: Background, clock: Clock) -> None:
        self._background = background
        self._clock = clock
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(
        self, key: K, fetch: Callable[[], Coroutine[Any, Any, T]], *, began_after: float | None = None
    ) -> Joined[T]:
        """Join the key's flight, or begin one.

        `began_after`: join only a flight that began no earlier; an older one is left to its own waiters, and the new
        one waits for nobody (a request that says `no-cache` must not be answered by what was asked before it came).
        """
        flight = self._flights.get(key)
        if flight is not None and (began_after is None or flight.began_at >= began_after):
            return Joined(flight.task, collapsed=True)
        task = self._background.spawn(fetch(), name=f"fetch:{len(self._flights)}")
        mine = _Flight(task, self._clock())
        self._flights[key] = mine

        def landed(_: asyncio.Task[T]) -> None:
            if self._flights.get(key) is mine:
                del self._flights[key]

        task.add_done_callback(landed)
        return Joined(task, collapsed=False)


async def wait(task: asyncio.Task[T], timeout_seconds: float) -> T:
    """Wait for a flight for so long and no longer; raises `TimeoutError`, leaving the flight as it is."""
    async with asyncio.timeout(max(0.0, timeout_seconds)):
        return await asyncio.shield(task)
