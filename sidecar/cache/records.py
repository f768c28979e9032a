"""What is written outside the process: bytes that can execute nothing, and say when they are no good."""

import zlib
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from sidecar.cache.seals import RecordError, Seal, Summed
from sidecar.core.model import Document, Key, PromptKey, RouteKey, SettingsKey, StaticAnswer, UserSettings
from sidecar.core.prompt import CompiledTemplate, RenderOptions, TemplateRejected, Undefined

MAGIC = b"PSR"
VERSION = 1
"""The schema; a record of another one is dropped, for it can be fetched again."""
_HEAD = MAGIC + bytes([VERSION])
LARGEST = 16 * 1024 * 1024
"""Bytes that a record may unpack to: a bomb is no record."""
LEVEL = 1
"""zlib's fastest: templates and settings are text, and shrink by half to two thirds even so."""
KEY_BYTES = 32


class Place(NamedTuple):
    """Where a record is kept: under which key, and what it has in common with others; all of it hashed."""

    key: bytes
    owner: bytes | None
    """The owner's tag; None for a note, which is nobody's."""
    node: bytes | None


class Stored(NamedTuple):
    """What is kept, and what must be known of it after a restart."""

    kept: Document | UserSettings | StaticAnswer
    fetched_at: float
    """Unix seconds at which the upstream vouched for it."""
    spread: float
    boot: bytes
    """Which process wrote it."""
    epoch: int
    """How many writes had passed through that process when it was asked for."""
    whose: tuple[int, str] | None = None
    """User and node, so that it can be asked for again; the node is empty where settings serve all of them."""


class _Document(msgspec.Struct, tag="document", array_like=True):
    source: str
    autoescape: bool
    trim_blocks: bool
    lstrip_blocks: bool
    undefined: str
    settings: dict[str, str]
    required: list[str]
    stated_ttl: float | None
    etag: str | None


class _Settings(msgspec.Struct, tag="settings", array_like=True):
    values: dict[str, str]


class _Answer(msgspec.Struct, tag="answer", array_like=True):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Record(msgspec.Struct, array_like=True):
    fetched_at: float
    spread: float
    boot: bytes
    epoch: int
    kept: _Document | _Settings | _Answer
    whose: tuple[int, str] | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Record)
Compile = Callable[[str, RenderOptions], CompiledTemplate]


class Records:
    """Entries as bytes and back; templates are admitted and compiled again on the way back (contract §4 promise 9)."""

    def __init__(self, compile_source: Compile, seal: Seal | None = None) -> None:
        self._compile = compile_source
        self._seal: Seal = seal or Summed()

    def encode(self, key: bytes, stored: Stored) -> bytes:
        """Return the record of a key's entry."""
        record = _Record(stored.fetched_at, stored.spread, stored.boot, stored.epoch, _plain(stored.kept), stored.whose)
        return self._seal.close(key, _HEAD + zlib.compress(_encoder.encode(record), LEVEL))

    def decode(self, key: bytes, data: bytes) -> Stored:
        """Return what a record holds; raises `RecordError`."""
        record = self._opened(key, data)
        try:
            kept = self._kept(record.kept)
        except (TemplateRejected, ValueError) as error:
            raise RecordError("template") from error
        return Stored(kept, record.fetched_at, record.spread, record.boot, record.epoch, record.whose)

    def whose(self, key: bytes, data: bytes) -> tuple[int, str] | None:
        """Return whose record it is, without a look at the rest; raises `RecordError`."""
        return self._opened(key, data).whose

    def _opened(self, key: bytes, data: bytes) -> _Record:
        content = self._seal.open(key, data)
        if not content.startswith(_HEAD):
            raise RecordError("version")
        try:
            return _decoder.decode(_unpacked(content[len(_HEAD) :]))
        except (msgspec.MsgspecError, UnicodeDecodeError, zlib.error, RecursionError) as error:
            raise RecordError("shape") from error

    def close_note(self, key: bytes, text: str) -> bytes:
        """Return a word about the store, closed like a record: nobody else shall choose it."""
        return self._seal.close(key, text.encode())

    def open_note(self, key: bytes, data: bytes) -> str:
        """Return the word; raises `RecordError`."""
        return self._seal.open(key, data).decode("utf-8", "replace")

    def _kept(self, plain: _Document | _Settings | _Answer) -> Document | UserSettings | StaticAnswer:
        match plain:
            case _Settings():
                return UserSettings(plain.values)
            case _Answer():
                return StaticAnswer(plain.status, tuple(plain.headers), plain.body)
            case _Document():
                options = RenderOptions(
                    autoescape=plain.autoescape,
                    trim_blocks=plain.trim_blocks,
                    lstrip_blocks=plain.lstrip_blocks,
                    undefined=Undefined(plain.undefined),
                )
                return Document.of(
                    self._compile(plain.source, options),
                    plain.settings,
                    required=frozenset(plain.required),
                    stated_ttl=plain.stated_ttl,
                    etag=plain.etag,
                )


def _plain(kept: Document | UserSettings | StaticAnswer) -> _Document | _Settings | _Answer:
    match kept:
        case UserSettings():
            return _Settings(dict(kept.values))
        case StaticAnswer():
            return _Answer(kept.status, list(kept.headers), kept.body)
        case Document():
            options = kept.template.options
            return _Document(
                kept.template.source,
                options.autoescape,
                options.trim_blocks,
                options.lstrip_blocks,
                options.undefined.value,
                dict(kept.settings),
                sorted(kept.required),
                kept.stated_ttl,
                kept.etag,
            )


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, LARGEST)
    if not unpacker.eof or unpacker.unused_data:
        raise zlib.error("cut short, or too large")
    return content


def place_of(namespace: str, key: Key) -> Place:
    """Return where an entry is kept; `namespace`: whose data it is."""
    node = node_tag(namespace, key.node_name) if isinstance(key, PromptKey) else None
    return Place(store_key(namespace, key), owner_tag(namespace, key.owner), node)


def note_place(namespace: str, name: str) -> Place:
    """Return where a word about the store itself is kept."""
    return Place(_hashed(namespace, "note", name), None, None)


def store_key(namespace: str, key: Key) -> bytes:
    """Return the key of an entry in a store: hashed, so that no user's id is on disk; `namespace`: whose data it is."""
    parts: tuple[str, ...]
    match key:
        case PromptKey():
            parts = ("prompt", str(key.user_id), key.node_name, *_apart(key.credential))
        case SettingsKey():
            parts = ("settings", str(key.user_id), *_apart(key.credential))
        case RouteKey():
            parts = ("route", key.host, key.target)
        case _:
            raise TypeError(f"{type(key).__name__} has no place in a store")
    return _hashed(namespace, *parts)


def _apart(credential: str) -> tuple[str, ...]:
    return (credential,) if credential else ()


def whose(key: Key) -> tuple[int, str] | None:
    """Return user and node of what can be asked for again by them alone: not by somebody's credential."""
    match key:
        case PromptKey(credential=""):
            return key.user_id, key.node_name
        case SettingsKey(credential=""):
            return key.user_id, ""
    return None


def owner_tag(namespace: str, owner: int | None) -> bytes:
    """Return what an owner's entries have in common; None: those of everybody."""
    return _hashed(namespace, "owner", "" if owner is None else str(owner))


def node_tag(namespace: str, node: str) -> bytes:
    """Return what a node's entries have in common."""
    return _hashed(namespace, "node", node)


def _hashed(*parts: str) -> bytes:
    """Hash parts so that no two lists of them are alike: user 1 is not user 12."""
    return blake2b(msgspec.msgpack.encode(parts), digest_size=KEY_BYTES, person=b"prompt-sidecar").digest()
