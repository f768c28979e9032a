"""What entries have in common, kept once and counted once: by content, as long as an entry uses it."""

from collections.abc import Iterable
from typing import Any, TypeVar

from sidecar.cache.sizes import shared_bytes

T = TypeVar("T")


class Shared:
    """Values by content, with the number of their uses; what nobody else has costs one place in a table.

    Nothing outlives its last use, so values that never come twice cannot make it grow.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._more: dict[Any, int] = {}  # uses beyond the first
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def take(self, value: T) -> T:
        """Return the one that is kept of all that are equal to this, and count its use."""
        known: T | None = self._known.get(value)
        if known is None:
            self._known[value] = value
            self.bytes += shared_bytes(value)
            return value
        self._more[known] = self._more.get(known, 0) + 1
        return known

    def give_back(self, value: Any) -> bool:
        """Count one use less; return whether it was the last."""
        more = self._more.get(value, 0)
        if more > 1:
            self._more[value] = more - 1
        elif more:
            del self._more[value]
        else:
            del self._known[value]
            self.bytes -= shared_bytes(value)
            return True
        return False

    def take_texts(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Take texts together, and each by itself for those who have only some of them."""
        together = tuple(texts)
        return self.take(together if together in self._known else tuple(map(self.take, together)))

    def give_back_texts(self, texts: tuple[str, ...]) -> None:
        """Count one use less of all of them."""
        if self.give_back(texts):
            for text in texts:
                self.give_back(text)
