"""What happened, as telemetry is told it: never content, settings or the user (contract §4 promise 1).

`node` is everywhere a node that the upstream confirmed, or None; every other string is one of a closed set, but for
`FetchFailed.detail`, which names lines and constructs of a template.
"""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from sidecar.core.errors import FailureKind


class Outcome(StrEnum):
    """How a request ended (contract §6)."""

    FRESH = "fresh"
    STALE = "stale"
    MISS = "miss"
    BYPASS = "bypass"
    ERROR = "error"


class RequestOutcome(msgspec.Struct, frozen=True, gc=False):
    """A request was answered; a struct, because each request makes one."""

    node: str | None
    outcome: Outcome
    seconds: float
    render_seconds: float
    age: float | None
    """Seconds since the upstream confirmed the data, where a prompt was served."""
    detail: str | None
    """The reason of an error or of a stale answer."""
    status: int


class FreshHit(RequestOutcome, frozen=True, gc=False):
    """A request was answered from fresh data: most are, and who does not care for them need not be told."""


class Coalesced(NamedTuple):
    """A request shares another's fetch."""

    node: str | None


class UpstreamAttempt(NamedTuple):
    """A call to the upstream ended; `result`: `ok`, `not_modified`, a `FailureKind` or `crashed`."""

    endpoint: str
    result: str
    seconds: float


class Retried(NamedTuple):
    """An attempt is made again, because of this."""

    reason: FailureKind


class BreakerChanged(NamedTuple):
    """A circuit has a new state: closed, open or half-open."""

    breaker: str
    to: str


class FetchFailed(NamedTuple):
    """A fetch gave no usable document."""

    node: str | None
    kind: FailureKind
    detail: str


class Evicted(NamedTuple):
    """The upstream contradicted an entry."""

    node: str | None


class RenderedEmpty(NamedTuple):
    """Placeholders became nothing, because the upstream's own options say so."""

    node: str | None
    names: tuple[str, ...]


class NotRendered(NamedTuple):
    """A prompt could not be rendered; `reason`: required, undefined, output_limit, time_limit or error."""

    node: str | None
    reason: str


class Crashed(NamedTuple):
    """A request or a background task ended by an error that nobody foresaw."""

    what: str
    error: BaseException


Event = (
    RequestOutcome
    | FreshHit
    | Coalesced
    | UpstreamAttempt
    | Retried
    | BreakerChanged
    | FetchFailed
    | Evicted
    | RenderedEmpty
    | NotRendered
    | Crashed
)
