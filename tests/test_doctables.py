"""The tables of docs/architecture.md and docs/events.md are those that the code obeys."""

import re

import pytest

from sidecar.core.decision import STALE_TABLE
from sidecar.core.errors import FAILURE_TABLE, FailureKind
from sidecar.core.freshness import State
from sidecar.core.policy import Strategy
from sidecar.docgen import COMMAND, ROOT
from sidecar.doctables import TABLES, failure_table, filled, stale_table

DOCUMENT = "".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("architecture", "events"))


def rows(table: str) -> list[list[str]]:
    """Return a table's cells, without its head."""
    lines = table.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(line.startswith(("| ", "|-")) for line in lines)
    assert len({len(row) for row in cells}) == 1, "a row has a cell too many or too few"
    assert set(cells[1]) == {"---"}
    return cells[2:]


@pytest.mark.parametrize("name", TABLES)
def test_the_document_holds_the_table_as_the_code_has_it(name: str) -> None:
    assert DOCUMENT.count(f"<!-- {name} -->") == 1
    assert f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end -->" in DOCUMENT, f"run `{COMMAND}`"


def test_each_failure_has_its_row_in_the_failure_table() -> None:
    drawn = {row[0]: row[1:] for row in rows(failure_table())}
    assert list(drawn) == [f"`{kind}`" for kind in FAILURE_TABLE]
    assert set(drawn) == {f"`{kind}`" for kind in FailureKind}
    for kind, rule in FAILURE_TABLE.items():
        meaning, retry, verdict, stale, evicts, status = drawn[f"`{kind}`"]
        assert (meaning, verdict) == (rule.meaning, rule.verdict)
        assert (retry, stale, evicts) == tuple("yes" if on else "no" for on in (rule.retry, rule.stale, rule.evicts))
        assert status == ("as answered" if rule.status is None else str(rule.status))


def test_each_strategy_and_state_has_its_row_in_the_stale_table() -> None:
    drawn = {(row[0].strip("`"), row[1]): row[2:] for row in rows(stale_table())}
    assert {strategy for strategy, _ in drawn} == set(STALE_TABLE) == set(Strategy) - {Strategy.AUTO}
    for strategy, by_state in STALE_TABLE.items():
        assert set(by_state) == set(State)
        for state, row in by_state.items():
            assert (drawn.get((strategy, state)) or drawn[strategy, "any"]) == [row.closed, row.open]


def test_a_strategy_that_never_looks_at_the_entry_has_one_row_for_all() -> None:
    drawn = [row[1] for row in rows(stale_table()) if row[0] == f"`{Strategy.NETWORK_ONLY}`"]
    assert drawn == ["any"]


def test_filling_replaces_what_is_between_the_marks_and_nothing_else() -> None:
    text = "before\n<!-- stale table -->\nold\nlines\n<!-- end -->\nbetween <!-- end -->\nafter\n"
    after = filled(text)
    assert after == text.replace("old\nlines", stale_table())
    assert filled(after) == after
    assert filled("no marks\n") == "no marks\n"


def test_filling_takes_what_a_table_says_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.doctables.TABLES", {"stale table": lambda: r"| \1 \g<0> \n |"})
    assert filled("<!-- stale table -->\nold\n<!-- end -->") == "<!-- stale table -->\n| \\1 \\g<0> \\n |\n<!-- end -->"


def test_no_mark_of_the_document_is_without_a_table() -> None:
    assert set(re.findall(r"<!-- (.+?) -->", DOCUMENT)) - {"end"} == set(TABLES)
