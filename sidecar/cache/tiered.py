"""Memory before a store: what a restart would lose is kept behind it, and recalled when memory has nothing."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from sidecar.cache.memory import MemoryCache
from sidecar.cache.records import Place, Records, Stored, node_tag, note_place, owner_tag, place_of, whose
from sidecar.cache.seals import RecordError
from sidecar.core.events import RecordDropped, StoreLookup
from sidecar.core.model import Entry, Key
from sidecar.service.ports import Clock, Observer, Recalled, Unsettled
from sidecar.service.trace import NO_TRACER, SpanKind, Tracer

NOTE_SECONDS = 30 * 86_400.0
"""How long a word about the store is of use."""


SYSTEMS = {"file": "sqlite"}
"""What kinds of store are called in traces (OpenTelemetry's `db.system.name`), where that is another name."""


class Found(NamedTuple):
    """What a store has."""

    record: bytes
    age: float | None = None
    """Seconds, at least, by the store's own clock; None: it has none, and the record says when it was fetched."""


class StoreStats(Protocol):
    """What a store says of itself."""

    @property
    def error(self) -> str | None:
        """What is wrong with it, in a word of a closed set; None: nothing."""
        ...

    @property
    def entries(self) -> int | None:
        """How many records there are; None: it cannot say."""
        ...

    @property
    def bytes(self) -> int | None:
        """What they take; None: it cannot say."""
        ...

    @property
    def lost(self) -> int:
        """How many records were not written, for want of a working store."""
        ...


class Store(StoreStats, Protocol):
    """What keeps records outside the process; requests see no error of it, and wait for it in its own time only."""

    kind: str
    """Its name in telemetry."""
    is_shared: bool
    """Whether other sidecars use it, too."""

    async def get(self, place: Place) -> Found | Unsettled | None:
        """Return a record, None where there is none or the store is in trouble."""
        ...

    def ticket(self, place: Place) -> object:
        """Return what must be shown to keep, later, what is asked for from now on."""
        ...

    def put(self, place: Place, record: bytes, *, age: float, ttl: float, ticket: object = None) -> None:
        """Keep a record that is of use for `ttl` seconds, if its ticket still holds; returns at once.

        `age`: seconds since it was fetched; it never takes the place of a younger one.
        """
        ...

    async def drop(self, place: Place) -> None:
        """Forget a record that is of no use."""
        ...

    async def forget(
        self, *, owner: bytes | None = None, node: bytes | None = None, everything: bool = False
    ) -> int | None:
        """Forget, for good before this returns; say how many. None: later, and nothing of it is read before."""
        ...

    def walk(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the key of each record's place, and the record; what is put meanwhile may be left out.

        Raises `StoreAwayError` where it cannot go on to the end.
        """
        ...

    async def close(self) -> None:
        """Write what waits to be written, and let go."""
        ...


class TieredCache:
    """The memory tier, and a store behind it."""

    def __init__(
        self,
        memory: MemoryCache,
        store: Store | None,
        records: Records,
        *,
        namespace: str,
        boot: bytes,
        clock: Clock,
        wall: Clock,
        observer: Observer,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`namespace`: whose data this is (the upstream); `boot`: this process; `wall`: Unix seconds."""
        self._memory = memory
        self._store = store
        self._records = records
        self._namespace = namespace
        self._boot = boot
        self._clock = clock
        self._wall = wall
        self._observe = observer
        self._tracer = tracer
        self.peek: Callable[[Any], Entry[Any] | None] = memory.peek
        self.set = memory.set
        self.drop_where = memory.drop_where

    @property
    def has_store(self) -> bool:
        """Whether there is anything behind the memory."""
        return self._store is not None

    @property
    def is_shared(self) -> bool:
        """Whether others fill what is behind the memory, too."""
        return self._store is not None and self._store.is_shared

    def ticket(self, key: Key) -> object:
        """Return what `persist` must be shown of the instant at which the upstream was asked."""
        return None if self._store is None else self._store.ticket(self._place(key))

    def persist(self, key: Key, entry: Entry[Any], ttl: float, ticket: object) -> None:
        """Keep an entry behind the memory, too, for at most `ttl` seconds; returns at once."""
        if self._store is None:
            return
        age = self._clock() - entry.confirmed_at
        stored = Stored(entry.document, self._wall() - age, entry.spread, self._boot, entry.epoch, whose(key))
        place = self._place(key)
        self._store.put(place, self._records.encode(place.key, stored), age=age, ttl=ttl, ticket=ticket)

    async def recall(self, key: Key) -> Recalled | Unsettled | None:
        """Return what is kept behind the memory, with its true age; what lies in the future is of no age we know.

        Clocks of two machines may differ: of the age by our clock and the age by the store's, the greater one counts.
        """
        if self._store is None:
            return None
        place = self._place(key)
        with self._span(self._store, "get"):
            found = await self._store.get(place)
        if not isinstance(found, Found):
            self._observe(StoreLookup(self._store.kind, "miss"))
            return found
        try:
            stored = self._records.decode(place.key, found.record)
        except RecordError as error:
            self._observe(RecordDropped(error.reason))
            await self._store.drop(place)
            return None
        age = self._wall() - stored.fetched_at
        self._observe(StoreLookup(self._store.kind, "hit"))
        if age < 0:
            return None
        age = max(age, found.age or 0.0)
        epoch = stored.epoch if stored.boot == self._boot else 0
        return Recalled(stored.kept, self._clock() - age, stored.spread, None if self._store.is_shared else epoch)

    async def delete(self, key: Key) -> None:
        """Forget an entry, in memory at once."""
        await self._memory.delete(key)
        if self._store is not None:
            with self._span(self._store, "delete"):
                await self._store.drop(self._place(key))

    async def forget(self, owner: int | None) -> int | None:
        """Forget all entries of an owner behind the memory, for good before this returns; see `Store.forget`."""
        if self._store is None:
            return 0
        with self._span(self._store, "forget"):
            return await self._store.forget(owner=owner_tag(self._namespace, owner))

    async def forget_node(self, node_name: str) -> int | None:
        """Forget all documents of a node behind the memory, for good before this returns; see `Store.forget`."""
        return await self._store.forget(node=node_tag(self._namespace, node_name)) if self._store is not None else 0

    async def forget_all(self) -> int | None:
        """Forget all entries behind the memory, for good before this returns; see `Store.forget`."""
        return await self._store.forget(everything=True) if self._store is not None else 0

    def note(self, name: str, value: str) -> None:
        """Keep a word about what the store was filled from."""
        if self._store is not None:
            place = note_place(self._namespace, name)
            note = self._records.close_note(place.key, value)
            self._store.put(place, note, age=0.0, ttl=NOTE_SECONDS)

    async def noted(self, name: str) -> str | None:
        """Return that word, None where there is none."""
        if self._store is None:
            return None
        place = note_place(self._namespace, name)
        found = await self._store.get(place)
        try:
            return self._records.open_note(place.key, found.record) if isinstance(found, Found) else None
        except RecordError as error:
            self._observe(RecordDropped(error.reason))
            return None

    async def working_set(self) -> AsyncIterator[tuple[int, str]]:
        """Yield user and node of all that is kept behind the memory; the node is empty where it is all of them.

        Raises `StoreAwayError` where what is behind the memory cannot be read to its end.
        """
        if self._store is None:
            return
        async for key, data in self._store.walk():
            try:
                pair = self._records.whose(key, data)
            except RecordError as error:
                self._observe(RecordDropped(error.reason))
                continue
            if pair is not None:
                yield pair

    @contextmanager
    def _span(self, store: Store, operation: str) -> Iterator[None]:
        """Record what a request waits for; what is put is written behind it, many at once, and is of no one trace."""
        with self._tracer.span(f"store {operation}", kind=SpanKind.CLIENT) as span:
            if span is not None:
                span.set({"db.system.name": SYSTEMS.get(store.kind, store.kind), "db.operation.name": operation})
            yield

    def _place(self, key: Key) -> Place:
        return place_of(self._namespace, key)
