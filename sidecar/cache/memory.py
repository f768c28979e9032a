"""The memory tier: least-recently-used, bounded by entries and by bytes, each template counted once for all users."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from sys import getsizeof
from typing import Any

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from sidecar.core.model import Document, Entry, Kept, Key, StaticAnswer, UserSettings
from sidecar.core.prompt import CompiledTemplate
from sidecar.service.ports import Clock

ENTRY_OVERHEAD = 704
"""Bytes of an entry without its texts and mappings: key, entry, document, slot, floats (measured: 600 to 700)."""
TEMPLATE_OVERHEAD = 10_240
"""Bytes of a compiled template without its source: what it reads, its code, its module (measured: 2 KB to 9 KB)."""
TEMPLATE_FACTOR = 10
"""Bytes per byte of a template's source: 1 for prose, 10 where every few words are a filter or a block (measured).

The densest counts, because a bound must hold; a template is counted once, so it costs little.
"""


def kept_bytes(kept: Kept) -> int:
    """Return about what an entry takes in memory, a template aside; bytes.

    Measured with 10,000 users: 0 to 25 % more than they take, the more the shorter their values are.
    """
    match kept:
        case Document():
            return ENTRY_OVERHEAD + _document_bytes(kept)
        case UserSettings():
            return ENTRY_OVERHEAD + _texts_bytes(kept.values)
        case StaticAnswer():
            return ENTRY_OVERHEAD + getsizeof(kept.body) + _texts_bytes(dict(kept.headers))
    raise TypeError(f"{type(kept).__name__} has no known size")


def _texts_bytes(texts: Mapping[str, str]) -> int:
    return getsizeof(texts) + sum(map(getsizeof, texts)) + sum(map(getsizeof, texts.values()))


def _document_bytes(document: Document) -> int:
    mappings = sum(map(getsizeof, (document.static, document.used, document.required)))
    filled = document.static.filled
    if filled is not None:
        mappings += getsizeof(filled) + getsizeof(filled.pieces) + getsizeof(filled.holes) + 128 * len(filled.holes)
    required = sum(map(getsizeof, document.required))
    escaped = sum(getsizeof(value) for name, value in document.static.items() if value is not document.settings[name])
    etag = getsizeof(document.etag) if document.etag else 0
    return _texts_bytes(document.settings) + mappings + required + escaped + etag


def template_bytes(template: CompiledTemplate) -> int:
    """Return about what a compiled template takes in memory; bytes."""
    return TEMPLATE_OVERHEAD + TEMPLATE_FACTOR * template.size


def _template_of(entry: Entry[Any]) -> CompiledTemplate | None:
    return entry.document.template if isinstance(entry.document, Document) else None


def _as_is(key: Key, namespace: str | None = None) -> Key:  # noqa: ARG001 — aiocache passes it by name
    return key


@dataclass(slots=True)
class _Slot:
    entry: Entry[Any]
    size: int
    expires_at: float | None


class MemoryCache(BaseCache):  # type: ignore[misc] # aiocache carries no types
    """Entries in this process, behind aiocache's interface, with `peek` for the hot path.

    aiocache's own memory backend has no bound and keeps a timer per key. Here an entry past its time is dropped when
    it is met: by a lookup, or when the least recently used make room. Each costs the same however many there are.
    """

    NAME = "memory"

    def __init__(self, *, max_entries: int, max_bytes: int, clock: Clock) -> None:
        super().__init__(serializer=NullSerializer(), timeout=None, key_builder=_as_is)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()
        self._template_uses: Counter[str] = Counter()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions: Counter[str] = Counter({"entries": 0, "bytes": 0, "expired": 0, "too_large": 0})

    def __len__(self) -> int:
        return len(self._slots)

    def peek(self, key: Any) -> Entry[Any] | None:
        """Return the key's entry, without an await."""
        slot = self._slots.get(key)
        if slot is None:
            self.misses += 1
            return None
        if slot.expires_at is not None and self._clock() > slot.expires_at:
            self._drop(key, "expired")
            self.misses += 1
            return None
        self._slots.move_to_end(key)
        self.hits += 1
        return slot.entry

    def _keep(self, key: Key, entry: Entry[Any], ttl: float | None) -> bool:
        template = _template_of(entry)
        size = kept_bytes(entry.document)
        if size + (template_bytes(template) if template else 0) > self._max_bytes:
            self._remove(key)  # what it would have replaced is older, and must not outlive it
            self.evictions["too_large"] += 1
            return False
        self._remove(key)
        self._slots[key] = _Slot(entry, size, None if ttl is None else self._clock() + ttl)
        self.bytes += size
        if template is not None:
            self._template_uses[template.digest] += 1
            if self._template_uses[template.digest] == 1:
                self.bytes += template_bytes(template)
        while len(self._slots) > self._max_entries:
            self._drop(next(iter(self._slots)), "entries")
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._slots)), "bytes")
        return True

    def _drop(self, key: Any, reason: str) -> None:
        self._remove(key)
        self.evictions[reason] += 1

    def _remove(self, key: Any) -> int:
        slot = self._slots.pop(key, None)
        if slot is None:
            return 0
        self.bytes -= slot.size
        template = _template_of(slot.entry)
        if template is not None:
            self._template_uses[template.digest] -= 1
            if not self._template_uses[template.digest]:
                del self._template_uses[template.digest]
                self.bytes -= template_bytes(template)
        return 1

    def drop_where(self, matches: Callable[[Any], bool]) -> int:
        """Forget those entries whose key matches; say how many. Looks at all of them (10 ms for 100,000)."""
        return sum(self._remove(key) for key in [key for key in self._slots if matches(key)])

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
        if _cas_token is not None and _cas_token is not self.peek(key):
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
        slot = self._slots.get(key)
        if slot is None or (slot.expires_at is not None and self._clock() > slot.expires_at):
            return False  # what is past its time does not come back
        slot.expires_at = self._clock() + ttl if ttl else None
        return True

    async def _delete(self, key: Key, **_: Any) -> int:
        return self._remove(key)

    async def _clear(self, namespace: str | None = None, **_: Any) -> bool:
        if namespace is not None:
            raise TypeError("The memory tier has no namespaces")
        self._slots.clear()
        self._template_uses.clear()
        self.bytes = 0
        return True
