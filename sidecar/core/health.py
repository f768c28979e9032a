"""Whether all is well, and if not, why: rows of a table, over what `/status` says otherwise."""

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import dropwhile, takewhile
from typing import NamedTuple

from msgspec import UNSET

from sidecar.core.status import Circuit, Level, Minute, Reason, State, Status

MOST_NAMED = 3
"""Nodes that a sentence names; of the others it says how many they are."""
LONGEST_NAME = 60
"""Characters of a node's name that a sentence holds."""
MINUTE, HOUR, DAY = 60, 3600, 86_400
_SCALES = ((MINUTE, "min", 1, "s"), (HOUR, "h", MINUTE, "min"), (DAY, "d", HOUR, "h"))
WORDS = {
    "connect_error": "no connection",
    "connect_timeout": "no connection in time",
    "read_timeout": "no answer in time",
    "reset": "the connection broke",
    "server_error": "it answers with a 5xx",
    "too_many_requests": "it answers with 429",
    "garbage": "what it answers is no answer",
    "bad_document": "what it answers cannot be used",
}
"""Failures of a call, for people."""


class Found(NamedTuple):
    """What a row found."""

    sentence: str
    since: datetime | None = None


class Row(NamedTuple):
    """One reason: its names, how bad it is, how it is found, what to do."""

    kind: str
    title: str
    level: Level
    find: Callable[[Status], Found | None]
    action: str
    runbook: str


def judged(status: Status) -> tuple[State, list[Reason]]:
    """Return the state of the whole and the reasons, the worst first; of `status` all else is read."""
    reasons = [
        Reason(row.kind, row.level, row.title, found.sentence, row.action, row.runbook, found.since)
        for row in ROWS
        if (found := row.find(status)) is not None
    ]
    return State.DEGRADED if reasons else State.HEALTHY, reasons


def _failing(status: Status) -> Found | None:
    recent = status.requests.recent
    if not recent.failed:
        return None
    return Found(
        f"{_named(node.name for node in status.nodes if node.recent.failed)}: {recent.failed} of the last "
        f"{counted(recent.requests, 'request')} ended without a prompt; LearnFlow's users see errors.",
        _failing_since(status),
    )


def _failing_since(status: Status) -> datetime | None:
    """Return when requests began to fail: to the minute, or with the config service, whichever is later."""
    newest_first = reversed(status.requests.minutes)
    run = takewhile(_has_failed, dropwhile(lambda minute: not _has_failed(minute), newest_first))
    since = status.upstream.failing_since
    began = [minute.at for minute in run]
    return max((each for each in (*began[-1:], since) if each is not None), default=None)


def _has_failed(minute: Minute) -> bool:
    return minute.counts.failed > 0


def _not_ready(status: Status) -> Found | None:
    return None if status.ready else Found("The sidecar is starting or draining.")


def _circuit_open(status: Status) -> Found | None:
    circuit = _circuit(status, "upstream")
    if circuit is None or circuit.state == "closed" or circuit.held_for_seconds is not None:
        return None
    wait = circuit.retry_in_seconds
    trial = "a trial call may go out now" if wait is None else f"the next trial call in {duration(wait)}"
    return Found(
        f"The circuit to the config service is {circuit.state}{_because(status)}; {trial}.",
        status.upstream.failing_since or circuit.since,
    )


def _circuit_held(status: Status) -> Found | None:
    circuit = _circuit(status, "upstream")
    if circuit is None or circuit.held_for_seconds is None:
        return None
    left = duration(circuit.held_for_seconds)
    return Found(f"The circuit to the config service is held {circuit.state} by hand, for {left} more.", circuit.since)


def _upstream_failing(status: Status) -> Found | None:
    since = status.upstream.failing_since
    if since is None or status.upstream.circuit != "closed":
        return None
    return Found(f"Calls to the config service fail{_because(status)}.", since)


def _because(status: Status) -> str:
    error = status.upstream.last_error
    return "" if error is None else f" ({WORDS.get(error.error, error.error)})"


def _covered(status: Status) -> Found | None:
    covered = [node for node in status.nodes if node.cover_left_seconds is not None]
    if not covered:
        return None
    left = min(node.cover_left_seconds or 0.0 for node in covered)
    ages = [node.age_seconds for node in covered if node.age_seconds is not None]
    old = f", up to {duration(max(ages))} old," if ages else ""
    end = f"the policy allows it for {duration(left)} more" if left >= 1 else "the policy's time for it is over"
    return Found(
        f"{_named(node.name for node in covered)}: prompts are made from stale data{old} because the config service "
        f"gives none; {end}.",
        min((node.covered_since for node in covered if node.covered_since is not None), default=None),
    )


def _store(status: Status) -> Found | None:
    store = status.store
    if store is UNSET or store.error is None:
        return None
    return Found(
        f"The {store.kind} store is set aside ({store.error}): a restart now would lose what is kept.",
        store.failing_since,
    )


def _set_aside(status: Status) -> Found | None:
    aside = status.parity.set_aside
    if not aside:
        return None
    since = (node.parity.set_aside_since for node in status.nodes if node.name in aside)
    return Found(
        f"{_named(aside)}: prompts differed from the config service's own, which renders them now; they have no cover "
        "in an outage.",
        min((each for each in since if each is not None), default=None),
    )


def _templates_file(status: Status) -> Found | None:
    file = status.templates_file
    if file is UNSET or file.error is None:
        return None
    return Found(f"The template file was not taken, the old templates are in force. {file.error}.", file.failing_since)


def _reload(status: Status) -> Found | None:
    problems = status.reload.problems
    if not problems:
        return None
    more = f" And {len(problems) - 1} more." if len(problems) > 1 else ""
    return Found(
        f"New settings were not taken, the old ones are in force. {problems[0]}.{more}", status.reload.failing_since
    )


ROWS = (
    Row(
        "requests_failing",
        "Requests fail",
        Level.ERROR,
        _failing,
        "Repair the config service; if that takes long, raise policy.default.stale_if_error.",
        "availability",
    ),
    Row("not_ready", "Not ready", Level.ERROR, _not_ready, "Wait; if it lasts, look at the log.", "sidecar-down"),
    Row(
        "serving_stale",
        "An outage is being covered",
        Level.WARNING,
        _covered,
        "Repair the config service before that; do not restart sidecars without a store meanwhile.",
        "stale-served",
    ),
    Row(
        "circuit_held",
        "The circuit is held by hand",
        Level.WARNING,
        _circuit_held,
        "Let it go when the work at the config service is done: prompt-sidecar breaker auto.",
        "circuit-open",
    ),
    Row(
        "circuit_open",
        "The config service is not asked",
        Level.WARNING,
        _circuit_open,
        "Look at the config service first; the circuit closes by itself when trial calls succeed.",
        "circuit-open",
    ),
    Row(
        "upstream_failing",
        "The config service fails",
        Level.WARNING,
        _upstream_failing,
        "Look at the config service's own health and at the way to it.",
        "upstream-failing",
    ),
    Row(
        "parity_rollback",
        "Prompts differ from the service's own",
        Level.WARNING,
        _set_aside,
        "Compare template and options with the service's; then POST /admin/parity takes the node again.",
        "parity",
    ),
    Row(
        "store_aside",
        "The store is set aside",
        Level.WARNING,
        _store,
        "Repair the store; it is taken into use again by itself.",
        "store-degraded",
    ),
    Row(
        "templates_rejected",
        "New templates were not taken",
        Level.WARNING,
        _templates_file,
        "Put the file right; it is read again within two seconds.",
        "reload-failed",
    ),
    Row(
        "reload_failed",
        "New settings were not taken",
        Level.WARNING,
        _reload,
        "Put the settings right; the file is read again within two seconds.",
        "reload-failed",
    ),
)
"""The worst first."""


def _circuit(status: Status, name: str) -> Circuit | None:
    return next((each for each in status.circuits if each.name == name), None)


def _named(names: Iterable[str]) -> str:
    every = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in sorted(names)]
    more = len(every) - MOST_NAMED
    return ", ".join(every[:MOST_NAMED]) + (f" and {counted(more, 'more node')}" if more > 0 else "")


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, in the plural where it needs one."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def duration(seconds: float) -> str:
    """Write a duration as people say it, in two units at most: `45 s`, `12 min`, `1 h 5 min`, `2 d 3 h`."""
    whole = int(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    size, unit, below, small = _SCALES[(whole >= HOUR) + (whole >= DAY)]
    many, rest = divmod(whole, size)
    return f"{many} {unit} {rest // below} {small}" if rest >= below else f"{many} {unit}"
