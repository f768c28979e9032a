"""The status as tables for a terminal, which nothing in it can trick: what is not printable is spelt out."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import UNSET
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.core.health import counted, duration
from sidecar.core.status import LastError, Level, Node, Status

LONGEST = 60
"""Characters of a name or a message in a table."""
STYLES = {Level.ERROR: "bold red", Level.WARNING: "bold yellow", None: "bold green"}
NONE = "-"
MIB = 1024 * 1024


def rendered(status: Status) -> RenderableType:
    """Return the status as tables."""
    return Group(*_head(status), Text(), _summary(status), Text(), _nodes(status), Text(), _parts(status))


def _head(status: Status) -> Iterator[Text]:
    worst = status.reasons[0].level if status.reasons else None
    title = status.reasons[0].title if status.reasons else "All is well"
    up = duration((status.at - status.started_at).total_seconds())
    headline = f"{status.state.value.upper()}: {title}"
    yield Text.assemble((headline, STYLES[worst]), f"  (version {status.version}, up {up})")
    for reason in status.reasons:
        since = "" if reason.since is None else f" Since {_when(reason.since, status.at)}."
        yield Text.assemble(("- ", STYLES[reason.level]), printable(reason.sentence), since)
        yield Text(f"  {reason.action} Runbook: docs/runbooks/{reason.runbook}.md", style="dim")


def _summary(status: Status) -> Text:
    hour, latency, circuit = status.requests.last_hour, status.requests.latency, status.circuits[0]
    took = f", p50 {_milliseconds(latency.p50_seconds)}, p95 {_milliseconds(latency.p95_seconds)}"
    held = duration((status.at - circuit.since).total_seconds())
    return Text(
        f"Last hour: {counted(hour.requests, 'request')}, hit rate {_percent(hour.hit_ratio)}, {hour.stale:,} stale, "
        f"{counted(hour.error, 'error')}{took if hour.requests else ''}. Circuit: {circuit.state} for {held}."
    )


def _table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def _nodes(status: Status) -> Table:
    numbers = ("Age", "Cover left", "Requests", "Hit rate", "Stale", "Errors")
    table = _table("Node", "Last answer", *numbers, "Policy", "Rollout", "Parity", right=numbers)
    for node in status.nodes:
        hour, parity, said = node.last_hour, node.parity, _said(node)
        table.add_row(
            Text(short(node.name)),
            Text(said[0], style=said[1]),
            NONE if node.age_seconds is None else duration(node.age_seconds),
            NONE if node.cover_left_seconds is None else duration(node.cover_left_seconds),
            f"{hour.requests:,}",
            _percent(hour.hit_ratio),
            f"{hour.stale:,}",
            f"{hour.error:,}",
            Text(f"{node.policy['strategy']}, ttl {node.policy['ttl']}, if error +{node.policy['stale_if_error']}"),
            f"{node.rollout_ratio:.0%}",
            f"{parity.match:,} match, {parity.mismatch:,} differ" if parity.match + parity.mismatch else NONE,
        )
    return table


def _said(node: Node) -> tuple[str, str]:
    if node.parity.set_aside_since is not None:
        return "taken back", "yellow"
    if node.not_admitted is not None:
        return "not admitted", "yellow"
    if node.last_outcome == "error":
        return "error", "red"
    if node.cover_left_seconds is not None:
        return "stale, covered", "yellow"
    return node.last_outcome or NONE, ""


class _Part(NamedTuple):
    name: str
    state: str
    since: datetime | None
    error: LastError | None
    more: str
    is_bad: bool = False


def _parts(status: Status) -> Table:
    table = _table("Part", "State", "Since", "Last error", "More")
    for part in _each_part(status):
        error = part.error
        table.add_row(
            part.name,
            Text(part.state, style="yellow" if part.is_bad else "green"),
            NONE if part.since is None else _when(part.since, status.at),
            Text("none" if error is None else f"{short(error.error)}, {_clock(error.at, status.at)}"),
            Text(printable(part.more)),
        )
    return table


def _each_part(status: Status) -> Iterator[_Part]:
    upstream, store, file, reload = status.upstream, status.store, status.templates_file, status.reload
    fails, answers = upstream.failing_since is not None, upstream.last_answer_at is not None
    yield _Part(
        "config service",
        "failing" if fails else "answers" if answers else "not asked yet",
        upstream.failing_since,
        upstream.last_error,
        f"{upstream.url}, {upstream.generation or 'generation not known yet'}",
        is_bad=fails,
    )
    cache = status.cache
    yield _Part("memory", "works", None, None, f"{cache.entries:,} entries, {cache.bytes / MIB:,.1f} MiB")
    if store is not UNSET:
        aside = store.error is not None
        lost = f"{counted(store.lost, 'record')} lost"
        state = "set aside" if aside else "works"
        yield _Part(f"store ({store.kind})", state, store.failing_since, store.last_error, lost, is_bad=aside)
    if file is not UNSET:
        yield _taken("template file", file.error, file.failing_since, None, file.path)
    waiting = ", ".join(reload.waiting_for_restart)
    more = f"waiting for a restart: {waiting}" if waiting else "nothing waits for a restart"
    yield _taken("settings", "; ".join(reload.problems) or None, reload.failing_since, reload.last_at, more)


def _taken(name: str, problem: str | None, since: datetime | None, taken_at: datetime | None, more: str) -> _Part:
    if problem is None or since is None:
        return _Part(name, "taken", taken_at, None, more)
    return _Part(name, "not taken", since, LastError(problem, since), more, is_bad=True)


def printable(text: str) -> str:
    """Return a text that can do nothing to a terminal: what is not printable is spelt out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape", "replace").decode() for each in text)


def short(text: str) -> str:
    """Return as much of a text as a table holds, printable."""
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def _percent(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.1%}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def _clock(instant: datetime, now: datetime) -> str:
    at = instant.astimezone()
    return f"{at:%H:%M:%S}" if at.date() == now.astimezone().date() else f"{at:%Y-%m-%d %H:%M:%S}"


def _when(instant: datetime, now: datetime) -> str:
    return f"{_clock(instant, now)} ({duration((now - instant).total_seconds())})"
