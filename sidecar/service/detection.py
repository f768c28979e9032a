"""Which generation of the config service is in use: configured, or found out and looked at again (contract §2)."""

import asyncio
from collections.abc import Awaitable, Callable

from sidecar.core.events import GenerationChanged
from sidecar.service.background import Background
from sidecar.service.generations import Generation
from sidecar.service.ports import Clock, Observer

Probe = Callable[[], Awaitable[bool | None]]
"""Whether the service has the `prompt-data` endpoint; None: it does not say (it is down, or something else answers)."""


class Selection:
    """The generation in use; None as long as nothing is known."""

    def __init__(
        self,
        fixed: Generation | None,
        *,
        otherwise: Generation,
        probe: Probe,
        background: Background,
        clock: Clock,
        observer: Observer,
    ) -> None:
        """Begin with nothing known.

        `fixed`: what the settings say, None for `auto`; `otherwise`: what a service without the endpoint is.
        """
        self._fixed = fixed
        self._otherwise = otherwise
        self._probe = probe
        self._background = background
        self._clock = clock
        self._observe = observer
        self._probing: asyncio.Task[bool | None] | None = None
        self._listeners: list[Callable[[], None]] = []
        self.current: Generation | None = None
        self.since: float | None = None
        """The clock's instant at which the current one was found."""

    def begin(self) -> None:
        """Take what is configured, if it is."""
        if self._fixed is not None:
            self._use(self._fixed)

    def remember(self, generation: Generation) -> None:
        """Begin with what the store was filled from, until a look says otherwise (contract §2, `auto`)."""
        if self.current is None:
            self._use(generation)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a listener called after each change."""
        self._listeners.append(listener)

    async def settle(self, timeout_seconds: float) -> Generation | None:
        """Return the generation in use; look first where nothing is known, for so long at most."""
        if self.current is None:
            await self.endpoint_exists(timeout_seconds)
        return self.current

    async def endpoint_exists(self, timeout_seconds: float) -> bool | None:
        """Look again, and use what is found; many who ask at once share a look."""
        if self._fixed is not None:
            return self._fixed is Generation.PROMPT_DATA
        if self._probing is None:
            self._probing = self._background.spawn(self._look(), name="detect")
        look = self._probing
        await asyncio.wait({look}, timeout=max(0.0, timeout_seconds))
        if not look.done() or look.cancelled() or look.exception() is not None:
            return None  # a look that crashed is told of by its owner
        return look.result()

    async def watch(self, interval: Callable[[], float]) -> None:
        """Look again from time to time, for ever; `interval`: seconds."""
        while self._fixed is None:
            await self.endpoint_exists(interval())
            await asyncio.sleep(interval())

    async def _look(self) -> bool | None:
        try:
            exists = await self._probe()
        finally:
            self._probing = None
        if exists is not None:
            self._use(Generation.PROMPT_DATA if exists else self._otherwise)
        return exists

    def _use(self, generation: Generation) -> None:
        before = self.current
        if generation is before:
            return
        self.current = generation
        self.since = self._clock()
        configured = self._fixed is not None
        self._observe(GenerationChanged(generation.value, before.value if before else None, configured))
        for listener in self._listeners:
            listener()
