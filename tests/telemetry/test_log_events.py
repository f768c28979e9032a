"""The table of events: all that is logged is in it, and nothing else; the documents name no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import sidecar
from sidecar.core.events import Event
from sidecar.telemetry.log_events import EVENTS, SUMS
from sidecar.telemetry.log_setup import LEVELS
from tests.telemetry import test_logs, test_new_events

SOURCE = Path(sidecar.__file__).parent
DOCS = SOURCE.parent / "docs"
TELLS = {*LEVELS, "critical", "log", "tell"}
NAME = re.compile(r"[a-z]+(_[a-z]+)*")
SAID = [*test_logs.SAID.values(), *test_new_events.SAID.values()]


def logged() -> Iterator[tuple[str, str]]:
    """Yield each event that some code logs, and where: a call of a level's name, or of what one was chosen as."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "structlog" not in text:
            continue
        for call in ast.walk(ast.parse(text)):
            if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
            asks_getattr = isinstance(call.func, ast.Call) and getattr(call.func.func, "id", None) == "getattr"
            if (name in TELLS or asks_getattr) and isinstance(call.args[0].value, str):
                yield call.args[0].value, f"{path.name}:{call.lineno}"


def test_what_is_logged_is_in_the_table_and_what_is_in_the_table_is_logged() -> None:
    assert {name for name, _ in logged()} == set(EVENTS), [*logged()]


def test_a_name_is_stable_to_search_for() -> None:
    assert [name for name in EVENTS if not NAME.fullmatch(name)] == []


@pytest.mark.parametrize("name", EVENTS)
def test_a_row_is_whole(name: str) -> None:
    event = EVENTS[name]
    assert set(event.levels.split(", ")) <= {*LEVELS, "critical"}
    assert event.when.endswith(".")
    assert event.to_do.endswith((".", "?"))
    assert set(event.kind or ()) <= set(event.fields)
    assert not set(event.fields) & {"timestamp", "level", "event", *SUMS}


@pytest.mark.parametrize(("level", "name", "fields"), [row[1:] for row in SAID])
def test_a_line_has_the_level_and_fields_of_its_row(level: str, name: str, fields: dict[str, object]) -> None:
    assert level in EVENTS[name].levels
    assert set(fields) <= set(EVENTS[name].fields)


def test_what_tells_repeats_apart_can_be_told_apart() -> None:
    for event in get_args(Event):
        assert event.__hash__ is not None
    fields = {"where": (), "problems": ()}
    for name, told in EVENTS.items():
        hash((name, *(fields.get(field, "") for field in told.kind or ())))


def named_in(text: str) -> set[str]:
    """Return the events that a page names: the log's `a`, the log's `a` or `b`, `a` in the log."""
    after = re.findall(r"log's ((?:`\w+`(?:, | or | and )?)+)", text)
    before = re.findall(r"((?:`\w+`(?:, | or | and )?)+) in the log", text)
    return set(re.findall(r"\w+(?=`)", " ".join([*after, *before])))


@pytest.mark.parametrize("page", sorted((DOCS / "runbooks").glob("*.md")), ids=lambda page: page.stem)
def test_an_event_that_a_runbook_names_exists(page: Path) -> None:
    assert named_in(page.read_text(encoding="utf-8")) <= set(EVENTS)


def test_the_runbooks_name_events() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "runbooks").glob("*.md")]
    assert set().union(*map(named_in, pages)) >= {
        *("circuit_changed", "crashed", "parity_mismatch", "store_degraded", "templates_not_loaded"),
    }


def test_a_page_that_a_row_sends_to_exists() -> None:
    pages = {page.stem for page in (DOCS / "runbooks").glob("*.md")}
    for told in EVENTS.values():
        assert {page.rstrip(".") for page in re.findall(r"see ([a-z-]+)", told.to_do, re.IGNORECASE)} <= pages
