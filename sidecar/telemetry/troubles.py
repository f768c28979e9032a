"""What went wrong last, part by part, and since when; and how the circuits changed."""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise

from sidecar.core.errors import FAILURE_TABLE, FailureKind, Verdict
from sidecar.core.events import (
    BreakerChanged,
    ParityChecked,
    Reloaded,
    RolledBack,
    StoreChanged,
    TemplatesLoaded,
    UpstreamAttempt,
)
from sidecar.service.ports import Clock
from sidecar.telemetry.dispatch import Handlers
from sidecar.telemetry.request_metrics import OTHER

MOST_TRANSITIONS = 100
"""Of one circuit: one that opens every minute is seen for an hour and more, an outage as long as it lasts."""
OPEN, HALF_OPEN = "open", "half-open"
FAILURES = frozenset(kind.value for kind, rule in FAILURE_TABLE.items() if rule.verdict is Verdict.FAILURE) | {
    FailureKind.TOO_MANY_REQUESTS.value,
    FailureKind.BAD_DOCUMENT.value,
}
ANSWERS = frozenset(kind.value for kind, rule in FAILURE_TABLE.items() if rule.verdict is Verdict.SUCCESS) | {
    "ok",
    "not_modified",
}
"""Other results say nothing of the upstream: it was we who gave up, or failed."""


@dataclass(slots=True)
class Trouble:
    """What was wrong with a part last; instants are the clock's."""

    error: str | None = None
    """The last one, also after it is over."""
    at: float = 0.0
    """When it was last met."""
    since: float | None = None
    """Since when it lasts; None: all is well."""

    def met(self, error: str, at: float) -> None:
        """Note an error."""
        self.error, self.at = error, at
        self.since = at if self.since is None else self.since

    def over(self) -> None:
        """Note that all is well."""
        self.since = None


@dataclass(slots=True)
class Parity:
    """What comparisons with the service's own prompts came to for a node."""

    results: Counter[str] = field(default_factory=Counter)
    set_aside_at: float | None = None


class Troubles:
    """Listens to what is not everyday life."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.upstream = Trouble()
        self.endpoint: str | None = None
        """Where the upstream failed last."""
        self.answered_at: float | None = None
        """When the upstream last answered."""
        self.store = Trouble()
        self.templates = Trouble()
        self.reload = Trouble()
        self.problems: tuple[str, ...] = ()
        """Why the settings last read were not taken."""
        self.reloaded_at: float | None = None
        self.restart: tuple[str, ...] = ()
        """The sections whose change waits for a restart."""
        self.transitions: dict[str, deque[tuple[float, str]]] = {}
        """By circuit: when it changed, and to what."""
        self.parity: dict[str, Parity] = {}

    def handlers(self) -> Handlers:
        """Return what is noted of each event."""
        return {
            UpstreamAttempt: self._attempted,
            BreakerChanged: self._breaker_changed,
            StoreChanged: lambda event: self._note(self.store, event.error),
            TemplatesLoaded: lambda event: self._note(self.templates, event.error),
            Reloaded: self._reloaded,
            ParityChecked: lambda event: self._parity_of(event.node or OTHER).results.update((event.result,)),
            RolledBack: self._rolled_back,
        }

    def _note(self, trouble: Trouble, error: str | None) -> None:
        if error is None:
            trouble.over()
        else:
            trouble.met(error, self._clock())

    def _attempted(self, event: UpstreamAttempt) -> None:
        if event.result in ANSWERS:
            self.answered_at = self._clock()
            self.upstream.over()
        elif event.result in FAILURES:
            self.upstream.met(event.result, self._clock())
            self.endpoint = event.endpoint

    def _breaker_changed(self, event: BreakerChanged) -> None:
        transitions = self.transitions.setdefault(event.breaker, deque())
        transitions.append((self._clock(), event.to))
        if len(transitions) > MOST_TRANSITIONS:
            _make_room(transitions)

    def _reloaded(self, event: Reloaded) -> None:
        self.problems = event.problems
        self._note(self.reload, "; ".join(event.problems) or None)
        if not event.problems:
            self.reloaded_at, self.restart = self._clock(), event.restart

    def _rolled_back(self, event: RolledBack) -> None:
        self._parity_of(event.node).set_aside_at = self._clock() if event.back else None

    def _parity_of(self, node: str) -> Parity:
        return self.parity.setdefault(node, Parity())


def _make_room(transitions: deque[tuple[float, str]]) -> None:
    """Forget the oldest trial call that failed: when the circuit opened matters for longer. Without any, the oldest."""
    for n, turn in enumerate(pairwise(to for _, to in transitions)):
        if turn == (HALF_OPEN, OPEN):
            del transitions[n], transitions[n]  # it was open before, and is so afterwards
            return
    transitions.popleft()
