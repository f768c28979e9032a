"""Owned background tasks: bounded, named, logged, awaited at drain."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sidecar.core.events import Crashed
from sidecar.service.ports import Observer

T = TypeVar("T")


class Background:
    """The owner of every task that outlives the request which began it."""

    def __init__(self, observer: Observer) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[None]] = set()
        self._observe = observer

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that is held until it ends; an exception nobody awaits is reported by name."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> None:
        """Start a task that has no end of its own: it is cancelled when the drain begins."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._endless.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._endless.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._observe(Crashed(task.get_name(), error))

    async def drain(self, timeout_seconds: float | None = None) -> None:
        """Let what runs end in its own time, then cancel what is left, and wait for that too; so when cancelled."""
        for task in self._endless:
            task.cancel()
        try:
            await asyncio.gather(*self._endless, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout_seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
