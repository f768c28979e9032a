"""What the service needs from the outside; adapters implement it, tests fake it."""

from collections.abc import Callable
from typing import Protocol

from sidecar.core.events import Event
from sidecar.core.model import Document, Entry, PromptKey

Clock = Callable[[], float]
"""Monotonic seconds."""


class Confirmed(Protocol):
    """What a fetch brings; see `upstream.guarded`."""

    @property
    def document(self) -> Document:
        """The document, new or (after a 304) the known one."""
        ...

    @property
    def confirmed_at(self) -> float:
        """The instant at which the upstream vouched for it."""
        ...


class PromptSource(Protocol):
    """Where documents come from: the upstream, guarded."""

    async def fetch(self, key: PromptKey, known: Document | None, deadline_at: float) -> Confirmed:
        """Bring the key's document, before `deadline_at`; `known` is what may be revalidated.

        Raises `UpstreamFailure`.
        """
        ...

    def circuit_open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        ...


class PromptCache(Protocol):
    """Where entries are kept. `peek` is the hot path's only stop: it answers at once, without an await."""

    def peek(self, key: tuple[int, str]) -> Entry | None:
        """Return what is at hand without waiting; a plain tuple will do for a key, as it is the same to a mapping."""
        ...

    async def set(self, key: PromptKey, entry: Entry, ttl: float) -> object:
        """Keep an entry for at most `ttl` seconds."""
        ...

    async def delete(self, key: PromptKey) -> object:
        """Forget an entry."""
        ...


Observer = Callable[[Event], None]
"""Who listens to what happens: metrics, logs, traces."""
