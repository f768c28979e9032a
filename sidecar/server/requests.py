"""A request's body and headers → what is asked; mistakes named where they are (contract §3, the 422 row)."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.core.decision import NO_DIRECTIVES, Directives

MAX_INT_DIGITS = 400
"""Digits of a user id given as text; more is no id."""


class BadRequestError(Exception):
    """The body breaks the schema; `problems` are sentences."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class UnreadableBodyError(Exception):
    """The body cannot be read at all; today's service has a status and a wording of its own for it."""


class PromptRequest(msgspec.Struct):
    """`{"user_id": int > 0, "node_name": str, "context": {str: any}}` (contract §2)."""

    user_id: int
    node_name: str
    context: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(PromptRequest)


def parse_prompt_request(body: bytes) -> PromptRequest:
    """Read a body; raises `BadRequestError`, `UnreadableBodyError`."""
    try:
        request = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        request = _parse_leniently(body)
    if request.user_id <= 0:
        raise BadRequestError("user_id must be greater than 0")
    if not request.node_name:
        raise BadRequestError("node_name must not be empty")
    return request


def _parse_leniently(body: bytes) -> PromptRequest:
    """Read what the config service takes although the schema is stricter: other encodings, numbers as text.

    It reads JSON with Python's json and coerces the user id (recorded behaviour: "1001", 1001.0 and true are taken).
    """
    value = _load(body)
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    problems: list[str] = []
    user_id = _user_id(value, problems)
    node_name = _node_name(value, problems)
    context = value.get("context", {})
    if isinstance(context, dict):
        context = {_readable(name): each for name, each in context.items()}
    if not isinstance(context, dict):
        problems.append("context must be an object")
    elif not _encodable(context):
        problems.append("context must hold valid Unicode (it has a lone surrogate)")
    if problems:
        raise BadRequestError(*problems)
    return PromptRequest(user_id, node_name, context)


def _readable(name: str) -> str:
    """Return a name as the config service answers with it: each byte of a lone surrogate as U+FFFD (recorded)."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON at position {error.pos}") from None
    except UnicodeDecodeError:
        raise UnreadableBodyError("the body is not valid UTF-8, UTF-16 or UTF-32") from None
    except ValueError:
        raise UnreadableBodyError("the body is not JSON that can be read: a number has too many digits") from None


def _node_name(value: Mapping[str, Any], problems: list[str]) -> str:
    node_name = value.get("node_name")
    if isinstance(node_name, str) and _encodable(node_name):
        return node_name
    if "node_name" not in value:
        problems.append("node_name is required")
    elif isinstance(node_name, str):
        problems.append("node_name must be valid Unicode")
    else:
        problems.append("node_name must be a string")
    return ""


def _user_id(value: Mapping[str, Any], problems: list[str]) -> int:
    if "user_id" not in value:
        problems.append("user_id is required")
        return 0
    given = value["user_id"]
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, str) and len(given) <= MAX_INT_DIGITS:
        try:
            return int(given)
        except ValueError:
            pass
    elif isinstance(given, int):
        return int(given)
    problems.append("user_id must be an integer greater than 0")
    return 0


def _encodable(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, RecursionError, ValueError, OverflowError, TypeError):
        return False
    return True


_MAX_STALE = re.compile(r"max-stale(?:\s*=\s*\"?(\d{1,10})\"?)?$", re.IGNORECASE)


def parse_cache_control(value: str | None) -> Directives:
    """Read what a request's Cache-Control asks for; unknown directives are ignored (RFC 9111 §5.2)."""
    if value is None:
        return NO_DIRECTIVES
    no_cache = only_if_cached = False
    max_stale: float | None = None
    for part in value.split(","):
        directive = part.strip()
        name = directive.lower()
        if name == "no-cache":
            no_cache = True
        elif name == "only-if-cached":
            only_if_cached = True
        elif match := _MAX_STALE.match(directive):
            stated = float(match[1]) if match[1] else float("inf")
            max_stale = stated if max_stale is None else min(max_stale, stated)
    return Directives(no_cache, only_if_cached, max_stale)


def is_json(content_type: str | None) -> bool:
    """Return whether a body of this type is read: JSON, or none stated, as the config service does."""
    if content_type is None:
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in {"", "application/json"} or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
