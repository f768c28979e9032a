"""Writes that pass through: whose settings they may change, and when that is over (contract §4 promise 8)."""

from collections.abc import Awaitable, Callable

from sidecar.core.events import Written
from sidecar.core.routes import written_user
from sidecar.service.forwarding import WriteEnd
from sidecar.service.ports import Observer
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
        forget: Callable[[int | None], Awaitable[None]] | None = None,
    ) -> None:
        """`settle_seconds`: how long a write whose answer was lost may still take effect.

        `forget`: forgets for good what is kept of an owner outside this process.
        """
        self._writes = writes
        self._forget = forget
        self._settle_seconds = settle_seconds
        self._observe = observer

    def began(self, method: str, target: str) -> Callable[[WriteEnd], None]:
        """Return what is told how the write ended, once; what belongs to no user belongs to all."""
        if method == "POST" and target.partition("?")[0] in ASKED_BY_POST:
            return _changes_nothing
        owner = written_user(target)
        self._writes.began(owner)

        def ended(end: WriteEnd) -> None:
            if end is WriteEnd.NOT_SENT:
                self._writes.gave_up(owner)
                return
            self._writes.ended(owner, unsettled_for=self._settle_seconds() if end is WriteEnd.LOST else 0.0)
            if owner is not None:
                self._observe(Written(end.value))

        return ended

    async def prepare(self, method: str, target: str) -> None:
        """Forget for good what a write may change, before it is sent: this process may not live to see its end."""
        if self._forget is not None and not (method == "POST" and target.partition("?")[0] in ASKED_BY_POST):
            await self._forget(written_user(target))


def _changes_nothing(_: WriteEnd) -> None:
    """Hear of the end of what was no write."""
