"""Read your writes: which entries a change of settings made void (contract §4 promise 8).

Writes are counted, not timed: a fetch notes how many had passed when it began, and what it brings is void for a user
with a later write. So it does not matter who is faster, nor whether the answer to the write was lost. Invalidations,
and writes that passed through another sidecar of the group, count like one of our own.
"""

import itertools
from collections import Counter, OrderedDict
from typing import NamedTuple

from sidecar.service.ports import Clock

MAX_MARKS = 100_000
"""Users whose last write is remembered one by one (about 150 bytes each); beyond, the oldest are forgotten safely."""


class _Mark(NamedTuple):
    epoch: int
    lost_until: float
    """Until then a write of ours whose answer was lost may still take effect."""
    unsettled_until: float
    """The same, writes elsewhere included."""


class Writes:
    """The order of writes and fetches; `None` stands for what belongs to all users."""

    def __init__(self, clock: Clock, *, max_marks: int = MAX_MARKS) -> None:
        self._clock = clock
        self._max_marks = max_marks
        self._epoch = 0
        self._floor = 0  # what was asked for before this is void, whoever's it is
        self._floor_unsettled_until = 0.0
        self._flight_floor = 0  # what was asked for before this is void unless it has landed
        self._doubted_before = 0
        self._doubted_until = 0.0
        self._marks: OrderedDict[int | None, _Mark] = OrderedDict()
        self._open: Counter[int | None] = Counter()
        self._elsewhere: dict[int | None, dict[str, float]] = {}
        self._solitary = itertools.count(1)

    def began(self, owner: int | None) -> None:
        """Note a write that is on its way: what is fetched meanwhile may be old by the time it is read again."""
        self._open[owner] += 1

    def is_settled(self, owner: int | None) -> bool:
        """Return whether no write of the owner is on its way, so that what is kept would outlive this process."""
        return not self._open[owner]

    def gave_up(self, owner: int | None) -> None:
        """Note that a write never left."""
        self._open[owner] -= 1
        if self._open[owner] <= 0:
            del self._open[owner]

    def ended(self, owner: int | None, *, unsettled_for: float = 0.0) -> None:
        """Note a write that may have changed what is kept.

        `unsettled_for`: seconds for which it may still take effect, where its answer was lost.
        """
        if owner in self._open:
            self.gave_up(owner)
        self.void(owner, unsettled_for=unsettled_for)

    def void(self, owner: int | None, *, unsettled_for: float = 0.0) -> None:
        """Make void what an owner has."""
        before = self._marks.get(owner)
        still = before.lost_until if before is not None else self._floor_unsettled_until
        self._mark(owner, max(self._clock() + unsettled_for, still) if unsettled_for else still)

    def began_elsewhere(self, owner: int | None, write: str, *, settles_in: float) -> None:
        """Note a write that passes through another sidecar; without word of its end it is over in `settles_in` s."""
        self._elsewhere.setdefault(owner, {})[write] = self._clock() + settles_in
        self.void(owner)

    def ended_elsewhere(self, owner: int | None, write: str) -> None:
        """Note the end of a write that passed through another sidecar, or an invalidation there."""
        self._elsewhere.get(owner, {}).pop(write, None)
        self.void(owner)

    def settled(self, owner: int | None, write: str) -> None:
        """Note that a write of our own is over, of which the group may have told us as of a stranger's."""
        self._elsewhere.get(owner, {}).pop(write, None)
        mark = self._marks.get(owner)
        if mark is not None:
            until = max(mark.lost_until, *self._elsewhere.get(owner, {}).values(), 0.0)
            self._marks[owner] = mark._replace(unsettled_until=until)

    def void_all(self) -> None:
        """Make void what everybody has."""
        self._epoch += 1
        self._floor = self._flight_floor = self._epoch
        unsettled = {owner: mark for owner, mark in self._marks.items() if self._is_unsettled(mark)}
        self._marks = OrderedDict((owner, mark._replace(epoch=self._epoch)) for owner, mark in unsettled.items())

    def void_flights(self) -> None:
        """Make void what is being fetched, but not what has landed."""
        self._epoch += 1
        self._flight_floor = self._epoch

    def doubt(self, seconds: float) -> None:
        """Trust nothing from before now for a while: a write elsewhere may be heard of only then."""
        self.void_flights()
        self._doubted_before = self._epoch
        self._doubted_until = self._clock() + seconds

    def doubted_for(self) -> float:
        """Return for how many seconds more what is from before the last gap is not trusted."""
        return max(0.0, self._doubted_until - self._clock())

    def is_void(self, owner: int | None, epoch: int) -> bool:
        """Return whether what was asked for at this epoch may have been overtaken by a write."""
        mark = self._marks.get(owner)
        if epoch < (self._floor if mark is None else mark.epoch) or self._is_unsettled(mark):
            return True
        return epoch < self._doubted_before and self._is_doubting()

    def may_land(self, owner: int | None, ticket: int | None) -> bool:
        """Return whether what was asked for with this ticket may be kept, now that it is here."""
        return ticket is not None and ticket >= self._flight_floor and not self.is_void(owner, ticket)

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
        return max(self._flight_floor, mark.epoch if mark is not None else self._floor)

    def _mark(self, owner: int | None, lost_until: float) -> None:
        self._epoch += 1
        self._marks.pop(owner, None)
        now = self._clock()
        elsewhere = {write: until for write, until in self._elsewhere.pop(owner, {}).items() if until > now}
        if elsewhere:
            self._elsewhere[owner] = elsewhere
        self._marks[owner] = _Mark(self._epoch, lost_until, max(lost_until, *elsewhere.values(), 0.0))
        if len(self._marks) > self._max_marks:
            forgotten, oldest = self._marks.popitem(last=False)
            self._elsewhere.pop(forgotten, None)
            self._floor = max(self._floor, oldest.epoch)
            self._floor_unsettled_until = max(self._floor_unsettled_until, oldest.unsettled_until)

    def _is_unsettled(self, mark: _Mark | None) -> bool:
        until = mark.unsettled_until if mark is not None else self._floor_unsettled_until
        return until > 0.0 and self._clock() < until

    def _is_doubting(self) -> bool:
        if self._clock() < self._doubted_until:
            return True
        self._doubted_before = 0
        return False
