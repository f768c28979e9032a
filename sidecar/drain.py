"""The end of a sidecar: readiness, listeners, requests, background, store, in this order and within a bound.

The steps share the time: one that hangs is cut and told of, so that those after it have their turn.
"""

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog

from sidecar.settings import DRAIN_FOR_REQUESTS, DrainSettings

REQUESTS, BACKGROUND, OPS, STORE = DRAIN_FOR_REQUESTS, 0.85, 0.9, 0.95
"""The share of `drain.timeout` that is over when such a step is cut."""
LEAST_SECONDS = 0.1
"""How long a step has, however late it begins; and what is cut, to tidy up."""
HASTY_SECONDS = 2.0
"""How long the end takes at most after a second signal."""


class Drain:
    """How long each step of the end may take, and a way to hasten it."""

    def __init__(self, settings: DrainSettings) -> None:
        self._settings = settings
        self._haste = asyncio.Event()
        self._began_at: float | None = None

    def adopt(self, settings: DrainSettings) -> None:
        """Go by other settings, if it has not begun."""
        if self._began_at is None:
            self._settings = settings

    @property
    def seconds(self) -> float:
        """How long all of it may take."""
        return self._settings.delay + self._settings.timeout

    @property
    def idle_grace(self) -> float:
        """How long a connection may be quiet until it is ended; seconds."""
        return self._settings.idle_grace

    def hasten(self) -> None:
        """Cut what others are waited for; what is kept is still flushed."""
        self._haste.set()

    async def delay(self) -> None:
        """Wait until readiness was seen to go; the time of the steps counts from then on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.delay):
                await self._haste.wait()
        self._began_at = asyncio.get_running_loop().time()

    async def step(self, what: str, work: Coroutine[Any, Any, object], *, until: float) -> None:
        """Do one step, until a share of the time is over or haste is asked for; the store's is not hastened."""
        now = asyncio.get_running_loop().time()
        if self._began_at is None:  # a start that failed, or a core without listeners
            self._began_at = now
        task = asyncio.ensure_future(work)
        haste = asyncio.ensure_future(self._haste.wait() if until < STORE else asyncio.Event().wait())
        try:
            left = self._began_at + until * self._settings.timeout - now
            await asyncio.wait({task, haste}, timeout=max(LEAST_SECONDS, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            haste.cancel()
            if task.cancel():
                await asyncio.wait({task}, timeout=LEAST_SECONDS)
                log: structlog.stdlib.BoundLogger = structlog.get_logger()
                log.warning("drain_cut", step=what)
        if not task.cancelled() and task.done():
            task.result()


def end_at_the_latest(seconds: float) -> None:
    """Have the kernel end the process then (SIGALRM), whatever hangs: the loop, a thread in a dead disk, the log."""
    sooner = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, sooner or seconds))
