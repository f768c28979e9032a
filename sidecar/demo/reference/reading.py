"""What the reference config service accepts: read as leniently, and refused in the same shape, as LearnFlow's own does.

For the demo and the tests, never for production.
"""

import json
import re
from typing import Any
from uuid import UUID

from aiohttp import hdrs, web

from sidecar.demo.reference.state import RefusalError

_JSON_TYPE = re.compile(r"application/(\S+\+)?json\s*(;|$)", re.IGNORECASE)


def invalid(kind: str, msg: str, given: object, *loc: str | int) -> RefusalError:
    """Make FastAPI's 422: one problem, and where it is."""
    return RefusalError(422, [{"type": kind, "loc": loc, "msg": msg, "input": given}])


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read the body as a JSON object; a body without a Content-Type counts as JSON."""
    raw = await request.read()
    if not raw:
        raise invalid("missing", "Field required", None, "body")
    try:
        body = json.loads(raw) if _JSON_TYPE.match(request.headers.get(hdrs.CONTENT_TYPE, "application/json")) else None
    except json.JSONDecodeError as error:
        raise invalid("json_invalid", "JSON decode error", {}, "body", error.pos) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too many digits, too deep
        raise RefusalError(400, "There was an error parsing the body") from error
    if not isinstance(body, dict):
        raise invalid("model_attributes_type", "Input should be a valid dictionary", body, "body")
    return body


def read_integer(given: object, *loc: str | int) -> int:
    """Coerce as the real service does: `"1001"`, `1001.0` and `true` are integers."""
    try:
        if isinstance(given, str):
            return int(re.sub(r"\.0+\s*$", "", given))
        if isinstance(given, int) or (isinstance(given, float) and given.is_integer()):
            return int(given)
    except ValueError:
        pass
    raise invalid("int_parsing", "Input should be a valid integer", given, *loc)


def read_user_and_node(body: object, *loc: str | int) -> tuple[int, str]:
    """Read what generate-prompt and prompt-data have in common."""
    if not isinstance(body, dict):
        raise invalid("model_attributes_type", "Input should be a valid dictionary", body, *loc)
    for name in ("user_id", "node_name"):
        if name not in body:
            raise invalid("missing", "Field required", body, *loc, name)
    user_id, node = read_integer(body["user_id"], *loc, "user_id"), body["node_name"]
    if user_id <= 0:
        raise invalid("greater_than", "Input should be greater than 0", user_id, *loc, "user_id")
    if not isinstance(node, str) or not node:
        raise invalid("string_type", "Input should be a valid string", node, *loc, "node_name")
    return user_id, node


def read_path_user(request: web.Request) -> int:
    """Read the user of the path."""
    user_id = read_integer(request.match_info["user_id"], "path", "user_id")
    if user_id <= 0:
        raise RefusalError(400, "User ID must be a positive integer")  # 400, not 422: as recorded
    return user_id


def read_uuid(given: object, *loc: str) -> str:
    """Read an id in any of a UUID's spellings."""
    try:
        return str(UUID(given if isinstance(given, str) else ""))
    except ValueError as error:
        raise invalid("uuid_parsing", "Input should be a valid UUID", given, *loc) from error
