"""Age and freshness: every boundary, the last second inside and the first outside."""

import pytest

from sidecar.core.freshness import State, Windows, state_of, strategy_for, windows
from sidecar.core.policy import Policy, Strategy

POLICY = Policy(stale_while_revalidate=30, stale_if_error=900)


@pytest.mark.parametrize(
    ("age", "state"),
    [
        pytest.param(0, State.FRESH, id="just confirmed"),
        pytest.param(99.999, State.FRESH, id="last instant of freshness"),
        pytest.param(100, State.REVALIDATABLE, id="first instant of stale-while-revalidate"),
        pytest.param(130, State.REVALIDATABLE, id="last instant of stale-while-revalidate"),
        pytest.param(130.001, State.USABLE, id="first instant after stale-while-revalidate"),
        pytest.param(1000, State.USABLE, id="last instant of stale-if-error"),
        pytest.param(1000.001, State.ABSENT, id="first instant past the policy"),
    ],
)
def test_state_follows_the_age_to_the_boundary(age: float, state: State) -> None:
    assert state_of(age, windows(POLICY, 100, 0)) is state


@pytest.mark.parametrize(
    ("policy", "stated", "spread", "expected"),
    [
        pytest.param(POLICY, 100.0, 0.0, Windows(100, 130, 1000), id="the upstream's ttl"),
        pytest.param(POLICY, 100.0, 1.0, Windows(110, 140, 1000), id="spread late: freshness moves, the end does not"),
        pytest.param(POLICY, 100.0, -1.0, Windows(90, 120, 1000), id="spread early"),
        pytest.param(POLICY, 10_000.0, 0.0, Windows(3600, 3630, 4500), id="capped by max_ttl"),
        pytest.param(POLICY, None, 0.0, Windows(0, 30, 900), id="no lifetime stated: stale at once"),
        pytest.param(POLICY, 0.0, 1.0, Windows(0, 30, 900), id="a lifetime of nothing"),
        pytest.param(Policy(ttl=60, stale_if_error=0), 100.0, 0.0, Windows(60, 60, 60), id="the policy's ttl wins"),
        pytest.param(
            Policy(ttl=60, max_ttl=50, stale_if_error=0), None, 0.0, Windows(50, 50, 50), id="which is capped too"
        ),
        pytest.param(
            Policy(ttl=60, stale_if_error=0),
            None,
            1.0,
            Windows(60, 60, 60),
            id="spread never outlives ttl + stale_if_error",
        ),
        pytest.param(
            Policy(ttl=60, stale_while_revalidate=300, stale_if_error=10),
            None,
            0.0,
            Windows(60, 70, 70),
            id="stale-while-revalidate ends where all use ends",
        ),
    ],
)
def test_windows_of_an_entry(policy: Policy, stated: float | None, spread: float, expected: Windows) -> None:
    assert windows(policy, stated, spread) == pytest.approx(expected)


def test_without_stale_while_revalidate_the_first_stale_instant_is_only_for_errors() -> None:
    policy = Policy(stale_while_revalidate=0, stale_if_error=10)
    assert state_of(100, windows(policy, 100, 0)) is State.USABLE


@pytest.mark.parametrize(
    ("policy", "stated", "strategy"),
    [
        pytest.param(Policy(), 60.0, Strategy.CACHE_FIRST, id="auto, a lifetime is stated"),
        pytest.param(Policy(), 0.0, Strategy.CACHE_FIRST, id="auto, a lifetime of nothing is one"),
        pytest.param(Policy(), None, Strategy.NETWORK_FIRST, id="auto, none is stated"),
        pytest.param(Policy(ttl=60), None, Strategy.CACHE_FIRST, id="auto, the policy states one"),
        pytest.param(Policy(strategy=Strategy.NETWORK_ONLY), 60.0, Strategy.NETWORK_ONLY, id="stated by name"),
    ],
)
def test_auto_follows_who_states_a_lifetime(policy: Policy, stated: float | None, strategy: Strategy) -> None:
    assert strategy_for(policy, stated) is strategy
