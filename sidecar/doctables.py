"""The tables of docs/architecture.md and docs/events.md, drawn from the code that obeys them."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from sidecar.core.decision import STALE_TABLE
from sidecar.core.errors import FAILURE_TABLE
from sidecar.core.freshness import State
from sidecar.telemetry.log_events import EVENTS


def stale_table() -> str:
    """Return what is done before a fetch, by strategy, state and circuit."""
    rows = [
        f"| `{strategy}` | {'any' if len(set(rows.values())) == 1 else state} | {row.closed} | {row.open} |"
        for strategy, rows in STALE_TABLE.items()
        for state, row in (rows.items() if len(set(rows.values())) > 1 else [(State.ABSENT, rows[State.ABSENT])])
    ]
    return "\n".join(
        [
            "| strategy | entry | circuit closed | open, or half-open with the trial call taken |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def failure_table() -> str:
    """Return what a failure means for retry, breaker, cache and client."""
    head = "| failure | what happened | retry? | breaker | stale may serve? | evicts? | our status |"
    rows = [
        f"| `{kind}` | {rule.meaning} | {_yes(on=rule.retry)} | {rule.verdict} | {_yes(on=rule.stale)} "
        f"| {_yes(on=rule.evicts)} | {rule.status or 'as answered'} |"
        for kind, rule in FAILURE_TABLE.items()
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def events_table() -> str:
    """Return the events of the log."""
    rows = [
        f"| `{name}` | {told.levels} | {_names(told.fields)} | {told.when} | {_linked(told.to_do)} "
        f"| {_repeats(told.kind)} |"
        for name, told in EVENTS.items()
    ]
    head = "| event | level | fields | when | what to do | repeats: the same |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _names(fields: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in fields)


def _linked(text: str) -> str:
    """Return a sentence with its runbooks as links."""
    return re.sub(r"([Ss])ee ([a-z-]+)", r"\1ee [\2](runbooks/\2.md)", text)


def _repeats(kind: Collection[str] | None) -> str:
    return "each is written" if kind is None else _names(kind) or "event"


def _yes(*, on: bool) -> str:
    return "yes" if on else "no"


TABLES: Mapping[str, Callable[[], str]] = {
    "stale table": stale_table,
    "failure table": failure_table,
    "events": events_table,
}


def filled(text: str) -> str:
    """Return a document with each `<!-- NAME -->…<!-- end -->` holding its table as it is now."""
    for name, table in TABLES.items():
        text = re.sub(rf"(?s)(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)", table().replace("\\", r"\\"), text)
    return text
