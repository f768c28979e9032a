"""What can go wrong at the upstream, and the table that retry, breaker and cache obey (contract §3, §4 promise 7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from sidecar.core.cache_status import Provenance


class FailureKind(StrEnum):
    """Why a fetch gave no usable document."""

    CONNECT_ERROR = "connect_error"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_ERROR = "tls_error"
    READ_TIMEOUT = "read_timeout"
    RESET = "reset"
    SERVER_ERROR = "server_error"
    TOO_MANY_REQUESTS = "too_many_requests"
    GONE = "gone"
    REFUSED = "refused"
    GARBAGE = "garbage"
    BAD_DOCUMENT = "bad_document"
    NOT_ADMITTED = "not_admitted"
    ENDPOINT_GONE = "endpoint_gone"
    CIRCUIT_OPEN = "circuit_open"
    OVERLOAD = "overload"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """What the circuit breaker is told after an attempt."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class FailureRule:
    """One row of the failure table."""

    meaning: str
    retry: bool
    """May another attempt inside the deadline help?"""
    verdict: Verdict
    """What it says of the upstream's health."""
    stale: bool
    """May stale data stand in? Only for what is no answer."""
    evicts: bool
    """Does it contradict what is kept?"""
    status: int | None
    """Our status; None: the upstream's own answer is passed on."""


# A 4xx is an answer: the upstream is well, and says no. 429 is none: it says "not now", which speaks neither for nor
# against its health. A single bad document is the document's fault: counting it would close the door to all others.
FAILURE_TABLE: Mapping[FailureKind, FailureRule] = MappingProxyType(
    {
        FailureKind.CONNECT_ERROR: FailureRule(
            "no connection (refused, no route, no such host)",
            retry=True,
            verdict=Verdict.FAILURE,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.CONNECT_TIMEOUT: FailureRule(
            "no connection in time", retry=True, verdict=Verdict.FAILURE, stale=True, evicts=False, status=504
        ),
        FailureKind.TLS_ERROR: FailureRule(
            "no connection that can be trusted: the TLS handshake failed (expired, another name, unknown authority)",
            retry=True,
            verdict=Verdict.FAILURE,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.READ_TIMEOUT: FailureRule(
            "no answer in time", retry=True, verdict=Verdict.FAILURE, stale=True, evicts=False, status=504
        ),
        FailureKind.RESET: FailureRule(
            "the connection broke before the answer was whole",
            retry=True,
            verdict=Verdict.FAILURE,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.SERVER_ERROR: FailureRule(
            "5xx", retry=True, verdict=Verdict.FAILURE, stale=True, evicts=False, status=503
        ),
        FailureKind.TOO_MANY_REQUESTS: FailureRule(
            "429", retry=True, verdict=Verdict.NEUTRAL, stale=True, evicts=False, status=503
        ),
        FailureKind.GONE: FailureRule(
            "400, 404, 410 or 422: there is no such prompt",
            retry=False,
            verdict=Verdict.SUCCESS,
            stale=False,
            evicts=True,
            status=None,
        ),
        FailureKind.REFUSED: FailureRule(
            "any other 4xx, such as 401 or 403 (a secret may be rotating)",
            retry=False,
            verdict=Verdict.SUCCESS,
            stale=False,
            evicts=False,
            status=None,
        ),
        FailureKind.GARBAGE: FailureRule(
            "an answer that is none: not JSON, broken HTTP, an unexpected status",
            retry=False,
            verdict=Verdict.FAILURE,
            stale=True,
            evicts=False,
            status=502,
        ),
        FailureKind.BAD_DOCUMENT: FailureRule(
            "JSON of the wrong shape, an answer too large, a template that is empty or does not compile",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=502,
        ),
        FailureKind.NOT_ADMITTED: FailureRule(
            "a template that the gate does not admit: the service is asked to render it itself",
            retry=False,
            verdict=Verdict.SUCCESS,
            stale=True,
            evicts=False,
            status=502,
        ),
        FailureKind.ENDPOINT_GONE: FailureRule(
            "404 or 405 for the endpoint itself: the service was rolled back, or something else answers in its place",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.CIRCUIT_OPEN: FailureRule(
            "the circuit is open: the upstream was not asked",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.OVERLOAD: FailureRule(
            "too many requests wait for the upstream already: it was not asked",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=503,
        ),
        FailureKind.DEADLINE: FailureRule(
            "the deadline ran out before an attempt could end",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=504,
        ),
        FailureKind.CANCELLED: FailureRule(
            "we gave up (shutdown): says nothing of the upstream",
            retry=False,
            verdict=Verdict.NEUTRAL,
            stale=True,
            evicts=False,
            status=503,
        ),
    }
)

DIVERTING = frozenset({FailureKind.NOT_ADMITTED, FailureKind.ENDPOINT_GONE})
"""Failures of one way to a prompt while another may be open; only if that fails too may stale data stand in."""

GONE_STATUSES = frozenset({400, 404, 410, 422})
"""Client errors that say "there is no such prompt", and so contradict a kept one (contract §4 promise 7)."""


def kind_of_status(status: int) -> FailureKind:
    """Return the failure that an HTTP status other than 200 and an expected 304 is (RFC 9110 §15)."""
    if status == 429:
        return FailureKind.TOO_MANY_REQUESTS
    if status in GONE_STATUSES:
        return FailureKind.GONE
    if 400 <= status < 500:
        return FailureKind.REFUSED
    if 500 <= status < 600:
        return FailureKind.SERVER_ERROR
    return FailureKind.GARBAGE


@dataclass(frozen=True, slots=True)
class Answer:
    """An authoritative answer of the upstream, passed on as it came."""

    status: int
    body: bytes
    content_type: str


class UpstreamFailure(Exception):
    """A fetch that gave no usable document."""

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.answer = answer

    @property
    def rule(self) -> FailureRule:
        """The failure's row of the table."""
        return FAILURE_TABLE[self.kind]


class PromptError(Exception):
    """A request that ends without a prompt: an RFC 9457 problem, or the upstream's own answer.

    `status`: HTTP status; `detail`: a sentence for people; `retry_after`: seconds or None; `missing`: the names of the
    placeholders that were not given; `answer`: what to pass on unchanged, instead of a problem; `provenance`: what was
    asked on the way; `reason`: one of a closed set, for logs and metrics; `upstream_answer`: what the upstream said
    that was no answer, for those to whom even that is to be passed on.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        reason: str,
        retry_after: float | None = None,
        missing: tuple[str, ...] = (),
        answer: Answer | None = None,
        upstream_answer: Answer | None = None,
        provenance: Provenance = Provenance(),  # noqa: B008 — a frozen value
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after
        self.missing = missing
        self.answer = answer
        self.upstream_answer = upstream_answer
        self.provenance = provenance
