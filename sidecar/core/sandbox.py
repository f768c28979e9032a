"""The environments that templates are compiled in.

STRICT bounds everything: what a template may do is a short list, each value grows by a constant factor at most, and
each loop, walk and text is taken from its rendering's budget first. FULL opens assignments, macros, calls and the
operators `* ** %`; there what an operation would make is estimated before it is made (`guards`). Neither can stop
Python inside one operation: a rendering can overrun its time by that of one sort, split or escape of a value that is
within the limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import filters, pass_context, tests
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner

from sidecar.core.budget import RenderFailed, RenderLimits
from sidecar.core.guards import FILTER_ESTIMATES, METHODS, OPERATORS, TEST_ESTIMATES, Operation, guarded, hold
from sidecar.core.meters import CALL_METHOD, METERS, Counted, MeteredContext
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
        self._undefined_exception = lambda _: UndefinedUsed(name)  # type: ignore[assignment]


class _Strict(_Empty, jinja2.StrictUndefined):
    """Jinja's strict undefined, with errors that carry the name."""

    __slots__ = ()


_UNDEFINED = {Undefined.EMPTY: _Empty, Undefined.STRICT: _Strict}
_OBJECT_METHODS: Mapping[type, frozenset[str]] = {
    Cycler: frozenset({"next", "reset"}),
    LoopContext: frozenset({"changed", "cycle"}),
}


class Sandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment that holds what one profile admits, and nothing else."""

    context_class = MeteredContext

    def __init__(self, options: RenderOptions, profile: Profile, limits: RenderLimits) -> None:
        super().__init__(
            autoescape=options.autoescape,
            trim_blocks=options.trim_blocks,
            lstrip_blocks=options.lstrip_blocks,
            undefined=_UNDEFINED[options.undefined],
        )
        self._limit = limits.max_output_bytes
        shape = SHAPES[profile]
        self.globals = {name: self.globals[name] for name in shape.globals}
        self.filters = {name: self._guarded(filters.FILTERS, FILTER_ESTIMATES, name) for name in shape.filters}
        self.filters |= METERS
        self.filters |= {
            name: guarded(function, estimate, self._limit) for name, (function, estimate) in OPERATORS.items()
        }
        self.filters[CALL_METHOD] = self._call_method
        self.tests = {name: self._guarded(tests.TESTS, TEST_ESTIMATES, name) for name in TESTS}
        self.concat = self._concat  # type: ignore[assignment, method-assign] # how Jinja joins what a macro or a block made

    def _guarded(self, functions: Mapping[str, Any], estimates: Mapping[str, Any], name: str) -> Operation:
        return guarded(functions[name], estimates[name], self._limit) if name in estimates else functions[name]

    def _concat(self, parts: Sequence[str]) -> str:
        hold(sum(map(len, parts)), self._limit)
        return "".join(parts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute or item; a method is none: it could only be printed, with its address."""
        return _no_method(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item or attribute, as `getattr` does."""
        return _no_method(super().getitem(obj, argument))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a recursive loop or one of the profile's globals."""
        assert isinstance(context, MeteredContext)
        context.budget.tick()
        if isinstance(obj, LoopContext):
            args = (Counted(args[0], context.budget),)
        elif not isinstance(obj, Macro | Joiner | jinja2.Undefined) and obj not in self.globals.values():
            raise RenderFailed(f"a value of type {type(obj).__name__} cannot be called")
        return super().call(context, obj, *args, **kwargs)

    @pass_context
    def _call_method(self, context: MeteredContext, obj: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method by name, if the tables know it."""
        context.budget.tick()
        for kind, names in _OBJECT_METHODS.items():
            if isinstance(obj, kind) and name in names:
                return getattr(obj, name)(*args)
        for kind, estimates in METHODS.items():
            if isinstance(obj, kind) and name in estimates:
                hold(estimates[name](obj, *args, **kwargs), self._limit)
                return getattr(obj, name)(*args, **kwargs)
        if isinstance(obj, jinja2.Undefined):
            return getattr(obj, name)  # raises UndefinedUsed
        raise RenderFailed(f"method `{name}` of {type(obj).__name__} cannot be called")


def _no_method(value: Any) -> Any:
    if callable(value) and not isinstance(value, Macro | LoopContext | Joiner | jinja2.Undefined):
        raise RenderFailed("a method is not a value")
    return value


@lru_cache(maxsize=64)
def sandbox(options: RenderOptions, profile: Profile, limits: RenderLimits) -> Sandbox:
    """Return the one environment of these options."""
    return Sandbox(options, profile, limits)
