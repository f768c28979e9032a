"""The memory tier: least-recently-used, bounded by entries and by bytes; what entries share is kept once."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from sidecar.cache.packed import Packed, pack
from sidecar.cache.shared import Shared
from sidecar.core.model import Entry, Key
from sidecar.service.ports import Clock

LIVE_SHARE = 8
"""One byte in so many is for entries that are ready to serve: some 1,500 of them in 64 MiB, at 4 to 6 KB each."""
MOST_LIVE_BYTES = 16 * 1024 * 1024
"""More than that is better spent on entries at rest: what is asked for now is a small part of all."""


def _as_is(key: Key, namespace: str | None = None) -> Key:  # noqa: ARG001 — aiocache passes it by name
    return key


class MemoryCache(BaseCache):  # type: ignore[misc] # aiocache carries no types
    """Entries in this process, behind aiocache's interface, with `peek` for the hot path.

    The most recently used are ready to serve, the others packed; to ask for one unpacks it. aiocache's own memory
    backend has no bound and keeps a timer per key. Here an entry past its time is dropped when it is met: by a lookup,
    or when the least recently used make room. Each costs the same however many there are.
    """

    NAME = "memory"

    def __init__(self, *, max_entries: int, max_bytes: int, clock: Clock) -> None:
        super().__init__(serializer=NullSerializer(), timeout=None, key_builder=_as_is)
        self._clock = clock
        self._packed: OrderedDict[Any, Packed] = OrderedDict()  # each used less recently than all that are live
        self._live: OrderedDict[Any, Packed] = OrderedDict()
        self._shared = Shared()
        self._own_bytes = 0
        self._live_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions: Counter[str] = Counter({"entries": 0, "bytes": 0, "expired": 0, "too_large": 0})
        self.resize(max_entries=max_entries, max_bytes=max_bytes)

    def resize(self, *, max_entries: int, max_bytes: int) -> None:
        """Change the bounds; what is beyond them makes room at once."""
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_live_bytes = min(max_bytes // LIVE_SHARE, MOST_LIVE_BYTES)
        self._make_room()

    def __len__(self) -> int:
        return len(self._packed) + len(self._live)

    @property
    def bytes(self) -> int:
        """What the entries take, about; what they share is counted once."""
        return self._own_bytes + self._live_bytes + self._shared.bytes

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys that are there now, the least recently used first."""
        return iter((*self._packed, *self._live))

    def peek(self, key: Any) -> Entry[Any] | None:
        """Return the key's entry, without an await."""
        slot = self._live.get(key)
        if slot is None:
            return self._peek_packed(key)
        if slot.expires_at is not None and self._clock() > slot.expires_at:
            self._miss(key)
            return None
        self._live.move_to_end(key)
        self.hits += 1
        return slot.entry

    def _peek_packed(self, key: Any) -> Entry[Any] | None:
        slot = self._packed.get(key)
        if slot is None or (slot.expires_at is not None and self._clock() > slot.expires_at):
            self._miss(key)
            return None
        entry = slot.wake()
        del self._packed[key]
        self._live[slot.key] = slot
        self._live_bytes += slot.live_bytes
        self._make_room()
        self.hits += 1
        return entry

    def _miss(self, key: Any) -> None:
        if self._remove(key):
            self.evictions["expired"] += 1
        self.misses += 1

    def _keep(self, key: Key, entry: Entry[Any], ttl: float | None) -> bool:
        slot = pack(key, entry, None if ttl is None else self._clock() + ttl, self._shared)
        self._remove(key)  # also where the new one is refused: what it would have replaced is older
        most = slot.own_bytes() + slot.live_bytes + self._shared.bytes  # what it shares is a part of all that is shared
        if most > self._max_bytes and slot.alone_bytes() > self._max_bytes:
            slot.give_back(self._shared)
            self.evictions["too_large"] += 1
            return False
        self._live[slot.key] = slot
        self._own_bytes += slot.own_bytes()
        self._live_bytes += slot.live_bytes
        self._make_room()
        return True

    def _make_room(self) -> None:
        while self._live_bytes > self._max_live_bytes and len(self._live) > 1:
            key, slot = self._live.popitem(last=False)
            self._live_bytes -= slot.live_bytes
            slot.rest()
            self._packed[key] = slot
        while len(self) > self._max_entries:
            self._drop(self._oldest(), "entries")
        while self.bytes > self._max_bytes:
            self._drop(self._oldest(), "bytes")

    def _oldest(self) -> Any:
        return next(iter(self._packed or self._live))

    def _drop(self, key: Any, reason: str) -> None:
        self._remove(key)
        self.evictions[reason] += 1

    def _remove(self, key: Any) -> int:
        slot = self._live.pop(key, None) or self._packed.pop(key, None)
        if slot is None:
            return 0
        self._own_bytes -= slot.own_bytes()
        self._live_bytes -= slot.live_bytes
        slot.give_back(self._shared)
        return 1

    def drop_where(self, matches: Callable[[Any], bool]) -> int:
        """Forget those entries whose key matches; say how many. Looks at all of them (10 ms for 100,000)."""
        return sum(self._remove(key) for key in [key for key in self if matches(key)])

    # What follows is aiocache's side: BaseCache's public methods call these.

    async def _get(self, key: Key, **_: Any) -> Entry[Any] | None:
        return self.peek(key)

    async def _gets(self, key: Key, **_: Any) -> Entry[Any] | None:
        return self.peek(key)

    async def _multi_get(self, keys: Iterable[Key], **_: Any) -> list[Entry[Any] | None]:
        return [self.peek(key) for key in keys]

    async def _set(
        self, key: Key, value: Entry[Any], ttl: float | None = None, _cas_token: Entry[Any] | None = None, **_: Any
    ) -> bool:
        if _cas_token is not None and _cas_token != self.peek(key):
            return False
        return self._keep(key, value, ttl)

    async def _multi_set(self, pairs: Iterable[tuple[Key, Entry[Any]]], ttl: float | None = None, **_: Any) -> bool:
        kept = [self._keep(key, value, ttl) for key, value in pairs]
        return all(kept)

    async def _add(self, key: Key, value: Entry[Any], ttl: float | None = None, **_: Any) -> bool:
        if self.peek(key) is not None:
            raise ValueError(f"Key {key} already exists, use .set to update the value")
        return self._keep(key, value, ttl)

    async def _exists(self, key: Key, **_: Any) -> bool:
        return self.peek(key) is not None

    async def _increment(self, key: Key, delta: int, **_: Any) -> int:
        raise TypeError(f"Entries are not numbers: {key} cannot be incremented by {delta}")

    async def _expire(self, key: Key, ttl: float | None, **_: Any) -> bool:
        slot = self._live.get(key) or self._packed.get(key)
        if slot is None or (slot.expires_at is not None and self._clock() > slot.expires_at):
            return False  # what is past its time does not come back
        slot.expires_at = self._clock() + ttl if ttl else None
        return True

    async def _delete(self, key: Key, **_: Any) -> int:
        return self._remove(key)

    async def _clear(self, namespace: str | None = None, **_: Any) -> bool:
        if namespace is not None:
            raise TypeError("The memory tier has no namespaces")
        self._packed.clear()
        self._live.clear()
        self._shared = Shared()
        self._own_bytes = self._live_bytes = 0
        return True
