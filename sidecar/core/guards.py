"""Estimate what an operation would make of its values, before it is allowed to."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context
from jinja2.utils import _PassArg

from sidecar.core.budget import OutputTooLarge, weight

Operation = Callable[..., Any]
Estimate = Callable[..., float]  # the operation's own arguments → what comes out, in units of `weight`; inf: refused

_MAX_INTEGER_BITS = 65_536  # operations on integers of this size take milliseconds
_MAX_WRAPPED = 16_384  # characters; textwrap takes a long word apart in quadratic time
_MAX_PLACES = 308  # of a float
_PIECE = 16  # units of a piece of text beside its characters
_STAR = re.compile(r"%(?:\([^)]*\))?[-+ #0\d.]*\*")  # a width or a precision that is an argument
_NUMBER = re.compile(r"\d+")


def _pad(text: object, width: int = 80, fill: str = " ") -> float:
    return max(len(str(text)), width) * len(fill)


def _indent(text: object, width: int | str = 4, *_: object, **__: object) -> float:
    step = len(width) if isinstance(width, str) else width
    return len(str(text)) + step * (len(str(text).splitlines()) + 1)


def _join(items: Any, d: object = "", *_: object, **__: object) -> float:
    return len(items) * len(str(d))


def _replace(text: object, old: object, new: object, *_: object, **__: object) -> float:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _wordwrap(text: str, *_: object, **__: object) -> float:
    return math.inf if len(text) > _MAX_WRAPPED else 0


def _batch(_items: object, linecount: int, *_: object, **__: object) -> float:
    return linecount * _PIECE


def _slice(_items: object, slices: int, *_: object, **__: object) -> float:
    return slices * _PIECE


def _round(_value: object, precision: int = 0, *_: object, **__: object) -> float:
    return math.inf if abs(precision) > _MAX_PLACES else 0


def _unique(items: Any, *_: object, **__: object) -> float:
    # Python hashes integers modulo 2**61 - 1: a list of multiples would take quadratic time.
    return math.inf if any(isinstance(item, int) and item.bit_length() > 64 for item in items) else 0


def _format(text: object, *args: object, **kwargs: object) -> float:
    template = str(text)
    if _STAR.search(template):
        return math.inf
    widths = sum(int(number) for number in _NUMBER.findall(template))
    return len(template) + widths + template.count("%") * weight([*args, kwargs], _LARGEST, printable=True)


def _number(value: object, *_: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError("a number is expected")  # `%` on a text would format it
    return 0


def _multiply(left: object, right: object) -> float:
    match left, right:
        case int(), int():
            return _integer(left.bit_length() + right.bit_length())
        case (int() as times, other) | (other, int() as times):
            return max(times, 0) * weight([other], _LARGEST)
        case _:
            return 0


def _power(base: object, exponent: object) -> float:
    return _integer(base.bit_length() * exponent) if isinstance(base, int) and isinstance(exponent, int) else 0


def _modulo(left: object, right: object) -> float:
    return _format(left, right) if isinstance(left, str) else 0


def _integer(bits: int) -> float:
    return math.inf if bits > _MAX_INTEGER_BITS else 0


def _tabs(text: str, tabsize: int = 8) -> float:
    return len(text) + text.count("\t") * tabsize


def _pieces(text: str, sep: str | None = None, *_: object, **__: object) -> float:
    return len(text) + _PIECE * (len(text) // 2 if sep is None else text.count(sep) + 1)


def _lines(text: str, *_: object, **__: object) -> float:
    return len(text) * _PIECE


def _glue(separator: str, items: Any) -> float:
    return len(items) * len(separator)


_LARGEST = 1 << 30  # units; past this a weight is too large for any limit

FILTER_ESTIMATES: Mapping[str, Estimate] = {
    "batch": _batch,
    "center": _pad,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "unique": _unique,
    "wordwrap": _wordwrap,
}
TEST_ESTIMATES: Mapping[str, Estimate] = dict.fromkeys(["divisibleby", "even", "odd"], _number)
OPERATORS: Mapping[str, tuple[Operation, Estimate]] = {
    "*": (operator.mul, _multiply),
    "**": (operator.pow, _power),
    "%": (operator.mod, _modulo),
}


def _same(*_: object, **__: object) -> float:
    return 0


# Not here on purpose: format and format_map (widths in widths; `%` does it), translate (a table may enlarge), encode.
METHODS: Mapping[type, Mapping[str, Estimate]] = {
    str: {
        **dict.fromkeys(
            [
                *("capitalize", "casefold", "count", "endswith", "find", "index", "lower", "lstrip", "partition"),
                *("removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rstrip", "startswith", "strip"),
                *("swapcase", "title", "upper"),
                *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
                *("isprintable", "isspace", "istitle", "isupper"),
            ],
            _same,
        ),
        **dict.fromkeys(["center", "ljust", "rjust", "zfill"], _pad),
        "expandtabs": _tabs,
        "join": _glue,
        "replace": _replace,
        "rsplit": _pieces,
        "split": _pieces,
        "splitlines": _lines,
    },
    dict: dict.fromkeys(["copy", "get", "items", "keys", "values"], _same),
    list: dict.fromkeys(["copy", "count", "index"], _same),
    tuple: dict.fromkeys(["count", "index"], _same),
}


def hold(estimated: float, limit: int) -> None:
    """Raise OutputTooLarge if the estimate is past the limit."""
    if estimated > limit:
        raise OutputTooLarge("more would be made than the limit of the output allows")


def guarded(operation: Operation, estimate: Estimate, limit: int) -> Operation:
    """Return the operation, as a filter, with its estimate put before it.

    It asks for Jinja's context, which no constant has: so it is never applied while a template compiles.
    """
    wanted = getattr(operation, "jinja_pass_arg", None)

    @pass_context
    @wraps(operation)
    def checked(context: Context, /, *args: Any, **kwargs: Any) -> Any:
        hold(estimate(*args, **kwargs), limit)
        if wanted is _PassArg.eval_context:
            args = (context.eval_ctx, *args)
        elif wanted is _PassArg.environment:
            args = (context.environment, *args)
        return operation(*args, **kwargs)

    return checked
