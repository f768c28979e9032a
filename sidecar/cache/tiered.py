"""Memory before a store: what a restart would lose is kept behind it, and recalled when memory has nothing."""

from collections.abc import Callable
from typing import Any, Protocol

from sidecar.cache.memory import MemoryCache
from sidecar.cache.records import RecordError, Records, Stored, node_tag, note_key, owner_tag, store_key
from sidecar.core.events import RecordDropped, StoreLookup
from sidecar.core.model import Entry, Key, PromptKey
from sidecar.service.ports import Clock, Observer, Recalled


class Store(Protocol):
    """What keeps records outside the process; never raises, and answers in its own time or not at all."""

    async def get(self, key: bytes) -> bytes | None:
        """Return a record, None where there is none or the store is in trouble."""
        ...

    def put(self, key: bytes, record: bytes, *, owner: bytes | None, node: bytes | None) -> None:
        """Keep a record; returns at once."""
        ...

    async def drop(self, key: bytes) -> None:
        """Forget a record that is of no use."""
        ...

    async def forget(self, *, owner: bytes | None = None, node: bytes | None = None, everything: bool = False) -> int:
        """Forget, for good before this returns; say how many."""
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
        self.peek: Callable[[Any], Entry[Any] | None] = memory.peek
        self.set = memory.set

    @property
    def has_store(self) -> bool:
        """Whether there is anything behind the memory."""
        return self._store is not None

    def persist(self, key: Key, entry: Entry[Any]) -> None:
        """Keep an entry behind the memory, too; returns at once."""
        if self._store is None:
            return
        age = self._clock() - entry.confirmed_at
        stored = Stored(entry.document, self._wall() - age, entry.spread, self._boot, entry.epoch)
        self._store.put(
            self._key(key),
            self._records.encode(self._key(key), stored),
            owner=self._owner(key.owner),
            node=self._node(key),
        )

    async def recall(self, key: Key) -> Recalled | None:
        """Return what is kept behind the memory, with its true age; what lies in the future is of no age we know."""
        if self._store is None:
            return None
        data = await self._store.get(self._key(key))
        if data is None:
            self._observe(StoreLookup("miss"))
            return None
        try:
            stored = self._records.decode(self._key(key), data)
        except RecordError as error:
            self._observe(RecordDropped(error.reason))
            await self._store.drop(self._key(key))
            return None
        age = self._wall() - stored.fetched_at
        self._observe(StoreLookup("hit"))
        if age < 0:
            return None
        epoch = stored.epoch if stored.boot == self._boot else 0
        return Recalled(stored.kept, self._clock() - age, stored.spread, epoch)

    async def delete(self, key: Key) -> None:
        """Forget an entry, in memory at once."""
        await self._memory.delete(key)
        if self._store is not None:
            await self._store.drop(self._key(key))

    async def forget(self, owner: int | None) -> None:
        """Forget all entries of an owner behind the memory, for good before this returns."""
        if self._store is not None:
            await self._store.forget(owner=self._owner(owner))

    def note(self, name: str, value: str) -> None:
        """Keep a word about what the store was filled from."""
        if self._store is not None:
            self._store.put(note_key(self._namespace, name), value.encode(), owner=None, node=None)

    async def noted(self, name: str) -> str | None:
        """Return that word, None where there is none."""
        data = await self._store.get(note_key(self._namespace, name)) if self._store is not None else None
        return None if data is None else data.decode("utf-8", "replace")

    def _key(self, key: Key) -> bytes:
        return store_key(self._namespace, key)

    def _owner(self, owner: int | None) -> bytes:
        return owner_tag(self._namespace, owner)

    def _node(self, key: Key) -> bytes | None:
        return node_tag(self._namespace, key.node_name) if isinstance(key, PromptKey) else None
