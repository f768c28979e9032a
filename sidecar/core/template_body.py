"""What makes the text of an admitted template: two ways, the fast one where nothing has to be evaluated."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.meta import TrackingCodeGenerator
from markupsafe import Markup, escape

from sidecar.core.budget import Budget, OutputTooLarge, RenderLimits, UndefinedNames
from sidecar.core.meters import MeteredContext
from sidecar.core.sandbox import RenderOptions, Sandbox, Undefined

_UTF8_MAX = 4  # bytes of a character


class Filled(NamedTuple):
    """A text with its static values in place, and holes for what only a request can give."""

    pieces: list[str]
    holes: tuple[tuple[str, list[int]], ...]  # name, its places among the pieces
    chars: int  # without the holes


class Static(dict[str, str]):
    """The static values that a template reads, and what could be done with them beforehand."""

    __slots__ = ("filled",)

    filled: Filled | None


class Body(Protocol):
    """What makes the text of a template from its values; raises RenderFailed, and whatever an expression raises."""

    @property
    def names(self) -> frozenset[str]:
        """The variables that it reads."""

    def fill(self, static: Mapping[str, str]) -> Filled | None:
        """Do beforehand what can be done without a request."""

    def render(self, static: Mapping[str, str], context: Mapping[str, Any]) -> str:
        """Return the text; the context wins."""


class Straight:
    """Nothing but text and `{{ name }}`: joined without Jinja, in a third of its time."""

    __slots__ = ("_autoescape", "_chars", "_limit", "_order", "_pieces", "_slots", "_undefined", "_values", "names")

    def __init__(self, pieces: list[str], slots: list[str], options: RenderOptions, limit: int) -> None:
        positions = {name: index for index, name in enumerate(dict.fromkeys(slots))}
        self.names = frozenset(slots)
        self._values = _getter([*positions])
        self._order = _getter([positions[name] for name in slots]) if len(slots) > len(positions) else None
        self._slots = slots
        self._pieces = pieces  # text, slot, text, slot, … text
        self._chars = sum(map(len, pieces))
        self._limit = limit
        self._autoescape = options.autoescape
        self._undefined = options.undefined

    @classmethod
    def of(cls, tree: nodes.Template, environment: Sandbox, options: RenderOptions, limit: int) -> "Straight | None":
        """Return the tree's body, or None if something has to be evaluated."""
        pieces, slots = [""], []
        for statement in tree.body:
            if not isinstance(statement, nodes.Output):
                return None
            for node in statement.nodes:
                match node:
                    case nodes.TemplateData():
                        pieces[-1] += node.data
                    case nodes.Const():
                        pieces[-1] += str(escape(node.value) if options.autoescape else node.value)
                    case nodes.Name() if node.name not in environment.globals:
                        slots.append(node.name)
                        pieces += ["", ""]
                    case _:
                        return None
        return cls(pieces, slots, options, limit)

    def fill(self, static: Mapping[str, str]) -> Filled | None:
        """Put the static values into their places, which leaves a hit little to do."""
        pieces = self._pieces.copy()
        holes: dict[str, list[int]] = {}
        for index, name in enumerate(self._slots):
            if name in static:
                pieces[2 * index + 1] = static[name]
            else:
                holes.setdefault(name, []).append(2 * index + 1)
        return Filled(pieces, tuple(holes.items()), sum(map(len, pieces)))

    def render(self, static: Mapping[str, str], context: Mapping[str, Any]) -> str:
        """Return the text; the context wins."""
        filled = static.filled if type(static) is Static else None
        if filled is None or not static.keys().isdisjoint(context):
            return self._render({**static, **context})
        pieces = filled.pieces.copy()
        chars = filled.chars
        for name, places in filled.holes:
            if name not in context:
                return self._render({**static, **context})
            value = context[name]
            text = escape(value) if self._autoescape else value if type(value) is str else str(value)
            for place in places:  # made into text once, however many they are
                pieces[place] = text
                chars += len(text)
        return self._joined(pieces, chars)

    def _render(self, values: Mapping[str, Any]) -> str:
        try:
            row = self._values(values)
        except KeyError:
            if self._undefined is Undefined.STRICT:
                raise UndefinedNames(self.names - values.keys()) from None
            row = self._values({**dict.fromkeys(self.names, ""), **values})
        if self._autoescape:
            row = [value if type(value) is Markup else escape(value) for value in row]
        else:
            row = [value if type(value) is str else str(value) for value in row]
        if self._order is not None:
            row = self._order(row)
        pieces = self._pieces.copy()
        pieces[1::2] = row
        return self._joined(pieces, self._chars + sum(map(len, row)))

    def _joined(self, pieces: list[str], chars: int) -> str:
        if chars > self._limit:
            raise OutputTooLarge(f"the output is larger than {self._limit} bytes")
        text = "".join(pieces)
        if chars * _UTF8_MAX > self._limit < _size(text):
            raise OutputTooLarge(f"the output is larger than {self._limit} bytes")
        return text


class _Generator(TrackingCodeGenerator):
    """Jinja's code generator, which notes the names that it resolves, and writes."""

    write = CodeGenerator.write


class Metered:
    """A template that Jinja renders, chunk by chunk and within a budget."""

    __slots__ = ("_clock", "_environment", "_limits", "_root", "names")

    def __init__(
        self, tree: nodes.Template, environment: Sandbox, limits: RenderLimits, clock: Callable[[], float]
    ) -> None:
        generator = _Generator(environment)
        generator.visit(tree)
        code = compile(generator.stream.getvalue(), "<template>", "exec")  # type: ignore[attr-defined] # a StringIO
        self.names = frozenset(generator.undeclared_identifiers)
        self._root = jinja2.Template.from_code(environment, code, {}).root_render_func
        self._environment = environment
        self._limits = limits
        self._clock = clock

    def fill(self, static: Mapping[str, str]) -> Filled | None:  # noqa: ARG002 - the way of Body
        """Do nothing: expressions have to see their values."""
        return None

    def render(self, static: Mapping[str, str], context: Mapping[str, Any]) -> str:
        """Return the text; the context wins."""
        values = {**static, **context, **self._environment.globals}
        jinja_context = MeteredContext(self._environment, values, None, {})
        jinja_context.budget = Budget(self._limits, self._clock)
        room = self._limits.max_output_bytes
        chunks = []
        for chunk in self._root(jinja_context):
            room -= _size(chunk)
            if room < 0:
                raise OutputTooLarge(f"the output is larger than {self._limits.max_output_bytes} bytes")
            chunks.append(chunk)
        return "".join(chunks)


def _getter(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    """Return what takes these keys' values in order; `itemgetter` alone gives no sequence for less than two."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda values: [values[key] for key in keys]


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
