"""Lists of users and nodes to warm up: CSV or JSON lines; what is wrong is reported by line, the rest goes on."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sidecar.core.routes import MOST_ID

LONGEST_NODE = 200
"""Characters."""


class Wrong(NamedTuple):
    """A line that is no pair."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def read_pairs(lines: Iterable[str]) -> Iterator[tuple[int, str] | Wrong]:
    """Yield the pairs of a list, and the lines that are none; blank lines and those that begin with # say nothing.

    A line is `user_id,node_name`, or `{"user_id": …, "node_name": …}`; a first line with these two words is a heading.
    """
    for number, raw in enumerate(lines, start=1):
        line = raw.strip().removeprefix("\ufeff")
        if not line or line.startswith("#"):
            continue
        try:
            found = _of_json(line) if line.startswith("{") else _of_csv(line)
            if found is not None:
                yield _checked(*found)
            elif number > 1:
                raise ValueError("user_id: 'user_id' is no number")
        except ValueError as error:
            yield Wrong(number, str(error))


def _of_csv(line: str) -> tuple[object, object] | None:
    try:
        (fields,) = csv.reader([line], skipinitialspace=True)
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from error
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} columns; wanted is user_id,node_name")
    user, node = (field.strip() for field in fields)
    return None if (user, node) == ("user_id", "node_name") else (user, node)


def _of_json(line: str) -> tuple[object, object]:
    try:
        found = json.loads(line)
        return found["user_id"], found["node_name"]
    except (ValueError, RecursionError) as error:
        raise ValueError("no JSON") from error
    except (LookupError, TypeError) as error:
        raise ValueError('wanted is {"user_id": …, "node_name": …}') from error


def _checked(user: object, node: object) -> tuple[int, str]:
    text = user if isinstance(user, str) else str(user)
    is_number = not isinstance(user, bool) and text.isascii() and text.isdigit() and len(text) <= 19
    if not is_number or not 1 <= int(text) <= MOST_ID:
        raise ValueError(f"user_id: {text[:40]!r} is no number from 1 to {MOST_ID}")
    if not isinstance(node, str) or not 1 <= len(node) <= LONGEST_NODE or not node.isprintable():
        raise ValueError(f"node_name: wanted is a name of 1 to {LONGEST_NODE} printable characters")
    return int(text), node
