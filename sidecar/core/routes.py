"""Paths: which are static reads (settings: `routes`), and whose settings a request may change.

The two look at a path in opposite ways. What is kept must be the one thing that its path says, so a pattern matches
plain spellings only. What is changed must never be missed, so a user is found in every spelling that may reach one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar
from urllib.parse import unquote

V = TypeVar("V")

MOST_ID = 2**63 - 1
"""The highest id of a user: what the service's database holds, and what is exact in every format of ours."""

ALLOWED = "a path from / on, where {name} is one segment and a * at the end anything"
_CHARACTERS = r"[A-Za-z0-9._~!$&'()*+,;=:@-]"  # of a segment, RFC 3986 §3.3, but for percent-encoding
_PLAIN = re.compile(rf"(?:/(?!\.\.?(?:/|\Z)){_CHARACTERS}+)*/?")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class RoutePattern:
    """A path with `{name}` for exactly one segment, and a `*` at its end for anything, also nothing."""

    text: str
    specificity: tuple[int, bool] = field(compare=False, repr=False)
    """More literal characters win, then the pattern without a `*`."""
    _expression: re.Pattern[str] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> "RoutePattern":
        """Read a pattern; a ValueError says what is allowed."""
        if not text.startswith("/"):
            raise ValueError(f"{ALLOWED}; it must begin with /")
        if "?" in text or "#" in text:
            raise ValueError(f"{ALLOWED}; it must have no query and no fragment")
        if "%" in text:
            raise ValueError(f"{ALLOWED}; it must hold no %, for an encoded path is never matched")
        body = text.removesuffix("*")
        if "*" in body:
            raise ValueError(f"{ALLOWED}; * stands at the end only")
        names, parts = [], []
        for segment in body[1:].split("/"):
            parameter = _PARAMETER.fullmatch(segment)
            if parameter:
                names.append(parameter[1])
                parts.append(f"/(?P<{parameter[1]}>[^/]+)")
            elif "{" in segment or "}" in segment:
                raise ValueError(f"{ALLOWED}; {{name}} must be a whole segment, its name of letters, digits and _")
            else:
                parts.append("/" + re.escape(segment))
        if len(set(names)) < len(names):
            raise ValueError(f"{ALLOWED}; each name once")
        if not _PLAIN.fullmatch(_PARAMETER.sub("x", body)):
            raise ValueError(f"{ALLOWED}; it must be plain: no //, no . or .. segment, only characters of an ASCII URL")
        is_open = body != text
        expression = re.compile("".join(parts) + (".*" if is_open else ""))
        return cls(text, (len(_PARAMETER.sub("", body)), not is_open), expression)

    def matches(self, path: str) -> Mapping[str, str] | None:
        """Return what the names stand for, of a raw path without query; what can be read in two ways never matches."""
        found = self._expression.fullmatch(path) if _PLAIN.fullmatch(path) else None
        return None if found is None else found.groupdict()


class RouteTable(Generic[V]):
    """Values by pattern; the most specific pattern wins, of equal ones the first."""

    def __init__(self, routes: Mapping[RoutePattern, V]) -> None:
        self._rows = sorted(routes.items(), key=lambda row: row[0].specificity, reverse=True)  # stable all the same

    def find(self, path: str) -> tuple[V, Mapping[str, str]] | None:
        """Return the value for a raw path without query, and what the pattern's names stand for."""
        for pattern, value in self._rows:
            found = pattern.matches(path)
            if found is not None:
                return value, found
        return None


DECODINGS = 3
"""How often a path may be percent-encoded: by the service, by a proxy before it, and once more to be sure."""

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\\]*")
_QUERY = re.compile(r"[?#]")
_SLASH = re.compile(r"[/\\]")
_SEGMENT_END = re.compile(r"[;?#]")


def written_user(target: str) -> int | None:
    """Return the user whose settings a request may change or read; None: nobody's.

    `target`: as received, with or without query, also in absolute form. Finds a user in more spellings than any
    service takes: one invalidated in vain costs a read, one overlooked breaks promise 8.
    """
    authority = _AUTHORITY.match(target)
    path = _QUERY.split(target[authority.end() :] if authority else target, maxsplit=1)[0]
    for _ in range(DECODINGS):
        path = unquote(path)
    segments = [_SEGMENT_END.split(segment, maxsplit=1)[0].strip() for segment in _SLASH.split(path)]
    user = _user_in(_resolved(segments))
    return _user_in(segments) if user is None else user


read_user = written_user
"""Return whose settings a kept read shows: what a write must make void is found by the same rule."""


def _resolved(segments: Iterable[str]) -> list[str]:
    """Leave out empty and dot segments, as a proxy may (RFC 3986 §5.2.4)."""
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    return kept


def _user_in(segments: Iterable[str]) -> int | None:
    users = (_integer(after) for name, after in pairwise(segments) if name.casefold() == "users")
    return next((user for user in users if user is not None), None)


def _integer(text: str) -> int | None:
    """Read an integer as leniently as the service does (pydantic), or more so: `+7`, `1_000`, `1.0`, `007`."""
    whole, _, decimals = text.partition(".")
    if decimals.strip("0"):
        return None
    try:
        return int(whole.replace("_", ""))
    except ValueError:  # also more digits than Python reads; no user has such an id
        return None
