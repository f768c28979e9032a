"""The documents of `/status`: its JSON Schema, and the same as tables for people."""

import json
from typing import Any

from sidecar.core.status import Status, schema

HEAD = """\
# `/status`

`GET /status` on the ops listener says in JSON how a sidecar is doing; [status.schema.json](status.schema.json) is its
JSON Schema, also at `/status.schema.json`. The page at `/` and `prompt-sidecar status` show the same.

- Fields are added, never taken away or given another meaning: read what you know, leave the rest.
- Durations are in seconds and end in `_seconds`; instants are RFC 3339 in UTC; shares are 0 to 1.
- Nothing in it is content, a user or a secret. Settings stand as one would write them, what may be a secret as `***`.
- A node is one that the config service confirmed; all else is `other`.
- `state` is `degraded` as soon as there is a reason; each comes with a sentence, since when, what to do, and a
  runbook.
"""


def status_schema() -> str:
    """Return docs/status.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def status_reference() -> str:
    """Return docs/status.md: a table of the fields of each object, the whole first."""
    objects = schema()["$defs"]
    names = [Status.__name__, *sorted(name for name, each in objects.items() if "properties" in each)]
    parts = [_object(name, objects) for name in dict.fromkeys(names)]
    return "\n\n".join([HEAD.strip(), *parts, "---\n\nWritten from `sidecar/core/status.py`."]) + "\n"


def _object(name: str, objects: dict[str, Any]) -> str:
    about = objects[name]
    rows = ["| field | type | what |", "|---|---|---|"]
    rows += [
        f"| `{field}` | {_type(each, objects)} | {_what(each, objects, required=field in about.get('required', ()))} |"
        for field, each in about["properties"].items()
    ]
    return f"## {name}\n\n{about['description']}\n\n" + "\n".join(rows)


def _type(of: dict[str, Any], objects: dict[str, Any]) -> str:
    if "anyOf" in of:
        return " or ".join(_type(each, objects) for each in of["anyOf"])
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        choices = objects[name].get("enum")
        return " or ".join(f"`{each}`" for each in choices) if choices else f"[{name}](#{name.lower()})"
    if of.get("type") == "array":
        return f"list of {_type(of['items'], objects)}"
    return "instant" if of.get("format") == "date-time" else str(of["type"])


def _what(of: dict[str, Any], objects: dict[str, Any], *, required: bool) -> str:
    about = of if "description" in of else objects.get(of.get("$ref", "").rpartition("/")[2], {})
    said = about.get("description", "")
    return said if required or "default" in of else f"{said} Left out otherwise."
