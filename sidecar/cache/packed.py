"""An entry as it is kept while nobody asks for it: what it shares with others, and little else.

What `Document.of` and `Entry.of` work out is not kept, since they can work it out again: some ten microseconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from sys import getsizeof
from typing import Any

import msgspec

from sidecar.cache.shared import Shared
from sidecar.cache.sizes import answer_bytes, live_bytes, shared_bytes, text_bytes
from sidecar.core.model import Document, Entry, Kept, Key, PromptKey, SettingsKey, StaticAnswer, UserSettings
from sidecar.core.policy import Policy
from sidecar.core.prompt import CompiledTemplate

PACKED_OVERHEAD = 496
"""Bytes of a packed entry without what it shares: key, slot, floats, its place in the queue (measured: 400 to 480)."""
DOCUMENT_OVERHEAD = 80
"""Bytes more for a document's fields."""


class Packed(msgspec.Struct, gc=False, kw_only=True):
    """An entry at rest, whose `entry` is there while it is in use; no cycle leads through it, hence `gc=False`."""

    key: Key
    policy: Policy
    confirmed_at: float
    spread: float
    epoch: int
    expires_at: float | None
    entry: Entry[Any] | None
    live_bytes: int
    """What being in use adds; 0 at rest."""
    names: tuple[str, ...]
    values: tuple[str, ...]

    def kept(self) -> Kept:
        """Return what was packed, made again."""
        raise NotImplementedError

    def parts(self) -> Iterator[Any]:
        """Yield what is shared, the texts aside: the key's texts, too, which each request brings anew."""
        if isinstance(self.key, PromptKey):
            yield self.key.node_name
        if isinstance(self.key, PromptKey | SettingsKey) and self.key.credential:
            yield self.key.credential

    def own_bytes(self) -> int:
        """Return about what it takes at rest, without what it shares."""
        if isinstance(self.key, PromptKey | SettingsKey):
            return PACKED_OVERHEAD
        texts = (part for part in self.key if isinstance(part, str)) if isinstance(self.key, tuple) else ()
        return PACKED_OVERHEAD + sum(map(text_bytes, texts))

    def alone_bytes(self) -> int:
        """Return about what it takes in use if it shares nothing with anybody."""
        return (
            self.own_bytes()
            + self.live_bytes
            + sum(map(shared_bytes, (*self.parts(), self.names, self.values, *self.names, *self.values)))
        )

    def rest(self) -> None:
        """Let go of what can be made again."""
        self.entry = None
        self.live_bytes = 0

    def wake(self) -> Entry[Any]:
        """Return the entry, made again if need be, and equal to what it was."""
        if self.entry is None:
            self.entry = Entry.of(self.kept(), self.confirmed_at, self.spread, self.policy, self.epoch)
            self.live_bytes = live_bytes(self.entry.document)
        return self.entry

    def give_back(self, shared: Shared) -> None:
        """Let go of what others may share."""
        for part in self.parts():
            shared.give_back(part)
        shared.give_back_texts(self.names)
        shared.give_back_texts(self.values)


class PackedDocument(Packed, gc=False, kw_only=True):
    """A document at rest."""

    template: CompiledTemplate
    required: frozenset[str]
    stated_ttl: float | None
    etag: str | None

    def kept(self) -> Document:
        """Return the document, made again."""
        return Document.of(
            self.template,
            dict(zip(self.names, self.values, strict=True)),
            required=self.required,
            stated_ttl=self.stated_ttl,
            etag=self.etag,
        )

    def parts(self) -> Iterator[Any]:
        """Yield what is shared, the texts aside."""
        yield self.template
        yield self.required
        yield from Packed.parts(self)

    def own_bytes(self) -> int:
        """Return about what it takes at rest, without what it shares."""
        return Packed.own_bytes(self) + DOCUMENT_OVERHEAD + (text_bytes(self.etag) if self.etag else 0)


class PackedSettings(Packed, gc=False, kw_only=True):
    """A user's settings at rest."""

    def kept(self) -> UserSettings:
        """Return the settings, made again."""
        return UserSettings(dict(zip(self.names, self.values, strict=True)))


class PackedAnswer(Packed, gc=False, kw_only=True):
    """An answer at rest: as it is, for nothing was worked out of it."""

    answer: StaticAnswer

    def kept(self) -> StaticAnswer:
        """Return the answer."""
        return self.answer

    def own_bytes(self) -> int:
        """Return about what it takes at rest, without what it shares."""
        return Packed.own_bytes(self) + answer_bytes(self.answer)


def pack(key: Key, entry: Entry[Any], expires_at: float | None, shared: Shared) -> Packed:
    """Pack an entry that is in use, taking what it shares."""
    kept = entry.document
    adds = live_bytes(kept)  # first, for it refuses what cannot be kept
    texts = _texts(kept)
    names, values = shared.take_texts(texts), shared.take_texts(texts.values())
    common: dict[str, Any] = {
        "key": _with_shared_texts(key, shared),
        "policy": entry.policy,
        "confirmed_at": entry.confirmed_at,
        "spread": entry.spread,
        "epoch": entry.epoch,
        "expires_at": expires_at,
        "entry": entry,
        "live_bytes": adds + _not_among(names, texts) + _not_among(values, texts.values()),
        "names": names,
        "values": values,
    }
    match kept:
        case Document():
            return PackedDocument(
                **common,
                template=shared.take(kept.template),
                required=shared.take(kept.required),
                stated_ttl=kept.stated_ttl,
                etag=kept.etag,
            )
        case UserSettings():
            return PackedSettings(**common)
        case StaticAnswer():
            return PackedAnswer(**common, answer=kept)
    raise TypeError(f"{type(kept).__name__} cannot be kept in memory")


def _with_shared_texts(key: Key, shared: Shared) -> Key:
    if isinstance(key, PromptKey):
        key = key._replace(node_name=shared.take(key.node_name))
    if isinstance(key, PromptKey | SettingsKey) and key.credential:
        key = key._replace(credential=shared.take(key.credential))
    return key


def _texts(kept: Kept) -> Mapping[str, str]:
    match kept:
        case Document():
            return kept.settings
        case UserSettings():
            return kept.values
    return {}


def _not_among(taken: Iterable[str], texts: Iterable[str]) -> int:
    """Return the bytes of those texts that are there twice while the entry is in use: as they came, and as shared."""
    return sum(getsizeof(text) for text, kept in zip(texts, taken, strict=True) if text is not kept)
