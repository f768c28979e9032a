"""Settings as they may be shown: what is, or may hold, a secret becomes `***`."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SECRET = re.compile(
    r"password|passphrase|secret|token|credential|authori[sz]ation|api_?key|private_?key|headers", re.IGNORECASE
)
_PLACE = re.compile(r"_(file|path|env)\Z")
"""A key that says where a secret is, and holds none."""
_USER = re.compile(r"(?<=://)[^\s/?#'\"]+@")
"""What stands before the host of a URL, of several hosts the first (RFC 3986 §3.2.1)."""


def masked(value: Any, key: str = "") -> Any:
    """Return settings, or a text, without their secrets; `key`: what holds the value."""
    if isinstance(value, Mapping):
        return {name: masked(each, str(name)) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(each, key) for each in value]
    if not isinstance(value, str):
        return value
    if value not in {"null", ""} and _SECRET.search(key) and not _PLACE.search(key):
        return MASK
    return _USER.sub(f"{MASK}@", value)
