"""How today's config service words its refusals, so that clients read the same `detail` (contract §2, `placeholders`).

Its words for a value of the wrong type are pydantic's, of the version that it runs on.
"""

from collections.abc import Mapping
from typing import Any

UNREADABLE_BODY = "There was an error parsing the body"
"""The body is not UTF-8, or holds a number that Python does not read."""

LISTED = 1000
"""Values that are told one by one: a body of 4 MiB could hold so many that the answer took 100 MiB."""
_WIDTH, _HEAD, _TAIL = 50, 25, 24  # bytes of a value that are shown: all of 50, else its two ends


def template_not_found(node: str) -> str:
    """Say that there is no such node."""
    return f"Template not found for node: {node}"


def refused_values(context: Mapping[str, Any]) -> str | None:
    """Say which of a request's values are no text, in their order; None where all are.

    It repeats the values, for the client who sent them: not to be logged.
    """
    refused = {name: value for name, value in context.items() if not isinstance(value, str)}
    if not refused:
        return None
    plural = "" if len(refused) == 1 else "s"
    listed = [_told(name, value) for name, value in list(refused.items())[:LISTED]]
    return "\n".join([f"{len(refused)} validation error{plural} for GeneratePromptResponse", *listed])


def _told(name: str, value: Any) -> str:
    place = f"used_placeholders.`{name}`" if "." in name else f"used_placeholders.{name}"
    about = f"type=string_type, input_value={_shown(value)}, input_type={type(value).__name__}"
    return (
        f"{place}\n  Input should be a valid string [{about}]\n"
        "    For further information visit https://errors.pydantic.dev/2.11/v/string_type"
    )


def _shown(value: Any) -> str:
    """Return the value as Python writes it; of a long one both ends, cut between characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer too long for Python to write, lists in lists without end
        return f"<unprintable {type(value).__name__} object>"
    raw = text.encode()
    if len(raw) <= _WIDTH:
        return text
    # What is cut apart by the byte is left out: only such bytes are no UTF-8 here, repr() escapes all others.
    return f"{raw[:_HEAD].decode(errors='ignore')}...{raw[-_TAIL:].decode(errors='ignore')}"
