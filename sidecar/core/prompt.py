"""Template + settings + context → prompt: compiled and bounded when it arrives, rendered within its limits."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import jinja2
from jinja2 import meta, nodes
from markupsafe import Markup, escape

from sidecar.core.budget import (
    Budget,
    OutputTooLarge,
    RenderFailed,
    RenderLimits,
    RenderTooSlow,
    UndefinedNames,
)
from sidecar.core.meters import MeteredContext, meter
from sidecar.core.sandbox import RenderOptions, Sandbox, Undefined, UndefinedUsed, sandbox
from sidecar.core.template_gate import TemplateRejected, admit
from sidecar.core.template_rules import SHAPES, Profile

__all__ = [
    "CompiledTemplate",
    "OutputTooLarge",
    "Profile",
    "RenderFailed",
    "RenderLimits",
    "RenderOptions",
    "RenderTooSlow",
    "TemplateRejected",
    "Undefined",
    "UndefinedNames",
    "compile_template",
]

_UTF8_MAX = 4  # bytes of a character
_LONGEST_MESSAGE = 200  # characters of the parser's


@dataclass(frozen=True, slots=True)
class _Reads:
    """What a template reads, and where."""

    printed: frozenset[str]  # names that occur only as `{{ name }}`
    optional: frozenset[str]  # names that occur only where they may be undefined
    words: frozenset[str]  # every name that the template itself holds: these may stand in a message

    @classmethod
    def of(cls, tree: nodes.Template) -> "_Reads":
        names = Counter(node.name for node in tree.find_all(nodes.Name))
        printed = Counter(
            node.name for output in tree.find_all(nodes.Output) for node in output.nodes if isinstance(node, nodes.Name)
        )
        optional = Counter(
            node.node.name
            for node in tree.find_all((nodes.Filter, nodes.Test))
            if node.name in _MAY_BE_UNDEFINED and isinstance(node.node, nodes.Name)
        )
        attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
        constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return cls(
            printed=frozenset(name for name, count in names.items() if printed[name] == count),
            optional=frozenset(name for name, count in names.items() if optional[name] == count),
            words=frozenset(names.keys() | attributes | constants),
        )


_MAY_BE_UNDEFINED = frozenset({"d", "default", "defined", "undefined"})


class _Body(Protocol):
    """What makes the text of a template."""

    def render(self, values: dict[str, Any]) -> str: ...


class _Straight:
    """Nothing but text and `{{ name }}`: joined without Jinja, in a third of its time."""

    __slots__ = ("_autoescape", "_chars", "_limit", "_names", "_order", "_pieces", "_undefined", "_values")

    def __init__(self, pieces: list[str], slots: list[str], options: RenderOptions, limit: int) -> None:
        self._names = tuple(dict.fromkeys(slots))
        self._values = _getter(self._names)
        self._order = None if len(slots) == len(self._names) else _getter([self._names.index(name) for name in slots])
        self._pieces = pieces  # text, slot, text, slot, … text
        self._chars = sum(map(len, pieces))
        self._limit = limit
        self._autoescape = options.autoescape
        self._undefined = options.undefined

    @classmethod
    def of(cls, tree: nodes.Template, environment: Sandbox, options: RenderOptions, limit: int) -> "_Straight | None":
        pieces, slots = [""], []
        for statement in tree.body:
            if not isinstance(statement, nodes.Output):
                return None
            for node in statement.nodes:
                match node:
                    case nodes.TemplateData():
                        pieces[-1] += node.data
                    case nodes.Const():
                        pieces[-1] += escape(node.value) if options.autoescape else str(node.value)
                    case nodes.Name() if node.name not in environment.globals:
                        slots.append(node.name)
                        pieces += ["", ""]
                    case _:
                        return None
        return cls(pieces, slots, options, limit)

    def render(self, values: dict[str, Any]) -> str:
        try:
            row = self._values(values)
        except KeyError:
            if self._undefined is Undefined.STRICT:
                raise UndefinedNames(set(self._names) - values.keys()) from None
            row = self._values({**dict.fromkeys(self._names, ""), **values})
        if self._autoescape:
            row = [value if type(value) is Markup else escape(value) for value in row]
        else:
            row = [value if type(value) is str else str(value) for value in row]
        if self._order is not None:
            row = self._order(row)
        chars = self._chars + sum(map(len, row))
        if chars > self._limit:
            raise OutputTooLarge(f"the output is larger than {self._limit} bytes")
        pieces = self._pieces.copy()
        pieces[1::2] = row
        text = "".join(pieces)
        if chars * _UTF8_MAX > self._limit < _size(text):
            raise OutputTooLarge(f"the output is larger than {self._limit} bytes")
        return text


class _Metered:
    """A template that Jinja renders, chunk by chunk and within a budget."""

    __slots__ = ("_clock", "_environment", "_limits", "_root")

    def __init__(
        self, tree: nodes.Template, environment: Sandbox, limits: RenderLimits, clock: Callable[[], float]
    ) -> None:
        template = jinja2.Template.from_code(environment, environment.compile(tree), {})
        self._root = template.root_render_func
        self._environment = environment
        self._limits = limits
        self._clock = clock

    def render(self, values: dict[str, Any]) -> str:
        context = MeteredContext(self._environment, {**values, **self._environment.globals}, None, {})
        context.budget = Budget(self._limits, self._clock)
        room = self._limits.max_output_bytes
        chunks = []
        for chunk in self._root(context):
            room -= _size(chunk)
            if room < 0:
                raise OutputTooLarge(f"the output is larger than {self._limits.max_output_bytes} bytes")
            chunks.append(chunk)
        return "".join(chunks)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class CompiledTemplate:
    """A template that was admitted; immutable."""

    digest: str
    """SHA-256 in hexadecimal of source, options and profile."""
    size: int
    """Bytes of the source in UTF-8."""
    options: RenderOptions
    names: frozenset[str]
    """The variables that it reads."""
    _reads: "_Reads" = field(repr=False)
    _body: _Body = field(repr=False)

    def prepare(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return those settings that the template reads, escaped beforehand where they are only ever printed."""
        escaped = self._reads.printed if self.options.autoescape else frozenset()
        return {
            name: escape(value) if name in escaped else value for name, value in settings.items() if name in self.names
        }

    def render(self, static: Mapping[str, str], context: Mapping[str, Any]) -> str:
        """Return the prompt; `static` is what `prepare` returned, the context wins. Raises RenderFailed."""
        values = {**static, **context}
        try:
            return self._body.render(values)
        except RenderFailed:
            raise
        except UndefinedUsed as error:
            raise self._undefined(error.name, values) from None
        except Exception as error:  # noqa: BLE001 - whatever an expression makes of its values; their text must not leak
            raise RenderFailed(f"{type(error).__name__} in an expression") from None

    def _undefined(self, name: object, values: Mapping[str, Any]) -> UndefinedNames:
        absent = self.names - self._reads.optional - values.keys()
        if name in absent:
            return UndefinedNames(absent)
        return UndefinedNames([name] if isinstance(name, str) and name in self._reads.words else [])


def compile_template(
    source: str,
    options: RenderOptions,
    *,
    profile: Profile,
    limits: RenderLimits,
    clock: Callable[[], float],
) -> CompiledTemplate:
    """Parse, admit and compile a template; raises TemplateRejected."""
    encoded = _encoded(source, limits.max_template_bytes)
    environment = sandbox(options, profile, limits)
    try:
        tree = environment.parse(source)
        admit(tree, profile)
        reads = _Reads.of(tree)
        straight = _Straight.of(tree, environment, options, limits.max_output_bytes)
        if straight is None:
            meter(tree, environment, SHAPES[profile].filters)
            names = frozenset(meta.find_undeclared_variables(tree))
        body: _Body = straight or _Metered(tree, environment, limits, clock)
    except jinja2.TemplateSyntaxError as error:
        message = " ".join(str(error.message).split())[:_LONGEST_MESSAGE]
        raise TemplateRejected("the syntax", message, error.lineno) from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise TemplateRejected("a construct", f"compiling it ends in {type(error).__name__}") from None
    digest = hashlib.sha256(json.dumps([asdict(options), profile]).encode() + b"\0" + encoded).hexdigest()
    return CompiledTemplate(digest, len(encoded), options, reads.printed if straight else names, reads, body)


def _encoded(source: str, limit: int) -> bytes:
    too_large = TemplateRejected("a template this large", f"{limit} bytes are admitted")
    if len(source) > limit:
        raise too_large
    try:
        encoded = source.encode()
    except UnicodeEncodeError as error:
        line = source.count("\n", 0, error.start) + 1
        raise TemplateRejected("a lone surrogate", "the template must be text that UTF-8 can hold", line) from None
    if len(encoded) > limit:
        raise too_large
    return encoded


def _getter(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    """Return what takes these keys' values in order; `itemgetter` alone gives no sequence for less than two."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda values: [values[key] for key in keys]


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
