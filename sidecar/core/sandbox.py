"""The environments that templates are compiled in.

`STRICT` bounds everything: what a template may do is a short list, growth is a constant factor of the values given, and
each loop, walk and text is taken from the budget of its rendering first. `FULL` opens assignments, macros, calls and the
operators `* ** %`; there each operation's result is estimated before it is made (`guards`). What it cannot do is to stop
Python inside one operation, so a rendering can overrun its time by that of one sort, split or escape of a text or list
within the limits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import filters, tests
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from sidecar.core.budget import Budget, OutputTooLarge, RenderFailed, RenderLimits
from sidecar.core.guards import FILTER_ESTIMATES, METHODS, OPERATORS, TEST_ESTIMATES, guarded
from sidecar.core.meters import METERS, Counted
from sidecar.core.template_rules import SHAPES, TESTS, Profile


class Undefined(StrEnum):
    """What becomes of a name that nothing provides."""

    STRICT = "strict"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How the upstream's generation renders (contract §2)."""

    autoescape: bool = True
    trim_blocks: bool = True
    lstrip_blocks: bool = True
    undefined: Undefined = Undefined.STRICT


class UndefinedUsed(jinja2.UndefinedError):
    """An undefined value was used; `name` is what was looked up, which may be a value of the request."""

    def __init__(self, name: object) -> None:
        self.name = name
        super().__init__("an undefined value was used")


class _Empty(jinja2.Undefined):
    """Jinja's undefined, with errors that carry the name."""

    __slots__ = ()

    def __init__(self, hint: str | None = None, obj: Any = None, name: str | None = None, exc: Any = None) -> None:
        del hint, obj, exc
        super().__init__(name=name)
        self._undefined_exception = lambda _: UndefinedUsed(name)  # type: ignore[assignment, return-value]


class _Strict(_Empty, jinja2.StrictUndefined):
    """Jinja's strict undefined, with errors that carry the name."""

    __slots__ = ()


_UNDEFINED = {Undefined.EMPTY: _Empty, Undefined.STRICT: _Strict}
_CALLABLES = (Macro, Joiner, LoopContext)
_OBJECT_METHODS: dict[type, frozenset[str]] = {
    LoopContext: frozenset({"changed", "cycle"}),
    Cycler: frozenset({"next", "reset"}),
}


class MeteredContext(Context):
    """A template's variables during one rendering, and that rendering's budget."""

    budget: Budget


class Sandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment that holds what one profile admits, and nothing else."""

    context_class = MeteredContext
