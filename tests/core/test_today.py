import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.today import LISTED, UNREADABLE_BODY, refused_values, template_not_found

LEARNFLOW = Path(os.environ.get("LEARNFLOW_DATA", Path(__file__).parents[3] / "shared" / "learnflow"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
JSON = SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=5)


@pytest.fixture(scope="module")
def refusals() -> list[tuple[Any, str]]:
    """Return the requests that the service refused with a sentence, each with its `detail`."""
    path = LEARNFLOW / "recordings.jsonl"
    if not path.exists():
        reason = f"no recordings in {LEARNFLOW}; LEARNFLOW_DATA names their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return list(_refusals(path))


def _refusals(path: Path) -> Iterator[tuple[Any, str]]:
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["response"]["status"] == 400:
            yield row["request"]["body"], json.loads(row["response"]["body"]["text"])["detail"]


def test_every_recorded_refusal_of_values_is_worded_the_same(refusals: list[tuple[Any, str]]) -> None:
    rows = [(json.loads(body["text"])["context"], detail) for body, detail in refusals if detail[0].isdigit()]
    assert len(rows) >= 8
    for context, detail in rows:
        assert refused_values(context) == detail


def test_every_recorded_refusal_of_a_node_is_worded_the_same(refusals: list[tuple[Any, str]]) -> None:
    rows = [(json.loads(body["text"])["node_name"], detail) for body, detail in refusals if detail.startswith("Temp")]
    assert len(rows) >= 4
    for node, detail in rows:
        assert template_not_found(node) == detail


def test_a_recorded_refusal_of_an_unreadable_body_is_worded_the_same(refusals: list[tuple[Any, str]]) -> None:
    rows = [body for body, detail in refusals if detail == UNREADABLE_BODY]
    assert any("base64" in body for body in rows)


def test_an_unknown_node_is_named() -> None:
    assert template_not_found("../x y") == "Template not found for node: ../x y"


def test_text_is_not_refused() -> None:
    assert refused_values({}) is None
    assert refused_values({"a": "", "b": "{{ 7*7 }}"}) is None


def test_one_value_is_refused_as_the_service_refuses_it() -> None:
    assert refused_values({"a": "text", "unused": None}) == (
        "1 validation error for GeneratePromptResponse\n"
        "used_placeholders.unused\n"
        "  Input should be a valid string [type=string_type, input_value=None, input_type=NoneType]\n"
        "    For further information visit https://errors.pydantic.dev/2.11/v/string_type"
    )


def test_several_values_are_told_in_the_order_of_the_context() -> None:
    lines = str(refused_values({"b": 1, "ok": "", "a": [1]})).split("\n")
    assert lines[0] == "2 validation errors for GeneratePromptResponse"
    assert lines[1::3] == ["used_placeholders.b", "used_placeholders.a"]


@pytest.mark.parametrize(
    ("value", "shown", "of_type"),
    [
        (None, "None", "NoneType"),
        (42, "42", "int"),
        (10**30, "1" + "0" * 30, "int"),
        (1.5, "1.5", "float"),
        (float("nan"), "nan", "float"),
        (float("inf"), "inf", "float"),
        (True, "True", "bool"),
        ([], "[]", "list"),
        (["a", None], "['a', None]", "list"),
        ({"a": "it's"}, """{'a': "it's"}""", "dict"),
        (["x" * 46], f"['{'x' * 46}']", "list"),
        (["x" * 47], f"['{'x' * 23}...{'x' * 22}']", "list"),
        (10**50, f"1{'0' * 24}...{'0' * 24}", "int"),
        (["я" * 23], f"['{'я' * 23}']", "list"),
        (["я" * 24], f"['{'я' * 11}...{'я' * 11}']", "list"),
        (["🙂" * 20], f"['{'🙂' * 5}...{'🙂' * 5}']", "list"),
        (["\ud800" * 10], r"['\ud800\ud800\ud800\ud80...d800\ud800\ud800\ud800']", "list"),
        (10**5000, "<unprintable int object>", "int"),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else f"{value:x}"[:30],
)
def test_a_value_is_shown_as_python_writes_it_and_a_long_one_by_its_ends(value: Any, shown: str, of_type: str) -> None:
    assert f"input_value={shown}, input_type={of_type}]" in str(refused_values({"a": value}))


def test_lists_in_lists_without_end_are_told_without_their_content() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "input_value=<unprintable list object>, input_type=list]" in str(refused_values({"a": deep}))


@pytest.mark.parametrize(("name", "place"), [("", ""), ("a b", "a b"), ("a.b", "`a.b`"), ("имя", "имя")])
def test_a_name_with_a_dot_is_quoted(name: str, place: str) -> None:
    assert str(refused_values({name: 1})).split("\n")[1] == f"used_placeholders.{place}"


def test_of_very_many_values_the_first_are_told_and_all_are_counted() -> None:
    lines = str(refused_values({str(number): number for number in range(LISTED + 1)})).split("\n")
    assert lines[0] == f"{LISTED + 1} validation errors for GeneratePromptResponse"
    assert lines[1::3] == [f"used_placeholders.{number}" for number in range(LISTED)]


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_any_context_is_refused_exactly_where_a_value_is_no_text(context: dict[str, Any]) -> None:
    refused = sum(not isinstance(value, str) for value in context.values())
    detail = refused_values(context)
    assert (detail is None) == (refused == 0)
    assert detail is None or detail.startswith(f"{refused} validation error")
