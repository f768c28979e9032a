"""Which lines of a log are written, and which only counted: the first of a kind at once, its repeats as a sum."""

from collections.abc import Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

MOST_KINDS = 1000
"""Kinds that are watched at once: they come from closed sets and the nodes that telemetry names, so far fewer."""


class RepeatRule(NamedTuple):
    """How long repeats are counted before their sum is written; seconds."""

    window: float
    """From the first line of a kind; 0: nothing is summed up."""
    longest: float
    """Each window is twice the one before while the storm lasts, up to this."""


class Sum(NamedTuple):
    """So many repeats of a kind, and when the first and the last of them came (Unix time)."""

    repeated: int
    first_at: float
    last_at: float


class _Window(NamedTuple):
    ends_at: float
    seconds: float
    sum: Sum | None = None


class Repeats(Generic[K]):
    """What was written of late, by kind, and how often it came again; `now` is monotonic, `at` Unix time (seconds).

    Nothing is lost: what `is_first` refuses comes out of `ended` or `all` in a sum.
    """

    def __init__(self, rule: RepeatRule) -> None:
        self.rule = rule
        self._windows: dict[K, _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def has_room_for(self, kind: K) -> bool:
        """Return whether a kind is known, or can be; beyond the limit the caller has a coarser one."""
        return kind in self._windows or len(self._windows) < MOST_KINDS

    def is_first(self, kind: K, now: float, at: float) -> bool:
        """Return whether a line is written now; if not, it is counted."""
        window = self._windows.get(kind)
        if window is None:
            self._windows[kind] = _Window(now + self.rule.window, self.rule.window)
            return True
        before = window.sum
        counted = Sum(1, at, at) if before is None else Sum(before.repeated + 1, before.first_at, at)
        self._windows[kind] = _Window(window.ends_at, window.seconds, counted)
        return False

    def next_end(self) -> float | None:
        """Return when the next window ends."""
        return min((window.ends_at for window in self._windows.values()), default=None)

    def ended(self, now: float) -> Iterator[tuple[K, Sum]]:
        """Yield the sums that are due; a kind that did not come again is forgotten, and its next line is a first."""
        for kind, window in [*self._windows.items()]:
            if window.ends_at > now:
                continue
            if window.sum is None:
                del self._windows[kind]
            else:
                seconds = min(2 * window.seconds, self.rule.longest)
                self._windows[kind] = _Window(now + seconds, seconds)
                yield kind, window.sum

    def all(self) -> Iterator[tuple[K, Sum]]:
        """Yield every sum and forget every kind: it is the end, or the rule is another from now on."""
        windows, self._windows = self._windows, {}
        yield from ((kind, window.sum) for kind, window in windows.items() if window.sum is not None)
