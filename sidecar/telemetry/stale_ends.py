"""When the cover of an outage ends, as far as it was used of late."""

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""An end is told for one to two of these after it was last met: longer than the interval of any usual scrape."""


@dataclass(slots=True)
class _Ends:
    window: int
    soonest: float
    before: float
    """The soonest of the window before."""


class StaleEnds:
    """The soonest end of use among the stale answers of the last minute or two, by node; any number may scrape it."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Ends] = {}

    def note(self, node: str, ends_at: float, now: float) -> None:
        """Note that stale data was served which may be used until `ends_at`; both instants of one clock."""
        ends = self._rolled(node, now)
        if ends is None:
            self._nodes[node] = _Ends(_window(now), ends_at, math.inf)
        else:
            ends.soonest = min(ends.soonest, ends_at)

    def forget(self, node: str) -> None:
        """Note that the upstream answered for a node: whoever still needs cover will say so."""
        self._nodes.pop(node, None)

    def left(self, now: float) -> dict[str, float]:
        """Return the seconds that are left, by node; none for a node that is not served stale any more."""
        left = {}
        for node in [*self._nodes]:
            ends = self._rolled(node, now)
            soonest = math.inf if ends is None else min(ends.soonest, ends.before)
            if soonest < math.inf:
                left[node] = max(0.0, soonest - now)
        return left

    def _rolled(self, node: str, now: float) -> _Ends | None:
        ends = self._nodes.get(node)
        if ends is None:
            return None
        passed = _window(now) - ends.window
        if passed > 1:
            del self._nodes[node]
            return None
        if passed == 1:
            ends.window, ends.before, ends.soonest = ends.window + 1, ends.soonest, math.inf
        return ends


def _window(now: float) -> int:
    return int(now // WINDOW_SECONDS)
