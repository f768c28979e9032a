"""Writes that pass through: whose settings they may change, and when that is over (contract §4 promise 8)."""

import secrets
from collections.abc import Awaitable, Callable

from sidecar.core.changes import WriteBegan, WriteEnded
from sidecar.core.events import Written
from sidecar.core.routes import written_user
from sidecar.service.forwarding import Write, WriteEnd
from sidecar.service.ports import Group, Observer
from sidecar.service.writes import Writes

ASKED_BY_POST = frozenset({"/api/v1/generate-prompt", "/api/v1/prompt-data", "/api/v1/prompt-data/batch"})
"""Questions that come as a POST and change nothing (contract §2)."""


class WriteWatch:
    """Told by the reverse proxy of every request that may change something."""

    def __init__(
        self,
        writes: Writes,
        *,
        settle_seconds: Callable[[], float],
        observer: Observer,
        forget: Callable[[int | None], Awaitable[object]] | None = None,
        group: Group | None = None,
    ) -> None:
        """`settle_seconds`: how long a write whose answer was lost may still take effect.

        `forget`: forgets for good what is kept of an owner outside this process; `group`: who else must know.
        """
        self.writes = writes
        self.forget = forget
        self.group = group
        self.settle_seconds = settle_seconds
        self.observe = observer

    def began(self, method: str, target: str) -> Write | None:
        """Return what is told how the write ended, once; what belongs to no user belongs to all."""
        if method == "POST" and target.partition("?")[0] in ASKED_BY_POST:
            return None
        return _Write(self, written_user(target))


class _Write:
    """One write on its way."""

    def __init__(self, watch: WriteWatch, owner: int | None) -> None:
        self._watch = watch
        self._owner = owner
        self._number = secrets.token_hex(8)
        watch.writes.began(owner)

    async def prepare(self) -> None:
        """Forget for good what the write may change, before it is sent: this process may not live to see its end."""
        watch = self._watch
        if watch.forget is not None:
            await watch.forget(self._owner)
        if watch.group is not None:
            await watch.group.tell(WriteBegan(self._owner, self._number, watch.settle_seconds()))

    def __call__(self, end: WriteEnd) -> None:
        """Make void what the write changed."""
        watch, owner = self._watch, self._owner
        lost = end is WriteEnd.LOST
        if watch.group is not None:
            again = WriteBegan(owner, self._number, watch.settle_seconds())  # it may still take effect, so much later
            watch.group.tell_soon(again if lost else WriteEnded(owner, self._number))
        if not lost:
            watch.writes.settled(owner, self._number)  # Redis may have shown it to us as one of another's
        if end is WriteEnd.NOT_SENT:
            watch.writes.gave_up(owner)
            return
        watch.writes.ended(owner, unsettled_for=watch.settle_seconds() if lost else 0.0)
        if owner is not None:
            watch.observe(Written(end.value))
