"""Who records spans and sends them, as the settings name it. Names the concrete classes."""

from collections.abc import Coroutine
from typing import Any, Protocol

from sidecar.service.background import Background
from sidecar.service.ports import Clock, Observer
from sidecar.service.trace import NO_TRACER, Tracer
from sidecar.settings import TracingSettings
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.tracing import Tracing


class Sender(Protocol):
    """What sends spans; see `telemetry.otlp`."""

    observe: Observer

    def run(self) -> Coroutine[Any, Any, None]:
        """Send what comes, until cancelled."""
        ...

    async def close(self) -> None:
        """Send what is left, in bounded time."""
        ...


class Traces:
    """Who records spans, and what he must hear of; by default nobody."""

    def __init__(
        self, tracer: Tracer = NO_TRACER, handlers: Handlers | None = None, sender: Sender | None = None
    ) -> None:
        self.tracer = tracer
        self.handlers: Handlers = handlers or {}
        self._sender = sender

    @property
    def are_sent(self) -> bool:
        """Whether there is a collector."""
        return self._sender is not None

    def begin(self, background: Background, observer: Observer) -> None:
        """Begin to send; the observer hears what becomes of spans."""
        if self._sender is not None:
            self._sender.observe = observer
            background.keep(self._sender.run(), name="send-traces")

    async def close(self) -> None:
        """Send what is left, in bounded time."""
        if self._sender is not None:
            await self._sender.close()


def open_traces(settings: TracingSettings, *, version: str, instance: str, clock: Clock, wall: Clock) -> Traces:
    """Return what the settings ask for; `instance`: which of all sidecars this is."""
    if settings.endpoint is None:
        return Traces()
    from sidecar.telemetry.otlp import OtlpSender  # what it needs is installed only with the extra

    sender = OtlpSender(
        settings.endpoint, version=version, instance=instance, max_queue=settings.max_queue, timeout=settings.timeout
    )
    tracing = Tracing(sender.add, sample_ratio=settings.sample_ratio, clock=clock, wall=wall)
    return Traces(tracing, tracing.handlers(), sender)
