"""How an answer was made, and how that is said in Cache-Status (RFC 9211) and Age (RFC 9111 §5.1)."""

from enum import StrEnum
from math import floor

import msgspec

CACHE_NAME = "prompt-sidecar"


class Forward(StrEnum):
    """Why the upstream was asked (RFC 9211 §2.2)."""

    MISS = "miss"
    STALE = "stale"
    REQUEST = "request"
    BYPASS = "bypass"


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """Where an answer came from; a struct, because each answer makes one, at a quarter of a named tuple's cost."""

    hit: bool = False
    """Answered without asking the upstream; excludes `forward` (RFC 9211 §2.1)."""
    forward: Forward | None = None
    """Why the upstream was asked, where it was."""
    forward_status: int | None = None
    """The status that the upstream sent, where it sent one that did not serve."""
    stored: bool = False
    collapsed: bool = False
    ttl: float | None = None
    """Seconds of freshness left; negative when stale. None where no entry answered, or one just fetched did."""
    age: float = 0.0
    """Seconds since the upstream confirmed the data."""
    detail: str | None = None
    usable_for: float | None = None
    """Seconds until the policy ends all use of the data. None where that is of no interest: it is fresh."""


def cache_status(p: Provenance) -> str:
    """Return the value of Cache-Status; `hit` and `fwd` exclude each other (RFC 9211 §2.1)."""
    if p.hit and p.detail is None and p.ttl is not None:  # the hot path
        return f"{CACHE_NAME}; hit; ttl={floor(p.ttl)}"
    parts = [CACHE_NAME]
    if p.hit:
        parts.append("hit")
    elif p.forward is not None:
        parts.append(f"fwd={p.forward.value}")
        if p.forward_status is not None:
            parts.append(f"fwd-status={p.forward_status}")
        if p.stored:
            parts.append("stored")
        if p.collapsed:
            parts.append("collapsed")
    if p.ttl is not None:
        parts.append(f"ttl={floor(p.ttl)}")
    if p.detail is not None:
        parts.append(f"detail={p.detail}")
    return "; ".join(parts)
