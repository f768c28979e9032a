"""The arithmetic of the availability report: answers in, numbers and verdicts out."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

LATE_BY = 1.0
"""Seconds past the deadline before an answer is called late: the drill and a busy machine take some themselves."""


class Kind(StrEnum):
    """How a request ended."""

    FRESH = "fresh"
    STALE = "stale"
    REFUSED = "refused"  # an error, in time
    UNANSWERED = "unanswered"
    WRONG = "wrong"  # a prompt that the service would not have rendered


SERVED = frozenset({Kind.FRESH, Kind.STALE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request. `at`: seconds since the drill began; `age` of what was served, in seconds."""

    at: float
    user: int
    node: str
    kind: Kind
    seconds: float
    status: int | None = None
    age: float = 0.0
    is_newest: bool = False
    """Made with the service's newest settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the drill; instants as in `Asked`. `failure`: what broke it, or what it recovers from."""

    name: str
    began_at: float
    ended_at: float
    failure: str | None = None
    is_outage: bool = False
    circuit_opened_at: float | None = None
    """The first time in this phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What came of some requests; seconds. None where nothing was asked or served."""

    requests: int
    fresh: int
    stale: int
    refused: int
    unanswered: int
    wrong: int
    availability: float | None
    p50: float | None
    p99: float | None
    oldest: float | None
    statuses: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    """A phase, with the sidecar and without it."""

    name: str
    failure: str | None
    is_outage: bool
    seconds: float
    numbers: Numbers
    without: Numbers
    circuit_open_after: float | None = None
    fresh_again_after: float | None = None


class Verdict(StrEnum):
    """What came of a promise."""

    HELD = "held"
    BROKEN = "broken"
    NOT_REHEARSED = "not rehearsed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What was promised; seconds, and `objective` from 0 to 1."""

    deadline: float
    objective: float
    limit: Callable[[str], float]
    """The greatest age that a node's policy allows."""
    recovers_within: float


def numbers(asked: Sequence[Asked]) -> Numbers:
    """Count some requests."""
    kinds = Counter(each.kind for each in asked)
    times = sorted(each.seconds for each in asked)
    served = [each for each in asked if each.kind in SERVED]
    return Numbers(
        requests=len(asked),
        fresh=kinds[Kind.FRESH],
        stale=kinds[Kind.STALE],
        refused=kinds[Kind.REFUSED],
        unanswered=kinds[Kind.UNANSWERED],
        wrong=kinds[Kind.WRONG],
        availability=len(served) / len(asked) if asked else None,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
        oldest=max((each.age for each in served), default=None),
        statuses=dict(Counter(str(each.status) for each in asked if each.status is not None)),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that this share of all does not exceed (nearest rank)."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def within(phase: Phase, asked: Iterable[Asked]) -> list[Asked]:
    """Return the requests that were asked in a phase."""
    return [each for each in asked if phase.began_at <= each.at < phase.ended_at]


def fresh_again(since: float, asked: Iterable[Asked], pairs: Iterable[tuple[int, str]]) -> float | None:
    """Return after how many seconds each pair had had a prompt of the newest settings; None: some had not."""
    first: dict[tuple[int, str], float] = {}
    for each in asked:
        if each.at >= since and each.kind in SERVED and each.is_newest:
            pair, at = (each.user, each.node), each.at + each.seconds
            first[pair] = min(at, first.get(pair, at))
    ends = [first.get(pair) for pair in pairs]
    known = [each for each in ends if each is not None]
    return max(known) - since if known and len(known) == len(ends) else None


def report(
    phase: Phase, asked: Sequence[Asked], direct: Sequence[Asked], pairs: Sequence[tuple[int, str]]
) -> PhaseReport:
    """Sum a phase up; `direct`: the same requests, asked of the service itself."""
    ours, opened = within(phase, asked), phase.circuit_opened_at
    recovers = phase.failure is not None and not phase.is_outage
    return PhaseReport(
        name=phase.name,
        failure=phase.failure,
        is_outage=phase.is_outage,
        seconds=phase.ended_at - phase.began_at,
        numbers=numbers(ours),
        without=numbers(within(phase, direct)),
        circuit_open_after=None if opened is None else max(0.0, opened - phase.began_at),
        fresh_again_after=fresh_again(phase.began_at, ours, pairs) if recovers else None,
    )


def promises(phases: Sequence[PhaseReport], asked: Sequence[Asked], bounds: Bounds) -> dict[str, Verdict]:
    """Judge what was promised."""
    recoveries = [each for each in phases if each.failure is not None and not each.is_outage]
    late = [each for each in asked if each.kind is Kind.UNANSWERED or each.seconds > bounds.deadline + LATE_BY]
    outdated = [each for each in asked if each.kind in SERVED and each.age > bounds.limit(each.node) + LATE_BY]
    available = [each.numbers.availability for each in phases if each.numbers.availability is not None]
    return {
        "Every prompt is one that the service would have rendered.": _held(
            not any(each.kind is Kind.WRONG for each in asked)
        ),
        "No prompt is made from older data than its policy allows.": _held(not outdated),
        f"Every request is answered, if only with an error, within {bounds.deadline:g} s.": _held(not late),
        "After each outage, every prompt is fresh again.": _recovered(recoveries, bounds.recovers_within),
        f"In each phase, {percents(bounds.objective)} of the requests get their prompt.": _held(
            all(each >= bounds.objective for each in available)
        ),
    }


def percents(share: float) -> str:
    """Write a share with as many decimals as tell it from all: 99.95 % is not 100 %."""
    exact = share * 100
    return f"{exact:.2f}".rstrip("0").rstrip(".") + " %" if share == 1 or exact < 99.995 else "99.99 %"


def _held(holds: bool) -> Verdict:  # noqa: FBT001 — what it is made from
    return Verdict.HELD if holds else Verdict.BROKEN


def _recovered(recoveries: Sequence[PhaseReport], within_seconds: float) -> Verdict:
    missed = [each for each in recoveries if each.fresh_again_after is None]
    if any(each.seconds >= within_seconds for each in missed):
        return Verdict.BROKEN
    return Verdict.NOT_REHEARSED if missed or not recoveries else Verdict.HELD
