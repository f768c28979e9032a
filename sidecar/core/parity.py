"""Comparison of the config service's own answer with ours, and when differences are too many."""

from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

Answer = tuple[str, Mapping[str, str]]
"""A prompt, and the placeholders that it used."""


class Difference(NamedTuple):
    """Where two answers part; places and lengths only, never content nor names."""

    part: Literal["prompt", "placeholders", "error"]
    """`error`: one side answers with a prompt, the other with an error."""
    position: int
    """Of a prompt the first byte (UTF-8) that differs; of placeholders how many names differ."""
    our_length: int
    """Bytes of the prompt (UTF-8), or entries."""
    their_length: int


def compare(ours: Answer, theirs: Answer) -> Difference | None:
    """Return the first difference, the prompt's before the placeholders'; the order of placeholders does not count."""
    (our_prompt, our_used), (their_prompt, their_used) = ours, theirs
    if our_prompt != their_prompt:
        # A lone surrogate is no UTF-8; a comparison must not fail on it.
        mine, other = (prompt.encode("utf-8", "surrogatepass") for prompt in (our_prompt, their_prompt))
        return Difference("prompt", _common_prefix(mine, other), len(mine), len(other))
    differing = sum(1 for name in our_used.keys() | their_used.keys() if our_used.get(name) != their_used.get(name))
    return Difference("placeholders", differing, len(our_used), len(their_used)) if differing else None


def _common_prefix(first: bytes, second: bytes) -> int:
    """Return how many bytes are the same from the start; halves the place, for prompts may be some MiB long."""
    same, within = 0, min(len(first), len(second))
    while same < within:
        middle = (same + within + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            within = middle - 1
    return same


class MismatchWindow:
    """The mismatches of one node; keeps as many instants as are too many."""

    def __init__(self, max_mismatches: int, window: float) -> None:
        """`window`: how long a mismatch counts (seconds)."""
        self._window = window
        self._at: deque[float] = deque(maxlen=max_mismatches)

    def add(self, now: float) -> bool:
        """Count one; return whether there are `max_mismatches` of them within the window."""
        self._at.append(now)
        return len(self._at) == self._at.maxlen and now - self._at[0] <= self._window
