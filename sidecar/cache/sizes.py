"""What is kept takes so many bytes, about: never less than it takes, so that a bound in bytes holds."""

from sys import getsizeof
from typing import Any

from sidecar.core.model import Document, Kept, StaticAnswer, UserSettings
from sidecar.core.prompt import CompiledTemplate

LIVE_OVERHEAD = 320
"""Bytes of an entry that is ready to serve, without its texts and mappings: entry, document, floats (measured)."""
TEMPLATE_OVERHEAD = 10_240
"""Bytes of a compiled template without its source: what it reads, its code, its module (measured: 2 KB to 9 KB)."""
TEMPLATE_FACTOR = 10
"""Bytes per byte of a template's source: 1 for prose, 10 where every few words are a filter or a block (measured).

The densest counts, because a bound must hold; a template is counted once, so it costs little.
"""
SHARED_OVERHEAD = 112
"""Bytes of what is looked up by its content: its place in a table (60 to 120) and the allocator's rounding."""
_TEXT = 49  # bytes of an empty str
_WIDE_TEXT = 76  # of an empty one that is not ASCII


def text_bytes(text: str) -> int:
    """Return about what a text takes; the same whenever it is asked, unlike `getsizeof`.

    A text that is not ASCII may keep its UTF-8 beside it, once something has asked for that.
    """
    if text.isascii():
        return _TEXT + len(text)
    units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    width = 2 if units == len(text) else 4
    return _WIDE_TEXT + width * len(text) + len(text.encode(errors="surrogatepass"))


def shared_bytes(value: Any) -> int:
    """Return about what something takes that entries share; the parts of a tuple are counted by themselves."""
    match value:
        case str():
            return SHARED_OVERHEAD + text_bytes(value)
        case tuple():
            return SHARED_OVERHEAD + getsizeof(value)
        case frozenset():
            return SHARED_OVERHEAD + getsizeof(value) + sum(map(text_bytes, value))
        case CompiledTemplate():
            return template_bytes(value)
    raise TypeError(f"{type(value).__name__} has no known size")


def template_bytes(template: CompiledTemplate) -> int:
    """Return about what a compiled template takes in memory; bytes."""
    return TEMPLATE_OVERHEAD + TEMPLATE_FACTOR * template.size


def live_bytes(kept: Kept) -> int:
    """Return about what being ready to serve takes, without what is there at rest, too; bytes."""
    match kept:
        case Document():
            return LIVE_OVERHEAD + _document_bytes(kept)
        case UserSettings():
            return LIVE_OVERHEAD + getsizeof(kept.values)
        case StaticAnswer():
            return LIVE_OVERHEAD
    raise TypeError(f"{type(kept).__name__} has no known size")


def answer_bytes(answer: StaticAnswer) -> int:
    """Return about what an answer takes, ready or not; bytes."""
    return getsizeof(answer.body) + sum(_pair_bytes(*pair) for pair in answer.headers)


def _pair_bytes(name: str, value: str) -> int:
    return 80 + text_bytes(name) + text_bytes(value)


def _document_bytes(document: Document) -> int:
    mappings = sum(map(getsizeof, (document.settings, document.static, document.used, document.required)))
    filled = document.static.filled
    if filled is not None:
        mappings += getsizeof(filled) + getsizeof(filled.pieces) + getsizeof(filled.holes) + 128 * len(filled.holes)
    escaped = sum(getsizeof(value) for name, value in document.static.items() if value is not document.settings[name])
    return mappings + escaped
