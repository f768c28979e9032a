"""What happened, as telemetry is told it: never content, settings or the user (contract §4 promise 1).

`node` is everywhere a node that the upstream confirmed, or None; every other string is one of a closed set, but for the
`detail` of a template (its lines and constructs), what is wrong with a file, and the start of a template's digest.
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
    render_seconds: float | None
    """None: it was not rendered here."""
    age: float | None
    """Seconds since the upstream confirmed the data, where a prompt was served."""
    detail: str | None
    """The reason of an error or of a stale answer."""
    status: int
    usable_until: float | None = None
    """The clock's instant at which the policy ends the use of the stale data that was served."""


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
    endpoint: str = "prompt-data"


class Evicted(NamedTuple):
    """The upstream contradicted an entry."""

    node: str | None


class Written(NamedTuple):
    """A change of settings passed through, so what was kept of them holds no more; `result`: answered or lost."""

    result: str


class Invalidated(NamedTuple):
    """Entries were made void by hand, or by another sidecar.

    `source`: admin or group; `scope`: user, node, all, or gap where something went unheard.
    """

    source: str
    scope: str


class WarmedUp(NamedTuple):
    """One pair of a warm-up was dealt with; `result`: stored, fresh or failed."""

    result: str


class WarmUpEnded(NamedTuple):
    """A warm-up has ended; `state`: done, stopped or cancelled; how many of which result, and why some failed."""

    state: str
    results: dict[str, int]
    reasons: dict[str, int]


class GenerationChanged(NamedTuple):
    """Another generation of the config service is in use from now on."""

    to: str
    before: str | None
    configured: bool = False
    """The settings say so: no news to whoever wrote them."""


class UpstreamFilesRead(NamedTuple):
    """Files that the way to the upstream is made of were read again; `error`: why the old ones stay in force.

    `what`: tls or token. The error names keys and paths, and nothing of what is in a file.
    """

    what: str
    error: str | None


class CertificateSeen(NamedTuple):
    """A certificate is in use; `whose`: client (the sidecar's own) or server; `expires_at`: Unix seconds."""

    whose: str
    expires_at: float


class NotAdmitted(NamedTuple):
    """A template is left to the service's own rendering, because the gate does not admit it."""

    node: str
    detail: str


class TemplatesLoaded(NamedTuple):
    """The template file was read; `error` names what is wrong with it, and then the old templates stay."""

    nodes: int
    error: str | None


class ParityChecked(NamedTuple):
    """The service's own answer was compared with ours.

    `result`: match, mismatch, outdated (ours was right when it was fetched), failed or skipped; what differs is told by
    place and lengths, never by content.
    """

    node: str | None
    result: str
    template: str | None = None
    part: str | None = None
    position: int = 0
    our_length: int = 0
    their_length: int = 0


class RolledBack(NamedTuple):
    """A node went back to the service's own rendering, or (`back` False) was taken from there again."""

    node: str
    back: bool
    reason: str


class Reloaded(NamedTuple):
    """The settings were read again; `at`: Unix time in seconds."""

    at: float
    problems: tuple[str, ...]
    """Why they were not taken; nothing, if they were."""
    restart: tuple[str, ...]
    """The keys whose change waits for a restart."""


class StoreLookup(NamedTuple):
    """The store behind the memory was asked; `tier`: which kind it is; `result`: hit or miss."""

    tier: str
    result: str


class RecordDropped(NamedTuple):
    """What the store had could not be used; `reason` is one of a closed set."""

    reason: str


class StoreChanged(NamedTuple):
    """The store works (`error` None), or is in trouble: serving goes on without it."""

    error: str | None


class RenderedEmpty(NamedTuple):
    """Placeholders became nothing, because the upstream's own options say so."""

    node: str | None
    names: tuple[str, ...]


class NotRendered(NamedTuple):
    """A prompt could not be rendered; `reason`: required, undefined, output_limit, time_limit or error."""

    node: str | None
    reason: str


class Proxied(NamedTuple):
    """A request passed through, or was meant to; never its path, which holds user ids.

    `method`: a known one or `other`; `result`: 2xx to 5xx as the upstream answered, a `FailureKind`, refused, overload,
    client_gone (or a shutdown that waits no longer), client_timeout or crashed.
    """

    method: str
    result: str
    seconds: float


class Refused(NamedTuple):
    """A client was turned away for how it asked.

    `reason`: host, cross_site, token (an admin call), slow_head or slow_reader.
    """

    reason: str


class Shed(NamedTuple):
    """A request was turned away because there are too many.

    `reason`: connections, ops_connections, bodies or waiting.
    """

    reason: str


class SpansEnded(NamedTuple):
    """Spans left the queue to the collector, or never got in.

    `result`: exported, queue_full, refused (by the collector) or unsent (when the sidecar stopped).
    """

    result: str
    spans: int


class CollectorChanged(NamedTuple):
    """The collector of traces takes them (`error` None), or does not; serving goes on as ever.

    `lost`: spans, since this was told last.
    """

    error: str | None
    lost: int


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
    | Written
    | Invalidated
    | WarmedUp
    | WarmUpEnded
    | GenerationChanged
    | UpstreamFilesRead
    | CertificateSeen
    | NotAdmitted
    | TemplatesLoaded
    | ParityChecked
    | RolledBack
    | Reloaded
    | StoreLookup
    | RecordDropped
    | StoreChanged
    | RenderedEmpty
    | NotRendered
    | Proxied
    | Refused
    | Shed
    | SpansEnded
    | CollectorChanged
    | Crashed
)
