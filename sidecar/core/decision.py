"""decide() before the fetch, after_failure() after it: the stale table (contract §3 to §5)."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from sidecar.core.errors import FAILURE_TABLE, FailureKind
from sidecar.core.freshness import State
from sidecar.core.policy import Strategy


class Action(StrEnum):
    """What to do with a request."""

    SERVE = "serve"
    SERVE_AND_REVALIDATE = "serve, and revalidate behind it"
    FETCH = "fetch"
    FETCH_BRIEFLY = "fetch, for network_timeout at most, then serve stale"
    FAIL_CIRCUIT_OPEN = "fail: 503 and Retry-After"
    FAIL_NOT_CACHED = "fail: 504, only-if-cached"


class Directives(NamedTuple):
    """What a request's Cache-Control asks for (RFC 9111 §5.2.1)."""

    no_cache: bool = False
    only_if_cached: bool = False
    max_stale: float | None = None
    """Seconds past freshness that the client accepts; None: as the policy says."""


NO_DIRECTIVES = Directives()


class Row(NamedTuple):
    """Actions for one state, by the circuit."""

    closed: Action
    open: Action
    """Open, or half-open with the trial call taken."""


# Each row is one test. `after a failure` is the same for all: see after_failure().
STALE_TABLE: Mapping[Strategy, Mapping[State, Row]] = MappingProxyType(
    {
        Strategy.CACHE_FIRST: MappingProxyType(
            {
                State.FRESH: Row(Action.SERVE, Action.SERVE),
                State.REVALIDATABLE: Row(Action.SERVE_AND_REVALIDATE, Action.SERVE),
                State.USABLE: Row(Action.FETCH_BRIEFLY, Action.SERVE),
                State.ABSENT: Row(Action.FETCH, Action.FAIL_CIRCUIT_OPEN),
            }
        ),
        Strategy.NETWORK_FIRST: MappingProxyType(
            {
                State.FRESH: Row(Action.FETCH_BRIEFLY, Action.SERVE),
                State.REVALIDATABLE: Row(Action.FETCH_BRIEFLY, Action.SERVE),
                State.USABLE: Row(Action.FETCH_BRIEFLY, Action.SERVE),
                State.ABSENT: Row(Action.FETCH, Action.FAIL_CIRCUIT_OPEN),
            }
        ),
        Strategy.NETWORK_ONLY: MappingProxyType(
            {state: Row(Action.FETCH, Action.FAIL_CIRCUIT_OPEN) for state in State},
        ),
    }
)


def effective_state(state: State, staleness: float, directives: Directives) -> State:
    """Return the state as the client sees it: an entry that is staler than its `max-stale` is none.

    `staleness`: seconds since freshness ended (RFC 9111 §5.2.1.2).
    """
    if directives.max_stale is not None and state is not State.FRESH and staleness > directives.max_stale:
        return State.ABSENT
    return state


def decide(
    strategy: Strategy,
    state: State,
    *,
    circuit_open: bool,
    directives: Directives = NO_DIRECTIVES,
    staleness: float = 0.0,
) -> Action:
    """Return what to do before anything was asked."""
    if directives.no_cache:
        strategy = Strategy.NETWORK_ONLY
    state = effective_state(state, staleness, directives)
    row = STALE_TABLE[strategy][state]
    action = row.open if circuit_open else row.closed
    if action is Action.FETCH_BRIEFLY and strategy is Strategy.CACHE_FIRST and directives.max_stale is not None:
        action = Action.SERVE  # the client said that this much staleness will do
    if directives.only_if_cached:
        return Action.SERVE if action in {Action.SERVE, Action.SERVE_AND_REVALIDATE} else Action.FAIL_NOT_CACHED
    return action


def after_failure(
    strategy: Strategy,
    state: State,
    kind: FailureKind,
    *,
    directives: Directives = NO_DIRECTIVES,
    staleness: float = 0.0,
) -> bool:
    """Return whether the entry may serve although the fetch failed; `state` is that of now, not of before it."""
    return (
        FAILURE_TABLE[kind].stale
        and strategy is not Strategy.NETWORK_ONLY
        and not directives.no_cache
        and effective_state(state, staleness, directives) is not State.ABSENT
    )
