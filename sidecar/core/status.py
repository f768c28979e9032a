"""What `/status` says, field by field: the source of its JSON Schema. Fields are added, never taken away.

Durations are seconds and end in `_seconds`, instants are RFC 3339 in UTC. Nothing in it is content, a user or a secret.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

Instant = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class State(StrEnum):
    """The sidecar as a whole."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"


class Level(StrEnum):
    """How bad a reason is: `error`, LearnFlow's users feel it now; `warning`, they do not yet."""

    ERROR = "error"
    WARNING = "warning"


class Reason(msgspec.Struct, frozen=True):
    """Why the sidecar is degraded."""

    kind: Annotated[str, Meta(description="What is wrong, in a word of a closed set: for alerts and scripts.")]
    level: Annotated[Level, Meta(description="`error`: LearnFlow's users feel it now; `warning`: not yet.")]
    title: Annotated[str, Meta(description="What is wrong, in a few words.")]
    sentence: Annotated[str, Meta(description="What is wrong, for people.")]
    action: Annotated[str, Meta(description="What to do about it.")]
    runbook: Annotated[str, Meta(description="The page in docs/runbooks, without its ending.")]
    since: Annotated[Instant | None, Meta(description="Since when; null where that is not known.")] = None


class LastError(msgspec.Struct, frozen=True):
    """What went wrong last, also where it is over."""

    error: Annotated[str, Meta(description="What it was.")]
    at: Annotated[Instant, Meta(description="When it was last met.")]


class Tls(msgspec.Struct, frozen=True):
    """TLS to the config service."""

    error: Annotated[str | None, Meta(description="What is wrong with the files as they are; the last good are used.")]
    handshake_error: Annotated[str | None, Meta(description="Why the last handshake failed.")]
    client_certificate_expires: Instant | None
    server_certificate_expires: Instant | None


class Token(msgspec.Struct, frozen=True):
    """The file of the token for the config service."""

    error: Annotated[str | None, Meta(description="What is wrong with the file as it is; the last good token is used.")]


class Upstream(msgspec.Struct, frozen=True):
    """The config service behind the sidecar."""

    url: str
    api: Annotated[str, Meta(description="`upstream.api`, as it is set.")]
    generation: Annotated[str | None, Meta(description="The generation in use; null as long as none was found.")]
    generation_seconds: Annotated[float | None, Meta(description="For how long it is in use.")]
    circuit: Annotated[str, Meta(description="closed, open or half-open.")]
    last_answer_at: Annotated[Instant | None, Meta(description="When it last answered, if only with a 4xx.")]
    failing_since: Annotated[
        Instant | None, Meta(description="The first failure since it last answered; null: the last call was answered.")
    ]
    last_error: LastError | None
    last_error_endpoint: Annotated[str | None, Meta(description="Which of its calls failed last.")]
    tls: Annotated[Tls | None, Meta(description="How it is reached by TLS; null: it is not.")]
    token: Annotated[Token | None, Meta(description="The token that is sent; null: there is none.")]


class Transition(msgspec.Struct, frozen=True):
    """A change of a circuit."""

    at: Instant
    to: Annotated[str, Meta(description="closed, open or half-open.")]


class Circuit(msgspec.Struct, frozen=True):
    """A circuit breaker."""

    name: Annotated[str, Meta(description="upstream, or redis.")]
    state: Annotated[str, Meta(description="closed, open or half-open.")]
    since: Annotated[Instant, Meta(description="Since when it is closed; or else, since when it is not.")]
    retry_in_seconds: Annotated[
        Seconds | None, Meta(description="Until a trial call may go out; null where a call may go out now.")
    ]
    transitions: Annotated[
        list[Transition], Meta(description="Oldest first; 100 at most, of which old failed trial calls go first.")
    ]
    held_for_seconds: Annotated[
        Seconds | None, Meta(description="For how much longer somebody holds it in this state; null: nobody does.")
    ] = None


class Counts(msgspec.Struct, frozen=True):
    """How many requests ended how."""

    requests: Annotated[Count, Meta(description="The sum of the next five.")]
    fresh: Annotated[Count, Meta(description="From fresh data.")]
    stale: Annotated[Count, Meta(description="From stale data.")]
    miss: Annotated[Count, Meta(description="After a call to the config service.")]
    bypass: Annotated[Count, Meta(description="Past the cache: as the policy or the rollout says.")]
    error: Annotated[Count, Meta(description="Without a prompt.")]
    covered: Annotated[Count, Meta(description="Those of `stale` for which the config service gave none in time.")]
    failed: Annotated[Count, Meta(description="Those of `error` that were a 5xx.")]
    hit_ratio: Annotated[
        float | None, Meta(description="fresh / (fresh + stale + miss), 0 to 1; null where none of these was.")
    ]


class Latency(msgspec.Struct, frozen=True):
    """How long answers took, from a request's headers on; within 15 % of the truth."""

    p50_seconds: Annotated[Seconds, Meta(description="Half of the answers came within this time.")]
    p95_seconds: Seconds
    p99_seconds: Seconds


class Minute(msgspec.Struct, frozen=True):
    """One minute's requests; a minute without any is left out."""

    at: Annotated[Instant, Meta(description="When it began.")]
    counts: Counts
    latency: Latency


class Requests(msgspec.Struct, frozen=True):
    """The requests for prompts of the last hour."""

    recent: Annotated[Counts, Meta(description="The minute that runs and the one before.")]
    last_hour: Counts
    latency: Latency
    slot_seconds: Annotated[Seconds, Meta(description="How long a slot of `minutes` is.")]
    slots: Annotated[Count, Meta(description="How many there are at most.")]
    minutes: Annotated[list[Minute], Meta(description="The slots in which something was asked, oldest first.")]


class NodeParity(msgspec.Struct, frozen=True):
    """Comparisons of a node's prompts with the service's own, since the start."""

    match: Count
    mismatch: Count
    set_aside_since: Annotated[
        Instant | None, Meta(description="Since when the service renders the node itself, because prompts differed.")
    ]


class Node(msgspec.Struct, frozen=True):
    """A node that was asked for since the start; `other` stands for all that the upstream never confirmed."""

    name: str
    recent: Annotated[Counts, Meta(description="The minute that runs and the one before.")]
    last_hour: Counts
    last_at: Annotated[Instant | None, Meta(description="When it was last asked for.")]
    last_outcome: Annotated[str | None, Meta(description="fresh, stale, miss, bypass or error.")]
    age_seconds: Annotated[
        Seconds | None, Meta(description="How old the data of its last prompt was when it was served.")
    ]
    covered_since: Annotated[
        Instant | None, Meta(description="Since when it is served stale because the config service gives none.")
    ]
    cover_left_seconds: Annotated[
        Seconds | None, Meta(description="Until the policy ends the use of the oldest stale data served of late.")
    ]
    rollout_ratio: Annotated[float, Meta(description="The share of users for whom it is rendered here, 0 to 1.")]
    parity: NodeParity
    not_admitted: Annotated[str | None, Meta(description="Why its template is left to the service.")]
    policy: Annotated[dict[str, Any], Meta(description="The policy in force for it, as one would write it.")]


class Parity(msgspec.Struct, frozen=True):
    """Comparisons with the service's own prompts."""

    set_aside: Annotated[
        dict[str, str], Meta(description="Nodes that were taken back: the start of the digest of the template.")
    ]


class Memory(msgspec.Struct, frozen=True):
    """The cache in memory."""

    entries: Count
    bytes: Count


class Group(msgspec.Struct, frozen=True):
    """The other sidecars with the same Redis."""

    connected: Annotated[bool, Meta(description="Whether their messages are heard.")]
    pending: Annotated[int, Meta(description="Own messages that wait to be said.")]


class Store(msgspec.Struct, frozen=True):
    """What survives a restart."""

    kind: str
    error: Annotated[str | None, Meta(description="What is wrong with it, in a word of a closed set.")]
    failing_since: Instant | None
    last_error: LastError | None
    entries: int | None
    bytes: int | None
    lost: Annotated[Count, Meta(description="Records that were not written, for want of a working store.")]
    path: Annotated[str | UnsetType, Meta(description="Of a file.")] = UNSET
    group: Annotated[Group | UnsetType, Meta(description="Of Redis.")] = UNSET


class TemplatesFile(msgspec.Struct, frozen=True):
    """The template file of today's service."""

    path: str
    nodes: Annotated[list[str], Meta(description="The nodes whose templates are rendered here.")]
    error: Annotated[str | None, Meta(description="What is wrong with the file as it is; the old ones are in force.")]
    failing_since: Instant | None


class Reload(msgspec.Struct, frozen=True):
    """The settings that were last read."""

    last_at: Annotated[Instant, Meta(description="When settings were last taken.")]
    problems: Annotated[list[str], Meta(description="Why the ones read since were not taken; the old are in force.")]
    failing_since: Instant | None
    waiting_for_restart: Annotated[list[str], Meta(description="Sections whose change waits for a restart.")]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a sidecar."""

    state: Annotated[State, Meta(description="`healthy`, or `degraded` for the reasons below.")]
    reasons: Annotated[list[Reason], Meta(description="The worst first; empty when healthy.")]
    version: str
    ready: bool
    warnings: Annotated[list[str], Meta(description="What is allowed by the settings, but not safe by itself.")]
    at: Annotated[Instant, Meta(description="Now.")]
    started_at: Instant
    upstream: Upstream
    circuits: list[Circuit]
    not_admitted: Annotated[dict[str, str], Meta(description="Nodes whose template is left to the service, and why.")]
    rollout: Annotated[dict[str, Any], Meta(description="As one would write it.")]
    parity: Parity
    cache: Memory
    warmup: Annotated[dict[str, Any] | UnsetType, Meta(description="The latest warm-up, where there was one.")] = UNSET
    store: Annotated[Store | UnsetType, Meta(description="Where there is one.")] = UNSET
    templates_file: Annotated[TemplatesFile | UnsetType, Meta(description="Where it is used.")] = UNSET
    reload: Reload
    nodes: Annotated[list[Node], Meta(description="In the order of their names; `metrics.max_nodes` at most.")]
    requests: Requests
    settings: Annotated[dict[str, Any], Meta(description="The settings in force as one would write them, masked.")]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the answer."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prompt-sidecar /status",
        **msgspec.json.schema(Status),
    }
