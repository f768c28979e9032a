"""Read your writes: which entries a change of settings made void (contract §4 promise 8).

Writes are counted, not timed: a fetch notes how many had passed when it began, and what it brings is void for a user
with a later write. So it does not matter who is faster, nor whether the answer to the write was lost.
"""

import itertools
from collections import Counter, OrderedDict
from typing import NamedTuple

from sidecar.service.ports import Clock

MAX_MARKS = 100_000
"""Users whose last write is remembered one by one (about 150 bytes each); beyond, the oldest are forgotten safely."""


class _Mark(NamedTuple):
    epoch: int
    unsettled_until: float


class Writes:
    """The order of writes and fetches; `None` stands for what belongs to all users."""

    def __init__(self, clock: Clock, *, max_marks: int = MAX_MARKS) -> None:
        self._clock = clock
        self._max_marks = max_marks
        self._epoch = 0
        self._floor = 0  # everybody's entries from before this are void: the price of a mark forgotten
        self._floor_unsettled_until = 0.0
        self._marks: OrderedDict[int | None, _Mark] = OrderedDict()
        self._open: Counter[int | None] = Counter()
        self._solitary = itertools.count(1)

    def began(self, owner: int | None) -> None:
        """Note a write that is on its way: what is fetched meanwhile may be old by the time it is read again."""
        self._open[owner] += 1

    def is_settled(self, owner: int | None) -> bool:
        """Return whether no write of the owner is on its way, so that what is kept would outlive this process."""
        return not self._open[owner]

    def gave_up(self, owner: int | None) -> None:
        """Note that a write never left."""
        self._close(owner)

    def _close(self, owner: int | None) -> None:
        self._open[owner] -= 1
        if self._open[owner] <= 0:
            del self._open[owner]

    def ended(self, owner: int | None, *, unsettled_for: float = 0.0) -> None:
        """Note a write that may have changed what is kept.

        `unsettled_for`: seconds for which it may still take effect, where its answer was lost.
        """
        if owner in self._open:
            self._close(owner)
        self._epoch += 1
        before = self._marks.pop(owner, None)
        until = self._clock() + unsettled_for if unsettled_for else 0.0
        still = before.unsettled_until if before is not None else self._floor_unsettled_until
        self._marks[owner] = _Mark(self._epoch, max(until, still))
        if len(self._marks) > self._max_marks:
            _, oldest = self._marks.popitem(last=False)
            self._floor = max(self._floor, oldest.epoch)
            self._floor_unsettled_until = max(self._floor_unsettled_until, oldest.unsettled_until)

    def is_void(self, owner: int | None, epoch: int) -> bool:
        """Return whether what was asked for at this epoch may have been overtaken by a write."""
        mark = self._marks.get(owner)
        if mark is None:
            return epoch < self._floor or self._is_unsettled(None)
        return epoch < mark.epoch or self._is_unsettled(mark)

    def ticket(self, owner: int | None) -> int | None:
        """Return the epoch of a fetch that begins now, or None where nothing that it brings may be kept."""
        return None if self._is_unsettled(self._marks.get(owner)) else self._epoch

    def lane(self, owner: int | None) -> int:
        """Return what requests must have in common to share a fetch: none from before the owner's last write.

        While a lost write may still take effect, each request has a lane of its own.
        """
        mark = self._marks.get(owner)
        if self._is_unsettled(mark):
            return -next(self._solitary)
        return mark.epoch if mark is not None else self._floor

    def _is_unsettled(self, mark: _Mark | None) -> bool:
        until = mark.unsettled_until if mark is not None else self._floor_unsettled_until
        return until > 0.0 and self._clock() < until
