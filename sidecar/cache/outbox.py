"""Own changes: those that Redis does not know of yet, and those told lately, to be said again where Redis lost them."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from sidecar.service.ports import Clock

MOST_WAITING = 1_000
"""Changes that may wait; with more waiting, all is made void instead."""
MOST_REMEMBERED = 10_000
"""Changes that were told, to be said again."""


class Message(msgspec.Struct, array_like=True):
    """One change on its way to the others."""

    number: int
    """Of its sender's, so that what is said again is not heard again."""
    change: Change
    era: bytes
    """The new era of what a `NodeVoid` or `AllVoid` made void; else empty."""


class Told(NamedTuple):
    """A message, and when it was first to be told."""

    message: Message
    at: float


class Outbox:
    """What waits to be told, the latest word on each matter only; and what was told in the last `remember` seconds."""

    def __init__(self, owner_tag: Callable[[int | None], bytes], remember: float, clock: Clock) -> None:
        """`owner_tag`: how the store's keys name a user."""
        self._owner_tag = owner_tag
        self._remember = remember
        self._clock = clock
        self._numbers = itertools.count(1)
        self._waiting: OrderedDict[tuple[object, ...], Told] = OrderedDict()
        self._told: OrderedDict[tuple[object, ...], Told] = OrderedDict()
        self._owners: set[bytes] = set()

    def __len__(self) -> int:
        """Return how many changes wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether more changes wait than shall be told one by one."""
        return len(self._waiting) > MOST_WAITING

    def concerns(self, owner: bytes) -> bool:
        """Return whether a change of this user's waits."""
        return owner in self._owners

    def add(self, change: Change, era: bytes = b"") -> None:
        """Have a change wait, instead of what waited about the same matter."""
        self._put(Told(Message(next(self._numbers), change, era), self._clock()))

    def clear(self) -> None:
        """Let nothing wait: what comes next says more."""
        self._waiting.clear()
        self._owners.clear()

    def batch(self) -> list[Told]:
        """Return what waits, the oldest first."""
        return list(self._waiting.values())

    def note_told(self, batch: Iterable[Told]) -> None:
        """Move what Redis knows now from the waiting to the told; what took its place meanwhile goes on waiting."""
        for told in batch:
            key = _matter(told.message.change)
            if self._waiting.get(key) is told:
                del self._waiting[key]
            self._told.pop(key, None)
            self._told[key] = told
        self._owners = {
            self._owner_tag(told.message.change.owner)
            for told in self._waiting.values()
            if isinstance(told.message.change, WriteBegan | WriteEnded)
        }
        self._forget_old()

    def say_again(self, seconds: float) -> list[Change]:
        """Have wait again what was told in the last `seconds`; return it."""
        self._forget_old()
        since = self._clock() - seconds
        again = [told for key, told in self._told.items() if told.at >= since and key not in self._waiting]
        for told in again:
            self._put(told)
        return [told.message.change for told in again]

    def eras(self) -> Iterator[tuple[NodeVoid | AllVoid, bytes]]:
        """Yield the new eras that Redis does not know of yet."""
        for told in self._waiting.values():
            if isinstance(told.message.change, NodeVoid | AllVoid):
                yield told.message.change, told.message.era

    def _put(self, told: Told) -> None:
        change = told.message.change
        self._waiting.pop(_matter(change), None)
        self._waiting[_matter(change)] = told
        if isinstance(change, WriteBegan | WriteEnded):
            self._owners.add(self._owner_tag(change.owner))

    def _forget_old(self) -> None:
        oldest = self._clock() - self._remember
        while self._told and (len(self._told) > MOST_REMEMBERED or next(iter(self._told.values())).at < oldest):
            self._told.popitem(last=False)


def _matter(change: Change) -> tuple[object, ...]:
    """Return what a later change takes the place of: the end of a write that of its beginning."""
    match change:
        case WriteBegan() | WriteEnded():
            return ("write", change.owner, change.write)
        case NodeVoid():
            return ("node", change.node)
        case AllVoid():
            return ("all",)
