"""The dashboards of deploy/grafana are what the code makes, and can be read by an on-call."""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.system.dashboards import FILES, dashboard

ROOT = Path(__file__).parents[2]


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        why = "grafana-foundation-sdk is not installed (make lock, then make test)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    from deploy.grafana.generate import FOLDER, PAGES, as_json

    assert {path.name for path in FOLDER.glob("*.json")} == PAGES.keys() == set(FILES)
    for name, page in PAGES.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == as_json(page()), "run `make dashboards`"


@pytest.mark.parametrize("name", FILES)
def test_the_rows_come_in_the_order_of_an_on_calls_questions(name: str) -> None:
    rows = [panel["title"] for panel in dashboard(name)["panels"] if panel["type"] == "row"]
    questions = ["Is anyone failing?", "Who gets stale data", "Why?", "What changed?", "Is there room?"]
    assert len(rows) >= len(questions)
    assert all(row.startswith(question) for row, question in zip(rows, questions, strict=False))


@pytest.mark.parametrize("name", FILES)
def test_one_can_choose_source_namespace_pod_and_node(name: str) -> None:
    assert [each["name"] for each in dashboard(name)["templating"]["list"]] == [
        "datasource",
        "namespace",
        "pod",
        "node",
    ]


@pytest.mark.parametrize("name", FILES)
def test_circuit_and_reloads_are_marked(name: str) -> None:
    assert {mark["name"] for mark in dashboard(name)["annotations"]["list"]} == {"Circuit", "Reloads"}


@pytest.mark.parametrize("name", FILES)
def test_every_panel_says_what_it_shows_and_lies_on_the_grid(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in _rows(place)}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}, panel["title"]


@pytest.mark.parametrize("name", FILES)
def test_every_link_to_a_runbook_leads_to_one(name: str) -> None:
    pages = re.findall(r"/docs/runbooks/([\w-]+\.md)", json.dumps(dashboard(name)))
    assert len(pages) > 10
    assert {page for page in pages if not (ROOT / "docs/runbooks" / page).exists()} == set()


def _rows(place: dict[str, Any]) -> range:
    return range(place["y"], place["y"] + place["h"])
