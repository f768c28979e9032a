"""The queries of the committed dashboards, with their variables filled in."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.system.prometheus import DEPLOY, with_short_windows

FILES = ("overview.json", "pod.json")
VARIABLES = {"$namespace": ".*", "$pod": ".*", "$node": ".*", "$__rate_interval": "4s"}


class Asked(NamedTuple):
    """A query, and where it stands."""

    where: str
    expr: str


def dashboard(name: str) -> dict[str, Any]:
    """Return a committed dashboard."""
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / name).read_text())
    return found


def _all(name: str) -> Iterator[Asked]:
    page = dashboard(name)
    for panel in page["panels"]:
        for target in panel.get("targets", ()):
            yield Asked(f"{name}: {panel['title']} ({target['refId']})", target["expr"])
    for mark in page["annotations"]["list"]:
        yield Asked(f"{name}: annotation {mark['name']}", mark["expr"])
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
            assert found is not None, variable
            yield Asked(f"{name}: variable {variable['name']}", f"count by ({found[2]}) ({found[1]}) > 0")


def queries() -> list[Asked]:
    """Return every query of every dashboard, as Grafana would ask it, with short windows."""
    filled = []
    for name in FILES:
        for where, asked in _all(name):
            expr = with_short_windows(asked)
            for variable, value in VARIABLES.items():
                expr = expr.replace(variable, value)
            assert "$" not in expr, (where, expr)
            filled.append(Asked(where, expr))
    return filled
