"""What a proxy may pass on, and what it must refuse (RFC 9110 §7.6, RFC 9112)."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

Headers = list[tuple[str, str]]
"""Names and values, in order, repetitions included."""

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers for one connection only (RFC 9110 §7.6.1); `Connection` names more."""
NEVER_HOP_BY_HOP = frozenset({"content-length", "host"})
"""What `Connection` may not take away: without them the message would be another."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110 §9.2.1), so a request may be repeated, and tells no writes."""
_METHODS = SAFE_METHODS | {"DELETE", "PATCH", "POST", "PUT"}
EMPTY_STATUSES = frozenset({204, 304})
"""Final answers that never have a body (RFC 9110 §6.4.1)."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LONE = re.compile(r"[\ud800-\udfff]")
_TARGET = re.compile(r"[\x21-\x7e]+")
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)((?:[/?][^#]*)?)", re.IGNORECASE)


def method_label(method: str) -> str:
    """Return the method, or `other`: a closed set for telemetry."""
    return method if method in _METHODS else "other"


def values_of(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """Return a header's values; `name` in lower case."""
    return [value for each, value in headers if each.lower() == name]


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return what goes on to the next hop."""
    given = list(headers)
    named = {token.strip().lower() for value in values_of(given, "connection") for token in value.split(",")}
    dropped = HOP_BY_HOP | (named - NEVER_HOP_BY_HOP)
    return [(name, value) for name, value in given if name.lower() not in dropped]


def with_forwarded_for(headers: Iterable[tuple[str, str]], peer: str | None) -> Headers:
    """Append the peer's address to `X-Forwarded-For`, after what stands there; a Unix socket's peer has none."""
    given = list(headers)
    if not peer:
        return given
    chain = ", ".join([*filter(None, values_of(given, "x-forwarded-for")), peer])
    return [*((name, value) for name, value in given if name.lower() != "x-forwarded-for"), ("X-Forwarded-For", chain)]


def without(headers: Iterable[tuple[str, str]], name: str) -> Headers:
    """Leave a header out; `name` in lower case."""
    return [(each, value) for each, value in headers if each.lower() != name]


def origin_form(method: str, target: str) -> tuple[str, str | None]:
    """Return the target as an origin server takes it, byte for byte, and the Host of an absolute form.

    Raises `ValueError` for a target of no known form (RFC 9112 §3.2).
    """
    if not _TARGET.fullmatch(target):
        raise ValueError("the target has characters that no URI has")
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target, None
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise ValueError("the target is neither a path nor an http URI without user and fragment")
    host, rest = found.groups()
    if not rest and method == "OPTIONS":
        return "*", host
    return rest if rest.startswith("/") else f"/{rest}", host


class _Asked(NamedTuple):
    """What a request's head says of how it is to be read."""

    method: str
    version: tuple[int, int]
    codings: list[str]
    lengths: list[str]
    values: list[str]


_REFUSALS: tuple[tuple[Callable[[_Asked], bool], int, str], ...] = (
    (lambda asked: asked.version not in {(1, 0), (1, 1)}, 505, "The sidecar speaks HTTP/1.1 and HTTP/1.0."),
    (lambda asked: asked.method == "CONNECT", 501, "The sidecar makes no tunnels."),
    (lambda asked: len(asked.lengths) > 1, 400, "The request states more than one Content-Length."),
    (
        lambda asked: bool(asked.codings and asked.lengths),
        400,
        "The request states a Content-Length and a Transfer-Encoding.",
    ),
    (
        lambda asked: bool(asked.codings) and asked.version == (1, 0),
        400,
        "HTTP/1.0 knows no Transfer-Encoding.",
    ),
    (
        lambda asked: bool(asked.codings) and asked.codings != ["chunked"],
        501,
        "The sidecar knows no Transfer-Encoding but chunked.",
    ),
    (
        lambda asked: any(_CONTROL.search(value) or _LONE.search(value) for value in asked.values),
        400,
        "A header holds control characters or is not UTF-8.",
    ),
)


def refusal(method: str, version: tuple[int, int], headers: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    """Return why a request that the parser let through must not be passed on: a status and a sentence, or None.

    What two parsers may read in two ways is refused: it is how requests are smuggled (RFC 9112 §11.2).
    """
    given = list(headers)
    codings = [value.lower() for value in values_of(given, "transfer-encoding")]
    asked = _Asked(method, version, codings, values_of(given, "content-length"), [value for _, value in given])
    return next(((status, detail) for holds, status, detail in _REFUSALS if holds(asked)), None)


def is_sound(status: int, reason: str, headers: Iterable[tuple[str, str]]) -> bool:
    """Return whether the head of an upstream's final answer can be passed on without being read in two ways."""
    given = list(headers)
    return (
        200 <= status < 600
        and not _CONTROL.search(reason)
        and all(_NAME.fullmatch(name) and not _CONTROL.search(value) for name, value in given)
        and [value.lower() for value in values_of(given, "transfer-encoding")] in ([], ["chunked"])
        and len(values_of(given, "content-length")) <= 1
        and not (values_of(given, "transfer-encoding") and values_of(given, "content-length"))
    )


def has_body(method: str, status: int) -> bool:
    """Return whether an answer has a body, which may be empty (RFC 9112 §6.3)."""
    return method != "HEAD" and status not in EMPTY_STATUSES
