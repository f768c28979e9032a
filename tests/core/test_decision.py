"""The stale table: each row one test, then what a request's Cache-Control changes."""

import pytest

from sidecar.core.decision import STALE_TABLE, Action, Directives, after_failure, decide
from sidecar.core.errors import FAILURE_TABLE, FailureKind
from sidecar.core.freshness import State
from sidecar.core.policy import Strategy

S, R, F, B, X, N = (
    Action.SERVE,
    Action.SERVE_AND_REVALIDATE,
    Action.FETCH,
    Action.FETCH_BRIEFLY,
    Action.FAIL_CIRCUIT_OPEN,
    Action.FAIL_NOT_CACHED,
)
CACHE, NETWORK, ONLY = Strategy.CACHE_FIRST, Strategy.NETWORK_FIRST, Strategy.NETWORK_ONLY

ROWS = [
    (CACHE, State.FRESH, S, S),
    (CACHE, State.REVALIDATABLE, R, S),
    (CACHE, State.USABLE, B, S),
    (CACHE, State.ABSENT, F, X),
    (NETWORK, State.FRESH, B, S),
    (NETWORK, State.REVALIDATABLE, B, S),
    (NETWORK, State.USABLE, B, S),
    (NETWORK, State.ABSENT, F, X),
    (ONLY, State.FRESH, F, X),
    (ONLY, State.REVALIDATABLE, F, X),
    (ONLY, State.USABLE, F, X),
    (ONLY, State.ABSENT, F, X),
]


def test_every_row_of_the_table_is_tested() -> None:
    assert {(strategy, state) for strategy, rows in STALE_TABLE.items() for state in rows} == {row[:2] for row in ROWS}


@pytest.mark.parametrize(("strategy", "state", "closed", "opened"), ROWS, ids=[f"{r[0]}: {r[1]}" for r in ROWS])
def test_row_of_the_stale_table(strategy: Strategy, state: State, closed: Action, opened: Action) -> None:
    assert decide(strategy, state, circuit_open=False) is closed
    assert decide(strategy, state, circuit_open=True) is opened


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("strategy", [CACHE, NETWORK, ONLY])
def test_after_a_failure_stale_serves_only_what_is_no_answer(
    strategy: Strategy, state: State, kind: FailureKind
) -> None:
    allowed = FAILURE_TABLE[kind].stale and state is not State.ABSENT and strategy is not ONLY
    assert after_failure(strategy, state, kind) is allowed


@pytest.mark.parametrize("state", State)
def test_no_cache_always_asks_the_upstream_and_never_serves_instead(state: State) -> None:
    no_cache = Directives(no_cache=True)
    assert decide(CACHE, state, circuit_open=False, directives=no_cache) is F
    assert decide(CACHE, state, circuit_open=True, directives=no_cache) is X
    assert not after_failure(CACHE, state, FailureKind.SERVER_ERROR, directives=no_cache)


@pytest.mark.parametrize(
    ("strategy", "state", "circuit_open", "action"),
    [
        (CACHE, State.FRESH, False, S),
        (CACHE, State.REVALIDATABLE, False, S),
        (CACHE, State.USABLE, False, N),
        (CACHE, State.USABLE, True, S),
        (CACHE, State.ABSENT, False, N),
        (CACHE, State.ABSENT, True, N),
        (NETWORK, State.FRESH, False, N),
        (ONLY, State.FRESH, False, N),
    ],
)
def test_only_if_cached_serves_what_the_policy_allows_unasked(
    strategy: Strategy, state: State, circuit_open: bool, action: Action
) -> None:
    assert decide(strategy, state, circuit_open=circuit_open, directives=Directives(only_if_cached=True)) is action


def test_only_if_cached_with_no_cache_cannot_be_had() -> None:
    assert (
        decide(CACHE, State.FRESH, circuit_open=False, directives=Directives(no_cache=True, only_if_cached=True)) is N
    )


@pytest.mark.parametrize(
    ("strategy", "state", "staleness", "action"),
    [
        pytest.param(CACHE, State.FRESH, -5, S, id="fresh stays fresh"),
        pytest.param(CACHE, State.REVALIDATABLE, 10, R, id="stale by just as much: served"),
        pytest.param(CACHE, State.REVALIDATABLE, 10.1, F, id="staler than accepted: as if there were none"),
        pytest.param(CACHE, State.USABLE, 10, S, id="accepted staleness needs no fetch"),
        pytest.param(CACHE, State.USABLE, 10.1, F, id="not accepted"),
        pytest.param(NETWORK, State.USABLE, 10, B, id="network-first asks all the same"),
        pytest.param(CACHE, State.ABSENT, 10, F, id="never past the policy"),
    ],
)
def test_max_stale_bounds_and_permits(strategy: Strategy, state: State, staleness: float, action: Action) -> None:
    directives = Directives(max_stale=10)
    assert decide(strategy, state, circuit_open=False, directives=directives, staleness=staleness) is action


def test_max_stale_bounds_what_serves_after_a_failure() -> None:
    directives = Directives(max_stale=10)
    assert after_failure(CACHE, State.USABLE, FailureKind.RESET, directives=directives, staleness=10)
    assert not after_failure(CACHE, State.USABLE, FailureKind.RESET, directives=directives, staleness=10.1)
