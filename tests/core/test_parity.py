from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.parity import Answer, Difference, MismatchWindow, compare

ANSWERS = st.tuples(st.text("aé🙂", max_size=8), st.dictionaries(st.text("ab", max_size=2), st.text("ab", max_size=2)))


def test_equal_answers_do_not_differ() -> None:
    assert compare(("a prompt", {"a": "1"}), ("a prompt", {"a": "1"})) is None


def test_the_order_of_placeholders_does_not_count() -> None:
    assert compare(("", {"a": "1", "b": "2"}), ("", {"b": "2", "a": "1"})) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "position", "our_length", "their_length"),
    [
        pytest.param("abc", "abd", 2, 3, 3, id="the last character"),
        pytest.param("xbc", "abc", 0, 3, 3, id="the first character"),
        pytest.param("abc", "ab", 2, 3, 2, id="theirs ends first"),
        pytest.param("", "abc", 0, 0, 3, id="ours is empty"),
        pytest.param("éa", "éb", 2, 3, 3, id="bytes are counted, not characters"),
        pytest.param("é", "è", 1, 2, 2, id="inside a character"),
        pytest.param("a\n", "a", 1, 2, 1, id="a newline at the end"),
        pytest.param("a'b", "a&#39;b", 1, 3, 7, id="escaping"),
        pytest.param("\ud800", "a", 0, 3, 1, id="a lone surrogate"),
        pytest.param("a" * 10**6 + "b", "a" * 10**6 + "c", 10**6, 10**6 + 1, 10**6 + 1, id="a long one"),
    ],
)
def test_a_prompt_differs_at_its_first_byte_that_does(
    ours: str, theirs: str, position: int, our_length: int, their_length: int
) -> None:
    assert compare((ours, {}), (theirs, {})) == ("prompt", position, our_length, their_length)


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        pytest.param({"a": "1"}, {"a": "2"}, 1, id="another value"),
        pytest.param({"a": "1", "b": "2"}, {"a": "1"}, 1, id="one is missing there"),
        pytest.param({}, {"a": ""}, 1, id="an empty one is missing here"),
        pytest.param({"a": "1", "b": "2"}, {"b": "3", "c": "4"}, 3, id="all of them"),
    ],
)
def test_placeholders_differ_by_how_many_names_do(
    ours: Mapping[str, str], theirs: Mapping[str, str], differing: int
) -> None:
    assert compare(("p", ours), ("p", theirs)) == ("placeholders", differing, len(ours), len(theirs))


def test_the_prompt_comes_before_the_placeholders() -> None:
    found = compare(("a", {"a": "1"}), ("b", {}))
    assert found is not None
    assert found.part == "prompt"


def test_a_difference_holds_no_content_and_no_name() -> None:
    secret, other = ("secret prompt", {"secret": "secret"}), ("another", {"also": "secret"})
    for found in (compare(secret, other), compare(("", secret[1]), ("", other[1]))):
        assert found is not None
        assert found.part in {"prompt", "placeholders"}
        assert all(isinstance(value, int) for value in found[1:])


@given(ANSWERS, ANSWERS)
def test_a_difference_is_found_exactly_where_there_is_one(ours: Answer, theirs: Answer) -> None:
    found = compare(ours, theirs)
    assert (found is None) == (ours == theirs)
    mine, other = ours[0].encode(), theirs[0].encode()
    if isinstance(found, Difference) and found.part == "prompt":
        assert mine[: found.position] == other[: found.position]
        assert mine[found.position : found.position + 1] != other[found.position : found.position + 1]
    back = compare(theirs, ours)
    assert back == (found and (found.part, found.position, found.their_length, found.our_length))


def test_mismatches_within_the_window_are_too_many_at_the_bound() -> None:
    window = MismatchWindow(3, 10.0)
    assert [window.add(now) for now in (0.0, 5.0, 10.0)] == [False, False, True]


def test_a_mismatch_older_than_the_window_does_not_count() -> None:
    window = MismatchWindow(3, 10.0)
    assert [window.add(now) for now in (0.0, 5.0, 10.001, 14.0)] == [False, False, False, True]


def test_one_mismatch_is_enough_where_the_rule_says_so() -> None:
    assert MismatchWindow(1, 10.0).add(0.0)


def test_more_mismatches_stay_too_many() -> None:
    window = MismatchWindow(2, 10.0)
    assert [window.add(1.0) for _ in range(4)] == [False, True, True, True]


@given(st.integers(1, 5), st.floats(0.1, 20), st.lists(st.floats(0, 5), max_size=20))
def test_the_window_says_what_counting_all_of_them_would(most: int, length: float, pauses: list[float]) -> None:
    window, now, added = MismatchWindow(most, length), 0.0, list[float]()
    for pause in pauses:
        now += pause
        added.append(now)
        assert window.add(now) == (sum(now - at <= length for at in added) >= most)


def test_the_window_keeps_no_more_instants_than_are_too_many() -> None:
    window = MismatchWindow(3, 10.0)
    for now in range(1000):
        window.add(float(now))
    assert len(window._at) == 3
