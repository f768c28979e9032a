"""What one rendering may use: time, iterations and text, and the failures that say which of them ran out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from jinja2 import Undefined as JinjaUndefined

Reason = Literal["undefined", "output_limit", "time_limit", "error"]


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one template, and one rendering of it, may use."""

    max_template_bytes: int = 262_144  # 256 KiB of UTF-8: a hundred long prompts
    max_output_bytes: int = 4_194_304  # 4 MiB of UTF-8: beyond any model's context
    max_iterations: int = 100_000  # of all loops together
    max_seconds: float = 0.1  # the event loop stands still meanwhile


class RenderFailed(Exception):
    """Say why a rendering gave no prompt; values are never quoted."""

    reason: ClassVar[Reason] = "error"


class UndefinedNames(RenderFailed):
    """Name what the template reads and nothing provides: sorted; empty where that has no name in the template."""

    reason = "undefined"

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = tuple(sorted(missing))
        super().__init__(f"undefined: {', '.join(self.missing) or 'a computed value'}")


class OutputTooLarge(RenderFailed):
    """The output, or a text on its way there, is larger than is allowed."""

    reason = "output_limit"


class RenderTooSlow(RenderFailed):
    """The iterations or the time that a rendering may take are used up."""

    reason = "time_limit"


_PRINTABLE = (float, type(None), JinjaUndefined)
_ITEM_UNITS = 16  # what an item of a list weighs beside its text: a JSON list of 1 MiB holds half a million
_PASSES = 16  # how often a text of the largest size may be handled on its way to the output


def weight(value: object, room: int, *, printable: bool = False) -> int:
    """Return what handling a value costs: its characters, and a constant for each item in it, however deep.

    Raises OutputTooLarge beyond `room`. Raises RenderFailed for what has no text of its own (a method, an iterator) if
    it must be printable: Python would print its address.
    """
    pending, units = [value], 0
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            units += len(item)
        elif isinstance(item, dict | list | tuple):
            units += len(item) * _ITEM_UNITS
            pending += item
            if isinstance(item, dict):
                pending += item.values()
        elif isinstance(item, int):
            units += item.bit_length() >> 3
        elif printable and not isinstance(item, _PRINTABLE):
            raise RenderFailed(f"a value of type {type(item).__name__} cannot be printed")
        if units > room:
            raise OutputTooLarge("more text would be made than the limit of the output allows")
    return units


class Budget:
    """What is left of the limits during one rendering."""

    __slots__ = ("_clock", "_deadline", "_iterations", "_limits", "_units")

    def __init__(self, limits: RenderLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.max_seconds
        self._iterations = limits.max_iterations
        self._units = limits.max_output_bytes * _PASSES

    def tick(self) -> None:
        """Raise RenderTooSlow when the time is over."""
        if self._clock() > self._deadline:
            raise RenderTooSlow(f"rendering took longer than {self._limits.max_seconds} s")

    def iterate(self, count: int = 1) -> None:
        """Take iterations."""
        self._iterations -= count
        if self._iterations < 0:
            raise RenderTooSlow(f"rendering took more than {self._limits.max_iterations} iterations")
        self.tick()

    def weigh(self, value: object, *, printable: bool = False) -> None:
        """Take what handling a value costs; one value may not be larger than the output. See `weight`."""
        room = min(self._units, self._limits.max_output_bytes)
        self._units -= weight(value, room, printable=printable)
        self.tick()
