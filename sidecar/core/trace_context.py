"""Which trace a request belongs to, as its headers say it (W3C Trace Context, level 1)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

MOST_MEMBERS = 32
"""Members of a tracestate (§3.3.1.1)."""
MOST_STATE = 512
"""Characters of a tracestate that are passed on at least (§3.3.1.5), and here at most."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ODD = frozenset("13579bdf")
"""The last digit of flags whose lowest bit is set."""
_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_MEMBER = re.compile(rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


class Trace(NamedTuple):
    """A place in a trace: what comes after it has it for a parent."""

    traceparent: str
    """As it came, or as it is told; empty in `UNSAMPLED`."""
    tracestate: str = ""
    detached: bool = False
    """What goes on from here is a trace of its own, which this one led to."""

    @property
    def trace_id(self) -> str:
        """32 digits."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 digits."""
        return self.traceparent[36:52]

    @property
    def is_sampled(self) -> bool:
        """Whether whoever is there records it, so that it is worth recording on."""
        return self.traceparent[54:55] in _ODD


UNSAMPLED = Trace("")
"""A trace that begins here and is recorded by nobody: it has no ids until somebody is told."""


def trace_of(traceparents: Sequence[str], tracestates: Sequence[str] = ()) -> Trace | None:
    """Return what the headers say, in the order in which they came; None: nothing, or what cannot be read (§4.3)."""
    if len(traceparents) != 1:
        return None
    traceparent = traceparents[0]
    if not _TRACEPARENT.fullmatch(traceparent[:55]):
        return None
    if len(traceparent) > 55 and (traceparent.startswith("00") or traceparent[55] != "-"):
        return None  # a later version may go on, after a dash (§3.2.4)
    return Trace(traceparent, _tracestate(tracestates))


def _tracestate(values: Sequence[str]) -> str:
    """Return one value for all; nothing where it cannot be read, and what comes first of one that is too long."""
    members = [member for value in values for each in value.split(",") if (member := each.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {each[1] for each in found if each is not None}
    if len(keys) < len(members) or len(members) > MOST_MEMBERS:
        return ""
    while len(state := ",".join(members)) > MOST_STATE:
        members.pop()
    return state
