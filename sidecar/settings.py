"""The settings: one frozen dataclass per concern, with the kind and the reason of its default beside every field.

Seconds are floats, sizes are bytes, fractions are 0 to 1. The same metadata checks a value, documents it and shows it;
a new key is one field.
"""
# ruff: noqa: RUF009 # setting() and section() return a dataclasses.field(); nothing mutable is made

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sidecar.core.policy import Policy
from sidecar.core.prompt import Profile, Undefined
from sidecar.core.rollout import RolloutRule
from sidecar.core.routes import RoutePattern
from sidecar.core.servers import RedisServers, RedisUrl, Word
from sidecar.core.units import (
    Address,
    BaseUrl,
    Choice,
    Either,
    FilePath,
    HostName,
    Kind,
    ListenAddress,
    Names,
    SocketPath,
    Switch,
    Whole,
    duration,
    percent,
    setting,
    size,
)

__all__ = [
    "Address",
    "BreakerSettings",
    "CacheSettings",
    "DrainSettings",
    "Key",
    "KeyPath",
    "LimitSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "MetricsSettings",
    "OnUpstreamFailure",
    "OpsSettings",
    "PolicySettings",
    "ProxySettings",
    "RedisMode",
    "RedisServers",
    "RedisSettings",
    "RenderSettings",
    "RetrySettings",
    "RolloutSettings",
    "Settings",
    "ShadowSettings",
    "StoreKind",
    "StoreSettings",
    "TlsSettings",
    "TlsVersion",
    "TracingSettings",
    "UpstreamApi",
    "UpstreamSettings",
    "WarmUpSettings",
    "contradictions",
    "effective",
    "keys",
]

KeyPath = tuple[str, ...]
S = TypeVar("S")
KIB = 1024
MIB = 1024 * KIB


DRAIN_FOR_REQUESTS = 0.75
"""The share of `drain.timeout` that requests in flight may take."""


class UpstreamApi(StrEnum):
    """Which generation of the config service is behind us (contract §2)."""

    AUTO = "auto"
    PROMPT_DATA = "prompt-data"
    PLACEHOLDERS = "placeholders"
    PASSTHROUGH = "passthrough"


class OnUpstreamFailure(StrEnum):
    """What a request outside the rollout gets when the config service does not answer it."""

    FAIL = "fail"
    LOCAL = "local"


STATIC_READS = ("/api/v1/profiles*", "/api/v1/placeholders*", "/api/v1/users/{id}/placeholders")
"""What LearnFlow's bot reads to draw its screens."""


class LogLevel(StrEnum):
    """The least important event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line is written."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


def section(of: type[S]) -> S:
    """Declare a field that holds settings of its own."""
    made: S = field(default_factory=of)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsSettings:
    """The ops listener: liveness, readiness, metrics, status and admin calls."""

    listen: Address = setting(
        Address("127.0.0.1", 9102),
        ListenAddress(),
        "closed to others until opened; 0.0.0.0:9102 in a pod, for Prometheus and the kubelet",
    )
    admin_token_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "admin calls then need its content as a bearer token; without it they are taken on loopback only",
    )
    max_connections: int = setting(
        64,
        Whole(1, 10_000),
        "open connections to this listener, apart from LearnFlow's, so that probes and scrapes are answered when that "
        "is full; its other limits are those of `limits`",
    )


class TlsVersion(StrEnum):
    """The oldest version of TLS that is spoken."""

    V1_2 = "1.2"
    V1_3 = "1.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """TLS to the config service, where `upstream.url` is an https:// one; its certificate is always verified."""

    ca_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "whom to trust; `null`: whom the system trusts. Read again when it changes, as the two below",
    )
    cert_file: Path | None = setting(
        None, Either("null", FilePath()), "the sidecar's own certificate with its chain, for mutual TLS"
    )
    key_file: Path | None = setting(
        None, Either("null", FilePath()), "the private key that belongs to cert_file, without a passphrase"
    )
    server_name: str | None = setting(
        None,
        Either("null", HostName()),
        "the name that the service's certificate must be for; `null`: the host of upstream.url",
    )
    min_version: TlsVersion = setting(
        TlsVersion.V1_2, Choice(TlsVersion), "older versions are broken; `1.3` where the service is known to speak it"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """The config service behind the sidecar."""

    url: str = setting(
        "http://prompt-config-service:8002", BaseUrl(), "the name and port of the service in LearnFlow's deployments"
    )
    api: UpstreamApi = setting(
        UpstreamApi.AUTO, Choice(UpstreamApi), "`auto` finds out what the service offers, and notices an upgrade"
    )
    templates_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "prompts.yaml, the file that the service itself reads, mounted beside the sidecar and watched for changes; "
        "needed where the service has no prompt-data endpoint",
    )
    detect_interval: float = setting(
        30.0,
        duration("100ms", "1d"),
        "how often `auto` looks again which generation answers: an upgrade is noticed about this late, "
        "a roll-back at once",
    )
    max_in_flight: int = setting(
        64, Whole(1, 10_000), "requests out at the upstream at once (bulkhead): a slow one must not hold every socket"
    )
    max_response: int = setting(
        2 * MIB, size("1KiB", "1GiB"), "a response beyond it is garbage; templates are a few KiB"
    )
    connect_timeout: float = setting(
        0.5, duration("1ms", "1m"), "part of per_try_timeout; inside a cluster a connection takes a few ms, or fails"
    )
    token_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "its content is the bearer token of the sidecar's own calls; read again when it changes, and after a 401",
    )
    forward_authorization: bool = setting(
        False,  # noqa: FBT003 — a default, as every other key's
        Switch(),
        "a prompt is then asked for with the Authorization of LearnFlow's request, and what is kept is kept apart by "
        "it; off, that header is read by nobody",
    )
    tls: TlsSettings = section(TlsSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """Repeated attempts at the upstream, inside the deadline."""

    attempts: int = setting(3, Whole(1, 10), "the first one included; a third still fits into the deadline")
    per_try_timeout: float = setting(
        1.0, duration("1ms", "10m"), "how long one attempt may take, connecting included; at most the deadline"
    )
    backoff: float = setting(
        0.1, duration("0s", "1m"), "the first pause is at most this long (full jitter), doubled for each further one"
    )
    max_backoff: float = setting(1.0, duration("0s", "1m"), "no pause is longer; a quarter of the deadline")
    budget: float = setting(
        0.2, percent(), "retries per request over time; more would multiply the load on a service in trouble"
    )
    budget_reserve: int = setting(
        10, Whole(0, 10_000), "retries that may always be made before the budget counts: a quiet sidecar can retry too"
    )
    min_attempt: float = setting(
        0.05, duration("0s", "1m"), "no attempt is begun with less time left: it could only fail, and cost the upstream"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """The circuit breaker before the upstream."""

    fail_max: int = setting(5, Whole(1, 1000), "failures in a row that open the circuit: more than one request's worth")
    reset_timeout: float = setting(
        10.0, duration("1ms", "1h"), "how long the circuit stays open before a trial call: about a restart's time"
    )
    success_threshold: int = setting(
        2, Whole(1, 1000), "trial calls that must succeed before the circuit closes: one may be luck"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """How old the data of a prompt may be: a default, and what differs for a node."""

    default: Policy = section(Policy)
    nodes: Mapping[str, Policy] = field(
        default_factory=dict,
        metadata={
            "each": Policy,
            "over": "default",
            "reason": "a node's own keys, laid over the default; node names as the config service spells them",
            "example": "security_guard_detection: {strategy: network-first, stale_if_error: 0s}",
        },
    )

    def for_node(self, node: str) -> Policy:
        """Return the node's policy, or the default where it has none of its own."""
        return self.nodes.get(node, self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """How a template becomes a prompt, and how much it may take."""

    profile: Profile = setting(
        Profile.STRICT, Choice(Profile), "what a template may use; strict is what prompts need, and keeps them bounded"
    )
    autoescape: bool | None = setting(
        None,
        Either("auto", Switch()),
        "`auto`: as the upstream's generation renders, so that prompts stay the same bytes",
    )
    undefined: Undefined | None = setting(
        None,
        Either("auto", Choice(Undefined)),
        "what an unknown placeholder becomes; `auto`: as the upstream's generation does",
    )
    max_template: int = setting(
        256 * KIB, size("1B", "64MiB"), "a longer template is refused when it arrives; real ones are a few KiB"
    )
    max_output: int = setting(
        4 * MIB, size("1B", "1GiB"), "a longer prompt is an error: beyond any model's context, so a template gone wrong"
    )
    max_iterations: int = setting(
        100_000, Whole(1, 100_000_000), "rounds of all loops of one rendering; a template cannot hold the pod up"
    )
    max_time: float = setting(
        0.1, duration("1ms", "1m"), "one rendering takes some 10 µs; beyond this the template has gone wrong"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """Who gets prompts rendered here; all others get the config service's own."""

    percent: float = setting(
        1.0,
        percent(bare=True),
        "share of users, by a stable hash of the user's id, so that a user stays in while the share grows; "
        "0 is the kill switch: the service renders everything, two seconds after the file's change",
    )
    nodes: frozenset[str] | None = setting(
        None, Either("*", Names()), "only these nodes are rendered here; `*`: all of them"
    )
    exclude: frozenset[str] = setting(frozenset(), Names(), "these nodes are never rendered here; beats `nodes`")
    on_upstream_failure: OnUpstreamFailure = setting(
        OnUpstreamFailure.FAIL,
        Choice(OnUpstreamFailure),
        "what requests outside the rollout get when the service does not answer: an error as without a sidecar, or a "
        "prompt from here; `local` keeps their static parts at hand, at one more call per user now and then",
    )

    @property
    def rule(self) -> RolloutRule:
        """What the core decides by."""
        return RolloutRule(fraction=self.percent, nodes=self.nodes, exclude=self.exclude)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSettings:
    """Comparing the config service's own prompts with ours, behind the answers."""

    sample_rate: float = setting(
        0.0, percent(), "share of the requests that are compared; each costs the service a rendering"
    )
    max_in_flight: int = setting(
        4, Whole(1, 1000), "comparisons at once, further ones are skipped: requests come first"
    )
    max_mismatches: int = setting(
        3,
        Whole(1, 10_000),
        "differences of a node within the window that take it back to the service's own rendering: one may be a change "
        "that happened between two calls",
    )
    window: float = setting(600.0, duration("1s", "30d"), "how long a difference counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What is passed on as it comes: every request that is neither for a prompt nor a static read."""

    response_timeout: float = setting(
        25.0,
        duration("10ms", "1h"),
        "until the head of the answer, and between two pieces of a body; below the 30 s that LearnFlow's bot waits",
    )
    max_in_flight: int = setting(
        64, Whole(1, 10_000), "requests passed on at once, apart from those for prompts, which they must not hold up"
    )
    queue_timeout: float = setting(
        2.0, duration("0s", "1m"), "how long one waits for a place before it is refused with 503"
    )
    max_queue: int = setting(
        128, Whole(0, 10_000), "requests that wait for a place at once; one more is refused with 503 at once"
    )
    add_token: bool = setting(
        False,  # noqa: FBT003 — a default, as every other key's
        Switch(),
        "a request that brings no Authorization goes out with the token of upstream.token_file: whoever reaches "
        "`listen` then acts with the sidecar's rights",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """The cache in memory; whichever bound is met first evicts the least recently used."""

    max_entries: int = setting(100_000, Whole(1, 100_000_000), "one per user and node: 5,000 users of 20 nodes each")
    max_bytes: int = setting(
        64 * MIB,
        size("1KiB", "1GiB"),
        "some 95,000 entries of a shared vocabulary; fits into a pod limited to 256 MiB, with the rest",
    )


class StoreKind(StrEnum):
    """Where entries are kept behind the memory."""

    NONE = "none"
    FILE = "file"
    REDIS = "redis"


class RedisMode(StrEnum):
    """How Redis is set up."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """Redis or Valkey, for `store.kind: redis`: what one sidecar fetched serves all of its group."""

    url: RedisServers = setting(
        RedisServers(is_tls=False, hosts=(("127.0.0.1", 6379),)),
        RedisUrl(),
        "with rediss:// by TLS; several hosts for Sentinel or Cluster, of which any one is enough to begin with",
    )
    mode: RedisMode = setting(
        RedisMode.SINGLE, Choice(RedisMode), "`sentinel` and `cluster` live through the loss of a server"
    )
    sentinel_service: str = setting("mymaster", Word(), "what the sentinels call the servers")
    username: str | None = setting(None, Either("null", Word()), "an ACL user; `null`: the default user")
    password_file: Path | None = setting(
        None, Either("null", FilePath()), "read again at each new connection, so that a password can be changed"
    )
    sentinel_password_file: Path | None = setting(
        None, Either("null", FilePath()), "for the sentinels, where they ask for one"
    )
    tls_ca_file: Path | None = setting(
        None, Either("null", FilePath()), "whom to trust; `null`: whom the system trusts. The server's name is checked"
    )
    tls_cert_file: Path | None = setting(
        None, Either("null", FilePath()), "the sidecar's own certificate, for mutual TLS"
    )
    tls_key_file: Path | None = setting(
        None, Either("null", FilePath()), "the private key that belongs to tls_cert_file"
    )
    prefix: str = setting(
        "prompt-sidecar", Word(), "before every key; sidecars with the same prefix and upstream.url are one group"
    )
    timeout: float = setting(
        0.05, duration("1ms", "1s"), "a request waits no longer for Redis; a healthy one answers in one or two ms"
    )
    max_connections: int = setting(16, Whole(1, 1000), "connections of this sidecar, and calls at once")
    fail_max: int = setting(5, Whole(1, 1000), "failures in a row after which Redis is not asked for a while")
    reset_timeout: float = setting(1.0, duration("1ms", "1h"), "how long it is not asked then, until one call is tried")
    reconnect: float = setting(
        0.5, duration("10ms", "1m"), "the longest pause before the group's messages are subscribed to again"
    )
    loss_window: float = setting(
        1.0,
        duration("0s", "1m"),
        "after a gap in the subscription nothing from before is trusted for this long, unless confirmed: twice "
        "`reconnect`, so that the others have said again what Redis may have lost",
    )
    gather: float = setting(
        0.1,
        duration("0s", "500ms"),
        "the pause after messages were read, so that a storm is read in few pieces; 400ms for thousands of pods",
    )
    remember: float = setting(
        900.0,
        duration("0s", "1d"),
        "own invalidations are said again if Redis lost its data meanwhile; as stale_if_error",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What survives a restart: the same static parts as in memory, behind it, off the hot path."""

    kind: StoreKind = setting(
        StoreKind.FILE,
        Choice(StoreKind),
        "a pod that restarts in the middle of an outage answers from its last good copy",
    )
    path: Path = setting(
        Path(".sidecar/cache.db"),
        FilePath(),
        "on a volume that outlives the container (an emptyDir does), and of this sidecar alone",
    )
    max_bytes: int = setting(
        256 * MIB,
        size("1MiB", "1000GiB"),
        "of the file; beyond it the least recently used are dropped; an entry takes 1 to 3 KiB",
    )
    encryption_key_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "records are then encrypted (AES-256-GCM): a key a line, 32 bytes as base64; the first encrypts, all are "
        "known, so that two of them rotate. Read at the start",
    )
    signing_key_file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "records are then signed, so that whoever can write to Redis cannot plant a template; keys as above",
    )
    redis: RedisSettings = section(RedisSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpSettings:
    """Warm-up: at start, by `prompt-sidecar warm`, or by `POST /admin/warm`."""

    file: Path | None = setting(
        None,
        Either("null", FilePath()),
        "a list of users and nodes to warm up at start: user_id,node_name, or JSON lines",
    )
    from_store: bool = setting(
        False,  # noqa: FBT003 — a default, as every other key's
        Switch(),
        "warm up at start what the store has: it is taken into memory, and refreshed where it is stale",
    )
    min_ratio: float = setting(
        0.0, percent(), "the share of that list that must be warm before the sidecar is ready; 0%: it does not wait"
    )
    timeout: float = setting(
        60.0,
        duration("1s", "1h"),
        "ready at the latest after this, whatever is warm: an outage must not keep a pod away",
    )
    rate: int = setting(500, Whole(1, 100_000), "pairs a second at most")
    concurrency: int = setting(
        4, Whole(1, 100), "calls at once at most; none goes out while live traffic fills half of them"
    )
    batch: int = setting(
        100, Whole(1, 500), "pairs in one batch call, where the config service has it; 1: single calls"
    )
    batch_timeout: float = setting(
        10.0,
        duration("100ms", "5m"),
        "how long one batch call may take: it brings a hundred times what a single one does",
    )
    patience: float = setting(
        60.0, duration("0s", "1h"), "a job is stopped when no call but trial calls could go out for this long"
    )
    max_pairs: int = setting(1_000_000, Whole(1, 100_000_000), "pairs in one list; about 30 bytes each in memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What a request to the sidecar may weigh."""

    max_body: int = setting(4 * MIB, size("1KiB", "1GiB"), "a larger body is refused with 413; a context is some KiB")
    max_bodies: int = setting(
        32 * MIB,
        size("1KiB", "16GiB"),
        "of all bodies that are being read, and again of those whose requests wait for the config service; one more is "
        "answered with 503, so that memory stays bounded. Bodies that come with their head, and hits, are not counted",
    )
    max_waiting: int = setting(
        768,
        Whole(1, 100_000),
        "requests that wait for the config service at once; one more gets stale data, or 503 at once. Three quarters "
        "of `max_connections`: the rest is for hits, which wait for nothing",
    )
    max_header: int = setting(
        16 * KIB, size("1KiB", "1MiB"), "one header line, and the request line; a larger one is refused with 431"
    )
    max_headers: int = setting(100, Whole(1, 10_000), "header lines of one request; more are refused with 431")
    max_connections: int = setting(
        1024,
        Whole(1, 100_000),
        "open connections to LearnFlow's listener; one more is answered with 503 at once. LearnFlow opens one for each "
        "attempt, and a prompt at hand takes well under 1 ms; the process must be allowed as many open files, and some",
    )
    head_timeout: float = setting(
        5.0,
        duration("10ms", "10m"),
        "from connecting until the head of the first request is whole; then 408. A client that gives up after 5 s has "
        "gone by then",
    )
    keep_alive: float = setting(
        75.0,
        duration("10ms", "1d"),
        "how long a connection stays open for the head of the next request; longer than the pauses of a client that "
        "asks every minute, else it meets a connection that just closes",
    )
    write_timeout: float = setting(
        30.0, duration("10ms", "1h"), "a client that takes nothing of its answer for so long is cut off"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSettings:
    """The end, which SIGTERM begins. `delay` and `timeout` must fit into the grace that a pod or a unit has."""

    delay: float = setting(
        0.0,
        duration("0s", "10m"),
        "how long requests are still accepted after readiness went: for whoever routes by it to notice; LearnFlow in "
        "the same pod does not",
    )
    idle_grace: float = setting(
        1.0,
        duration("0s", "1m"),
        "a connection that was quiet for so long is ended; until then a request on it is still answered, as its client "
        "may have sent it already",
    )
    timeout: float = setting(
        8.0,
        duration("100ms", "1h"),
        "the whole drain after the delay: three quarters for the requests in flight, which is more than the deadline, "
        "the rest for what is behind them and for the store",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The log, on standard error."""

    level: LogLevel = setting(
        LogLevel.INFO, Choice(LogLevel), "`debug` adds lines for what goes well, and sums nothing up"
    )
    format: LogFormat = setting(
        LogFormat.AUTO, Choice(LogFormat), "`auto`: console on a terminal, else JSON, one object per line"
    )
    repeat_window: float = setting(
        10.0,
        duration("0s", "1h"),
        "after the first line of a kind its repeats are counted for so long, and then are one line; 0s: each is a line",
    )
    max_repeat_window: float = setting(
        300.0,
        duration("1s", "1d"),
        "each window is twice the one before while repeats come, up to this, so that hours of trouble stay readable",
    )
    max_lines: int = setting(
        10_000,
        Whole(1, 1_000_000),
        "lines that wait for a reader that has stopped, some 3 MB; further ones are dropped and counted",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """The metrics at `/metrics`."""

    max_nodes: int = setting(
        100,
        Whole(1, 10_000),
        "node names kept as label values, further ones count as `other`: each costs dozens of series",
    )


def _has_extra() -> bool:
    try:
        return all(map(find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # of what they lie in
        return False


class CollectorUrl(BaseUrl):
    """An URL to send spans to, where what sends them is installed."""

    allowed = f"{BaseUrl.allowed}, where the extra is installed: pip install 'prompt-sidecar[otel]'"

    def parse(self, text: str) -> str:
        """Check the URL; one without a path is that of a collector, which takes traces at /v1/traces."""
        url = super().parse(text)
        if not _has_extra():
            raise ValueError(self.allowed)
        return url if "/" in url.partition("://")[2] else f"{url}/v1/traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """Spans of requests, sent to a collector by OTLP over HTTP; needs the extra `otel`."""

    endpoint: str | None = setting(
        None,
        Either("null", CollectorUrl()),
        "such as http://127.0.0.1:4318/v1/traces; without one, a request's traceparent is passed on and no more",
    )
    sample_ratio: float = setting(
        0.1,
        percent(),
        "the share of the traces that begin here; a request that comes with a traceparent brings its own decision",
    )
    max_queue: int = setting(
        2048, Whole(1, 100_000), "spans that wait for the collector, about 1 KiB each; more are dropped and counted"
    )
    timeout: float = setting(
        2.0,
        duration("10ms", "30s"),
        "for one message to the collector, and for the last ones when the sidecar stops; no request waits for it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set."""

    listen: Address = setting(
        Address("127.0.0.1", 8002),
        ListenAddress(),
        "where LearnFlow looks for the config service (PROMPT_SERVICE_URL); only its own pod may ask",
    )
    listen_unix: Path | None = setting(
        None,
        Either("null", SocketPath()),
        "LearnFlow's listener at a Unix socket, too: for this user and group alone",
    )
    listen_beyond_loopback: bool = setting(
        False,  # noqa: FBT003 — a default, as every other key's
        Switch(),
        "`true`: `listen` may be an address that others can reach. Whoever does reads and changes the settings of any "
        "user, unencrypted: so only where a network policy, or a proxy with TLS, stands before it",
    )
    allowed_hosts: frozenset[str] = setting(
        frozenset(),
        Names(),
        "further host names under which a client may ask for the sidecar; known are localhost, every IP address, and "
        "the names in `listen` and `upstream.url`. Others get 421: a page in a browser could have its own name resolve "
        "to this machine (DNS rebinding). Pages of these hosts may read and change things; those of other sites get "
        "403",
    )
    ops: OpsSettings = section(OpsSettings)
    upstream: UpstreamSettings = section(UpstreamSettings)
    deadline: float = setting(
        4.0,
        duration("10ms", "10m"),
        "every request is answered within it; below the 5 s that LearnFlow waits",
    )
    retry: RetrySettings = section(RetrySettings)
    breaker: BreakerSettings = section(BreakerSettings)
    policy: PolicySettings = section(PolicySettings)
    render: RenderSettings = section(RenderSettings)
    rollout: RolloutSettings = section(RolloutSettings)
    shadow: ShadowSettings = section(ShadowSettings)
    routes: Mapping[str, Policy] = field(
        default_factory=lambda: dict.fromkeys(STATIC_READS, Policy()),
        metadata={
            "each": Policy,
            "over": "policy.default",
            "names": RoutePattern.parse,
            "reason": "reads that are kept by policy, so that the bot's screens work in an outage: a path, where "
            "`{name}` is one segment and a `*` at the end anything; each has the default policy's keys, and its own "
            "over them. Everything else is passed on and never kept",
            "example": '"/api/v1/profiles*": {stale_if_error: 1d}',
        },
    )
    proxy: ProxySettings = section(ProxySettings)
    cache: CacheSettings = section(CacheSettings)
    store: StoreSettings = section(StoreSettings)
    warmup: WarmUpSettings = section(WarmUpSettings)
    limits: LimitSettings = section(LimitSettings)
    drain: DrainSettings = section(DrainSettings)
    log: LogSettings = section(LogSettings)
    metrics: MetricsSettings = section(MetricsSettings)
    tracing: TracingSettings = section(TracingSettings)


class Key(NamedTuple):
    """One key of the settings."""

    path: KeyPath  # "*" stands for any name
    kind: Kind[Any]
    default: str
    reason: str


ANY = "*"


def keys(of: Any = None, at: KeyPath = ()) -> Iterator[Key]:
    """Walk over every key, in the order of the file."""
    of = Settings() if of is None else of
    for each in fields(of):
        here = (*at, each.name)
        value = getattr(of, each.name)
        if "kind" in each.metadata:
            kind = each.metadata["kind"]
            yield Key(here, kind, kind.format(value), each.metadata["reason"])
        elif "each" in each.metadata:
            yield from keys(each.metadata["each"](), (*here, ANY))
        else:
            yield from keys(value, here)


def effective(settings: Any) -> dict[str, Any]:
    """Return the settings as one would write them: nested, values in their units, numbers and booleans as such."""
    return {each.name: _written(getattr(settings, each.name), each.metadata.get("kind")) for each in fields(settings)}


def _written(value: Any, kind: Kind[Any] | None) -> Any:
    if kind is not None:
        return value if isinstance(value, bool) or isinstance(kind, Whole) else kind.format(value)
    if is_dataclass(value):
        return effective(value)
    return {name: effective(each) for name, each in value.items()}


class Contradiction(NamedTuple):
    """Two keys, each allowed, that cannot both hold."""

    path: KeyPath
    other: KeyPath
    allowed: str  # of the first, in words; the other key and its value follow


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Find what each key's own kind cannot see."""
    policies: dict[KeyPath, Policy] = {("policy", "default"): settings.policy.default}
    policies |= {("policy", "nodes", name): policy for name, policy in settings.policy.nodes.items()}
    deadline, retry = settings.deadline, settings.retry
    ordered: list[tuple[KeyPath, float | None, KeyPath, float]] = [
        (("retry", "per_try_timeout"), retry.per_try_timeout, ("deadline",), deadline),
        (("retry", "min_attempt"), retry.min_attempt, ("deadline",), deadline),
        (("retry", "backoff"), retry.backoff, ("retry", "max_backoff"), retry.max_backoff),
        (("limits", "max_body"), settings.limits.max_body, ("limits", "max_bodies"), settings.limits.max_bodies),
    ]
    for at, policy in policies.items():
        ordered.append(((*at, "network_timeout"), policy.network_timeout, ("deadline",), deadline))
        ordered.append(((*at, "ttl"), policy.ttl, (*at, "max_ttl"), policy.max_ttl))
    for name, policy in settings.routes.items():
        ordered.append((("routes", name, "network_timeout"), policy.network_timeout, ("deadline",), deadline))
        ordered.append((("routes", name, "ttl"), policy.ttl, ("routes", name, "max_ttl"), policy.max_ttl))
    for path, value, other, most in ordered:
        if value is not None and value > most:
            yield Contradiction(path, other, "at most")
    if settings.upstream.api is UpstreamApi.PLACEHOLDERS and settings.upstream.templates_file is None:
        yield Contradiction(("upstream", "templates_file"), ("upstream", "api"), "the path of prompts.yaml, with")
    if not (settings.listen.is_loopback or settings.listen_beyond_loopback):
        loopback = "a loopback host:port such as 127.0.0.1:8002 or [::1]:8002, with"
        yield Contradiction(("listen",), ("listen_beyond_loopback",), loopback)
    yield from _of_the_upstream(settings)
    yield from _of_the_store(settings.store)
    if deadline > settings.drain.timeout * DRAIN_FOR_REQUESTS:
        yield Contradiction(("deadline",), ("drain", "timeout"), "at most three quarters of")
    if settings.ops.listen.overlaps(settings.listen):
        yield Contradiction(("ops", "listen"), ("listen",), "an address apart from")


def _of_the_upstream(settings: Settings) -> Iterator[Contradiction]:
    upstream, tls, store = settings.upstream, settings.upstream.tls, settings.store
    if not upstream.url.startswith("https://"):
        for each in fields(tls):
            if getattr(tls, each.name) != each.default:
                yield Contradiction(
                    ("upstream", "tls", each.name), ("upstream", "url"), "the default, or an https:// URL in"
                )
    if (tls.cert_file is None) != (tls.key_file is None):
        absent, given = ("key_file", "cert_file")[:: 1 if tls.key_file is None else -1]
        yield Contradiction(("upstream", "tls", absent), ("upstream", "tls", given), "a file, with")
    if settings.proxy.add_token and upstream.token_file is None:
        yield Contradiction(("proxy", "add_token"), ("upstream", "token_file"), "false, or a file in")
    if settings.proxy.add_token and settings.listen_beyond_loopback:
        yield Contradiction(("proxy", "add_token"), ("listen_beyond_loopback",), "false, with")
    has_key = store.encryption_key_file is not None or store.signing_key_file is not None
    if upstream.forward_authorization and store.kind is not StoreKind.NONE and not has_key:
        yield Contradiction(
            ("upstream", "forward_authorization"),
            ("store", "signing_key_file"),
            "false, or store.kind none, or a key to hash credentials with in store.encryption_key_file or",
        )


def _of_the_store(store: StoreSettings) -> Iterator[Contradiction]:
    if store.encryption_key_file is not None and store.signing_key_file is not None:
        both = ("store", "signing_key_file"), ("store", "encryption_key_file")
        yield Contradiction(*both, "null, as what is encrypted cannot be forged either, with")
    redis = store.redis
    if (redis.tls_cert_file is None) != (redis.tls_key_file is None):
        absent, given = ("tls_key_file", "tls_cert_file")[:: 1 if redis.tls_key_file is None else -1]
        yield Contradiction(("store", "redis", absent), ("store", "redis", given), "a file, with")
    if redis.mode is RedisMode.CLUSTER and redis.url.database:
        yield Contradiction(("store", "redis", "url"), ("store", "redis", "mode"), "database 0, with")
    if redis.mode is RedisMode.SINGLE and len(redis.url.hosts) > 1:
        yield Contradiction(("store", "redis", "url"), ("store", "redis", "mode"), "one host, with")
