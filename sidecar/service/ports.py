"""What the service needs from the outside; adapters implement it, tests fake it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from sidecar.core.changes import Change
from sidecar.core.errors import Answer
from sidecar.core.events import Event
from sidecar.core.model import Entry, Kept, Key
from sidecar.core.prompt import CompiledTemplate

Clock = Callable[[], float]
"""Monotonic seconds."""

Observer = Callable[[Event], None]
"""Who listens to what happens: metrics, logs, traces."""

K_contra = TypeVar("K_contra", bound=Key, contravariant=True)
V = TypeVar("V", bound=Kept)
V_co = TypeVar("V_co", bound=Kept, covariant=True)


class Confirmed(Protocol[V_co]):
    """What a fetch brings; see `upstream.guarded`."""

    @property
    def document(self) -> V_co:
        """The document, new or (after a 304) the known one."""
        ...

    @property
    def confirmed_at(self) -> float:
        """The instant at which the upstream vouched for it."""
        ...


class Source(Protocol[K_contra, V]):
    """Where documents of one kind come from: the upstream, guarded."""

    @property
    def endpoint(self) -> str:
        """Its name in telemetry."""
        ...

    async def fetch(
        self, key: K_contra, known: V | None, deadline_at: float, authorization: str | None = None
    ) -> Confirmed[V]:
        """Bring the key's document, before `deadline_at`; `known` is what may be revalidated.

        `authorization`: in whose name; None: in the sidecar's own. Raises `UpstreamFailure`.
        """
        ...

    def circuit_open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        ...

    def is_proven(self) -> bool:
        """Return whether the upstream has answered since this process began."""
        ...


class Recalled(NamedTuple):
    """What a store behind the memory had."""

    kept: Any
    confirmed_at: float
    """An instant of this process's clock; before its start, as a rule."""
    spread: float
    epoch: int | None
    """How many writes had passed when it was asked for; None: the store vouches for it as of now."""


class Unsettled(NamedTuple):
    """A change of the owner's settings is on its way through another sidecar: nothing of his is to be kept."""

    write: str
    settles_in: float
    """Seconds, without word of its end."""


class Cache(Protocol):
    """Where entries are kept. `peek` is the hot path's only stop: it answers at once, without an await."""

    @property
    def has_store(self) -> bool:
        """Whether there is anything behind the memory."""
        ...

    def peek(self, key: Any) -> Any:
        """Return what is at hand without waiting; a plain tuple will do for a key, as it is the same to a mapping."""
        ...

    async def set(self, key: Key, entry: Entry[Any], ttl: float) -> object:
        """Keep an entry in memory for at most `ttl` seconds."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether others fill what is behind the memory, too."""
        ...

    def ticket(self, key: Key) -> object:
        """Return what `persist` must be shown of the instant at which the upstream was asked."""
        ...

    def persist(self, key: Key, entry: Entry[Any], ttl: float, ticket: object) -> None:
        """Keep an entry behind the memory, too, for at most `ttl` seconds; returns at once."""
        ...

    async def recall(self, key: Key) -> Recalled | Unsettled | None:
        """Return what is kept behind the memory; never raises, and is never long about it."""
        ...

    async def forget(self, owner: int | None) -> int | None:
        """Forget all entries of an owner behind the memory, for good before this returns; say how many.

        None: it does not take it now. Nothing of it is read any more, and it is forgotten later.
        """
        ...

    async def delete(self, key: Key) -> object:
        """Forget an entry."""
        ...

    def drop_where(self, matches: Callable[[Any], bool]) -> int:
        """Forget those entries in memory whose key matches; say how many."""
        ...

    async def forget_node(self, node_name: str) -> int | None:
        """Forget all documents of a node behind the memory; as `forget`."""
        ...

    async def forget_all(self) -> int | None:
        """Forget all entries behind the memory; as `forget`."""
        ...


class StoreAwayError(Exception):
    """What is behind the memory cannot be read now; says why in a word of a closed set."""


class Group(Protocol):
    """The other sidecars that share a store."""

    async def tell(self, change: Change) -> bool:
        """Tell of a change; returns when it is sure to be heard, or False: it cannot be told in time, but later."""
        ...

    def tell_soon(self, change: Change) -> None:
        """Tell of a change; returns at once."""
        ...


class Generated(NamedTuple):
    """A prompt that the config service rendered."""

    prompt: str
    used_placeholders: dict[str, str]


class PromptService(Protocol):
    """What the service itself says, guarded; nothing of it is kept (contract §2, `passthrough`)."""

    async def generate(
        self,
        user_id: int,
        node_name: str,
        context: Mapping[str, Any],
        deadline_at: float,
        *,
        shadow: bool = False,
        authorization: str | None = None,
    ) -> Generated:
        """Have the service render, before `deadline_at`; raises `UpstreamFailure`.

        `authorization`: in whose name; None: in the sidecar's own. `shadow`: nobody waits for it, so it is tried once
        and says nothing of the upstream's health.
        """
        ...

    async def prompt_data(
        self, user_id: int, node_name: str, deadline_at: float, authorization: str | None = None
    ) -> Answer:
        """Bring a node's static parts as they are, whatever we think of them; raises `UpstreamFailure`."""
        ...

    def has_room(self) -> bool:
        """Return whether a call that nobody waits for may go out: the circuit is closed and the bulkhead half empty."""
        ...


class TemplateSet(Protocol):
    """The templates of today's service, read from its file."""

    def find(self, node_name: str) -> CompiledTemplate | None:
        """Return a node's template, None where there is none; raises `UpstreamFailure` (not_admitted)."""
        ...
