import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.rollout import RolloutRule, bucket, includes

USERS = st.integers() | st.integers(1, 10**6)


def rule(fraction: float = 1.0, nodes: set[str] | None = None, exclude: set[str] | None = None) -> RolloutRule:
    return RolloutRule(
        fraction=fraction, nodes=None if nodes is None else frozenset(nodes), exclude=frozenset(exclude or ())
    )


@pytest.mark.parametrize(
    ("user_id", "place"),
    [
        (1, 0.15374231595780563),
        (2, 0.8903875241218315),
        (1001, 0.11936376338309096),
        (123_456_789, 0.42587109811800117),
        (2**63, 0.4442934452232512),
        (10**5000, 0.3766722098587727),
        (-7, 0.9820667136521876),
    ],
    ids=["1", "2", "1001", "a chat's", "beyond int64", "5001 digits", "negative"],
)
def test_a_user_has_the_same_place_on_every_machine_and_in_every_version(user_id: int, place: float) -> None:
    assert bucket(user_id) == place


@given(USERS)
def test_every_place_is_from_0_to_below_1(user_id: int) -> None:
    assert 0 <= bucket(user_id) < 1


def test_places_are_spread_evenly() -> None:
    users, slots = 100_000, 100
    counts = [0] * slots
    for user_id in range(1, users + 1):
        counts[int(bucket(user_id) * slots)] += 1
    expected = users / slots
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_squared < 150  # 99 degrees of freedom: beyond it with a chance of 1 in 1,000, and the users are fixed


@given(USERS, st.floats(0, 1), st.floats(0, 1))
def test_a_user_who_is_in_stays_in_while_the_share_grows(user_id: int, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert includes(rule(small), user_id, "a") <= includes(rule(large), user_id, "a")


@given(USERS)
def test_at_0_nobody_is_in_and_at_1_everybody(user_id: int) -> None:
    assert not includes(rule(0.0), user_id, "a")
    assert includes(rule(1.0), user_id, "a")


@given(USERS, st.floats(0, 1), st.sampled_from("ab"))
def test_a_user_is_in_for_all_nodes_or_for_none(user_id: int, fraction: float, node: str) -> None:
    assert includes(rule(fraction), user_id, node) == includes(rule(fraction), user_id, "c")


@pytest.mark.parametrize(
    ("nodes", "exclude", "node", "included"),
    [
        pytest.param(None, set(), "a", True, id="all nodes"),
        pytest.param({"a"}, set(), "a", True, id="a node that is named"),
        pytest.param({"a"}, set(), "b", False, id="a node that is not named"),
        pytest.param(set(), set(), "a", False, id="no node is named"),
        pytest.param(None, {"a"}, "a", False, id="a node that is excluded"),
        pytest.param(None, {"a"}, "b", True, id="a node beside the excluded one"),
        pytest.param({"a"}, {"a"}, "a", False, id="exclude beats nodes"),
        pytest.param({"a"}, set(), "A", False, id="case counts"),
    ],
)
def test_nodes_and_exclude_say_which_nodes(
    nodes: set[str] | None, exclude: set[str], node: str, included: bool
) -> None:
    assert includes(rule(1.0, nodes, exclude), 1, node) is included


@pytest.mark.parametrize(
    ("given_rule", "everyone"),
    [
        pytest.param(rule(), True, id="all users, all nodes"),
        pytest.param(rule(0.999), False, id="not all users"),
        pytest.param(rule(nodes={"a"}), False, id="not all nodes"),
        pytest.param(rule(nodes=set()), False, id="no nodes"),
        pytest.param(rule(exclude={"a"}), False, id="a node is excluded"),
    ],
)
def test_a_rule_knows_whether_nothing_is_ever_bypassed(given_rule: RolloutRule, everyone: bool) -> None:
    assert given_rule.everyone is everyone
