"""Template + settings + context → prompt: compiled and bounded when it arrives, rendered within its limits."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from markupsafe import escape

from sidecar.core.budget import (
    OutputTooLarge,
    RenderFailed,
    RenderLimits,
    RenderTooSlow,
    UndefinedNames,
)
from sidecar.core.meters import meter
from sidecar.core.sandbox import RenderOptions, Sandbox, Undefined, sandbox
from sidecar.core.template_body import Body, Metered, Static, Straight
from sidecar.core.template_gate import TemplateRejected, admit
from sidecar.core.template_rules import MAX_TOKENS, Profile

__all__ = [
    "CompiledTemplate",
    "OutputTooLarge",
    "Profile",
    "RenderFailed",
    "RenderLimits",
    "RenderOptions",
    "RenderTooSlow",
    "Static",
    "TemplateRejected",
    "Undefined",
    "UndefinedNames",
    "compile_template",
]


_MAY_BE_UNDEFINED = frozenset({"d", "default", "defined", "undefined"})  # filters and tests
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


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class CompiledTemplate:
    """A template that was admitted; immutable."""

    digest: str
    """SHA-256 in hexadecimal of source, options and profile."""
    source: str = field(repr=False)
    size: int
    """Bytes of the source in UTF-8."""
    options: RenderOptions
    names: frozenset[str]
    """The variables that it reads."""
    _reads: "_Reads" = field(repr=False)
    _body: Body = field(repr=False)

    def prepare(self, settings: Mapping[str, str]) -> Static:
        """Return those settings that the template reads, escaped beforehand where they are only ever printed."""
        escaped = self._reads.printed if self.options.autoescape else frozenset()
        static = Static(
            (name, escape(value) if name in escaped else value)
            for name, value in settings.items()
            if name in self.names
        )
        static.filled = self._body.fill(static)
        return static

    def render(self, static: Mapping[str, str], context: Mapping[str, Any]) -> str:
        """Return the prompt; `static` is what `prepare` returned, the context wins. Raises RenderFailed."""
        try:
            return self._body.render(static, context)
        except RenderFailed:
            raise
        except jinja2.UndefinedError as error:
            raise self._undefined(getattr(error, "name", None), {**static, **context}) from None
        except Exception as error:  # noqa: BLE001 - whatever an expression makes of its values; their text must not leak
            raise RenderFailed(f"{type(error).__name__} in an expression") from None

    def _undefined(self, name: object, values: Mapping[str, Any]) -> UndefinedNames:
        if not isinstance(name, str) or name not in self._reads.words:
            return UndefinedNames([])
        absent = self.names - self._reads.optional - values.keys()
        return UndefinedNames(absent if name in absent else [name])


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
        tree = _parsed(source, environment)
        admit(tree, profile)
        reads = _Reads.of(tree)
        body: Body | None = Straight.of(tree, environment, options, limits.max_output_bytes)
        if body is None:
            meter(tree, environment, profile)
            body = Metered(tree, environment, limits, clock)
    except jinja2.TemplateSyntaxError as error:
        message = " ".join(str(error.message).split())[:_LONGEST_MESSAGE]
        raise TemplateRejected("the syntax", message, error.lineno, is_broken=True) from None
    except TemplateRejected:
        raise
    except Exception as error:  # noqa: BLE001 - RecursionError, MemoryError, ValueError: compilers have many
        message = f"compiling it ends in {type(error).__name__}"
        raise TemplateRejected("the template", message, is_broken=True) from None
    digest = hashlib.sha256(json.dumps([asdict(options), profile]).encode() + b"\0" + encoded).hexdigest()
    return CompiledTemplate(digest, source, len(encoded), options, body.names, reads, body)


def _parsed(source: str, environment: Sandbox) -> nodes.Template:
    if next(islice(environment.lex(source), MAX_TOKENS, None), None) is not None:
        raise TemplateRejected("a template this large", f"{MAX_TOKENS} tokens are admitted")
    return environment.parse(source)


def _encoded(source: str, limit: int) -> bytes:
    too_large = TemplateRejected("a template this large", f"{limit} bytes are admitted")
    if len(source) > limit:
        raise too_large
    try:
        encoded = source.encode()
    except UnicodeEncodeError as error:
        line = source.count("\n", 0, error.start) + 1
        message = "the template must be text that UTF-8 can hold"
        raise TemplateRejected("a lone surrogate", message, line, is_broken=True) from None
    if len(encoded) > limit:
        raise too_large
    return encoded
