"""What a template may consist of, as tables: nodes, filters, tests and their arguments, by profile.

`template_gate` holds a syntax tree to them when a template arrives; `sandbox` meters by `Cost` what depends on values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto

from jinja2 import nodes


class Profile(StrEnum):
    """How much of Jinja a template may use."""

    STRICT = "strict"
    FULL = "full"


class Cost(Enum):
    """What a filter or a test does with its value, and so how that is metered."""

    FREE = auto()  # looks at it, in constant time
    DATA = auto()  # walks it
    TEXT = auto()  # turns it into text
    ROWS = auto()  # goes through its items: each counts as an iteration of a loop


class Arg(Enum):
    """What an argument may be; all but ANY are constants."""

    ANY = auto()
    FLAG = auto()
    TEXT = auto()
    WIDTH = auto()
    PLACES = auto()
    LENGTH = auto()
    FIELD = auto()
    FILTER = auto()
    TEST = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """How one filter or test may be used. `args`: by position or by name; `keywords`: by name; `rest`: any further."""

    cost: Cost
    args: Mapping[str, Arg] = field(default_factory=dict)
    keywords: Mapping[str, Arg] = field(default_factory=dict)
    rest: Arg | None = None
    amplifies: bool = False  # what comes out can be a constant factor larger than what goes in


def _words(text: str) -> list[str]:
    return text.split()


_FIELD = {"attribute": Arg.FIELD}
_CASE = {"case_sensitive": Arg.FLAG}
_TEXT = Rule(Cost.TEXT)
_FREE = Rule(Cost.FREE)
_DEFAULT = Rule(Cost.FREE, {"default_value": Arg.ANY, "boolean": Arg.FLAG})
_ESCAPE = Rule(Cost.TEXT, amplifies=True)
_NUMBER = Rule(Cost.DATA, {"default": Arg.ANY})  # no base: it would lift Python's limit of 4300 digits
_MAP = Rule(Cost.ROWS, keywords={**_FIELD, "default": Arg.ANY})
_EXTREME = Rule(Cost.ROWS, {**_CASE, **_FIELD})

# Not here on purpose: attr, lipsum, pprint, random, urlize; the argument of `tojson` (indentation grows with depth).
STRICT_FILTERS: Mapping[str, Rule] = {
    "abs": _FREE,
    "capitalize": _TEXT,
    "count": _FREE,
    "d": _DEFAULT,
    "default": _DEFAULT,
    "dictsort": Rule(Cost.ROWS, {**_CASE, "by": Arg.TEXT, "reverse": Arg.FLAG}),
    "e": _ESCAPE,
    "escape": _ESCAPE,
    "filesizeformat": Rule(Cost.DATA, {"binary": Arg.FLAG}),
    "first": _FREE,
    "float": _NUMBER,
    "forceescape": _ESCAPE,
    "indent": Rule(Cost.TEXT, {"width": Arg.WIDTH, "first": Arg.FLAG, "blank": Arg.FLAG}, amplifies=True),
    "int": _NUMBER,
    "items": _FREE,
    "join": Rule(Cost.ROWS, {"d": Arg.TEXT, **_FIELD}, amplifies=True),
    "last": _FREE,
    "length": _FREE,
    "list": Rule(Cost.ROWS),
    "lower": _TEXT,
    "map": _MAP,
    "max": _EXTREME,
    "min": _EXTREME,
    "replace": Rule(Cost.TEXT, {"old": Arg.TEXT, "new": Arg.TEXT, "count": Arg.LENGTH}, amplifies=True),
    "reverse": Rule(Cost.DATA),
    "round": Rule(Cost.FREE, {"precision": Arg.PLACES, "method": Arg.TEXT}),
    "safe": _TEXT,
    "sort": Rule(Cost.ROWS, {"reverse": Arg.FLAG, **_CASE, **_FIELD}),
    "string": _TEXT,
    "sum": Rule(Cost.ROWS, _FIELD),
    "title": Rule(Cost.ROWS),  # takes the text apart
    "tojson": _ESCAPE,
    "trim": Rule(Cost.TEXT, {"chars": Arg.TEXT}),
    "truncate": Rule(Cost.TEXT, {"length": Arg.LENGTH, "killwords": Arg.FLAG, "end": Arg.TEXT, "leeway": Arg.LENGTH}),
    "unique": Rule(Cost.ROWS, _CASE),
    "upper": _TEXT,
    "urlencode": Rule(Cost.ROWS, amplifies=True),  # goes byte by byte
    "wordcount": _TEXT,
}

_SELECT = Rule(Cost.ROWS, {"test": Arg.TEST}, rest=Arg.ANY)
_SELECT_BY = Rule(Cost.ROWS, {"attribute": Arg.FIELD, "test": Arg.TEST}, rest=Arg.ANY)

# What these can make of a value is not bounded by a constant: `guards` bounds it, value by value.
FULL_FILTERS: Mapping[str, Rule] = {
    **STRICT_FILTERS,
    "batch": Rule(Cost.ROWS, {"linecount": Arg.ANY, "fill_with": Arg.ANY}),
    "center": Rule(Cost.TEXT, {"width": Arg.ANY}),
    "format": Rule(Cost.TEXT, rest=Arg.ANY),
    "groupby": Rule(Cost.ROWS, {"attribute": Arg.FIELD, "default": Arg.ANY, **_CASE}),
    "indent": Rule(Cost.TEXT, {"width": Arg.ANY, "first": Arg.ANY, "blank": Arg.ANY}),
    "join": Rule(Cost.ROWS, {"d": Arg.ANY, **_FIELD}),
    "map": replace(_MAP, args={"filter": Arg.FILTER}),
    "reject": _SELECT,
    "rejectattr": _SELECT_BY,
    "replace": Rule(Cost.TEXT, {"old": Arg.ANY, "new": Arg.ANY, "count": Arg.ANY}),
    "round": Rule(Cost.FREE, {"precision": Arg.ANY, "method": Arg.TEXT}),
    "select": _SELECT,
    "selectattr": _SELECT_BY,
    "slice": Rule(Cost.ROWS, {"slices": Arg.ANY, "fill_with": Arg.ANY}),
    "striptags": _TEXT,
    "truncate": Rule(Cost.TEXT, {"length": Arg.ANY, "killwords": Arg.ANY, "end": Arg.ANY, "leeway": Arg.ANY}),
    "wordwrap": Rule(
        Cost.TEXT,
        {"width": Arg.ANY, "break_long_words": Arg.FLAG, "wrapstring": Arg.TEXT, "break_on_hyphens": Arg.FLAG},
    ),
    "xmlattr": Rule(Cost.TEXT, {"autospace": Arg.FLAG}),
}

# Filters that `map` may apply by name: one plain item to another, growing by a constant factor at most.
ITEM_FILTERS = frozenset(
    _words(
        "abs capitalize d default e escape first float forceescape int last length lower round safe string title "
        "tojson trim truncate upper urlencode"
    )
)

# Not here on purpose: callable, filter and test, which look at the sandbox itself.
TESTS: Mapping[str, Rule] = {
    **dict.fromkeys(
        _words(
            "boolean defined escaped even false float integer iterable mapping none number odd sequence string true "
            "undefined"
        ),
        _FREE,
    ),
    **dict.fromkeys(["lower", "upper"], _TEXT),
    **dict.fromkeys(
        _words("!= < <= == > >= divisibleby eq equalto ge greaterthan gt in le lessthan lt ne sameas"),
        Rule(Cost.FREE, rest=Arg.ANY),
    ),
}


def _integer(highest: int) -> tuple[Callable[[object], bool], str]:
    return lambda value: type(value) is int and 0 <= value <= highest, f"a constant from 0 to {highest}"


def _is_path(value: object) -> bool:
    return isinstance(value, str) and not any(part.startswith("_") for part in value.replace(",", ".").split("."))


CONSTANTS: Mapping[Arg, tuple[Callable[[object], bool], str]] = {
    Arg.FLAG: (lambda value: isinstance(value, bool), "true or false"),
    # 16 characters: what may stand between, or in place of, others without growing a text much
    Arg.TEXT: (lambda value: isinstance(value, str) and len(value) <= 16, "a constant of 16 characters at most"),
    Arg.WIDTH: _integer(32),  # spaces of indentation
    Arg.PLACES: _integer(15),  # decimal places that a float holds
    Arg.LENGTH: _integer(1_000_000),  # characters; a length only ever shortens
    Arg.FIELD: (lambda value: type(value) is int or _is_path(value), "a constant path without leading underscores"),
    Arg.FILTER: (lambda value: value in ITEM_FILTERS, "one of " + ", ".join(sorted(ITEM_FILTERS))),
    Arg.TEST: (lambda value: value in TESTS, "one of " + ", ".join(sorted(TESTS))),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one profile admits, and how much of it."""

    nodes: frozenset[type[nodes.Node]]
    filters: Mapping[str, Rule]
    globals: frozenset[str]
    loop_depth: int
    expression_nodes: int
    expression_filters: int
    amplifiers: int  # in one expression, so that the factor stays a constant


_STRICT_NODES = frozenset[type[nodes.Node]]({
    nodes.Add, nodes.And, nodes.Compare, nodes.Concat, nodes.CondExpr, nodes.Const, nodes.Dict, nodes.Div, nodes.Filter,
    nodes.FloorDiv, nodes.For, nodes.Getattr, nodes.Getitem, nodes.If, nodes.Keyword, nodes.List, nodes.Name, nodes.Neg,
    nodes.Not, nodes.Operand, nodes.Or, nodes.Output, nodes.Pair, nodes.Pos, nodes.Slice, nodes.Sub, nodes.Template,
    nodes.TemplateData, nodes.Test, nodes.Tuple,
})  # fmt: skip

SHAPES: Mapping[Profile, Shape] = {
    Profile.STRICT: Shape(
        nodes=_STRICT_NODES,
        filters=STRICT_FILTERS,
        globals=frozenset(),
        loop_depth=2,
        expression_nodes=64,
        expression_filters=8,
        amplifiers=1,
    ),
    Profile.FULL: Shape(
        nodes=_STRICT_NODES
        | {nodes.Assign, nodes.AssignBlock, nodes.Call, nodes.CallBlock, nodes.FilterBlock, nodes.Macro, nodes.Mod}
        | {nodes.Mul, nodes.NSRef, nodes.Pow, nodes.With},
        filters=FULL_FILTERS,
        globals=frozenset({"cycler", "dict", "joiner", "namespace", "range"}),
        loop_depth=8,
        expression_nodes=256,
        expression_filters=16,
        amplifiers=4,
    ),
}

# What a node is called in a message; the others go by their class's name.
CONSTRUCTS: Mapping[type[nodes.Node], str] = {
    nodes.Assign: "`set`",
    nodes.AssignBlock: "`set`",
    nodes.Block: "`block`",
    nodes.Call: "a call",
    nodes.CallBlock: "`call`",
    nodes.Extends: "`extends`",
    nodes.FilterBlock: "a `filter` block",
    nodes.FromImport: "`from … import`",
    nodes.Import: "`import`",
    nodes.Include: "`include`",
    nodes.Macro: "`macro`",
    nodes.Mod: "the operator `%`",
    nodes.Mul: "the operator `*`",
    nodes.Pow: "the operator `**`",
    nodes.Scope: "`autoescape`",
    nodes.With: "`with`",
}
ADMITTED: Mapping[Profile, str] = {
    Profile.STRICT: "admitted are output, if, for, comparisons, + - / // ~, filters and tests; profile `full` has more",
    Profile.FULL: "what loads other templates, blocks and autoescape tags stay out",
}

# Names that stand for something of Jinja's own rather than for a value.
RESERVED = frozenset({"caller", "kwargs", "self", "super", "varargs"})

# The deepest and the largest template that is admitted: compiling it takes less than a second.
MAX_DEPTH = 16  # blocks in blocks; Python compiles 20
MAX_TOKENS = 16_000  # of the lexer; a long prompt has hundreds
MAX_NODES = 4_000  # of the syntax tree
MAX_CONSTANT = 4_096  # characters of one constant inside an expression; the template's own text is not one
MAX_CONSTANTS = 16_384  # characters of all of them
MAX_INTEGER_BITS = 64  # JSON's usual range
