"""The drill's report, for people and for machines, and its progress."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sidecar.demo.drill.plan import Plan, not_rehearsed
from sidecar.demo.drill.rehearsal import Rehearsal, Show
from sidecar.demo.drill.tally import (
    Bounds,
    Numbers,
    PhaseReport,
    Verdict,
    numbers,
    percents,
    promises,
    report,
    within,
)

COLUMNS = 80
"""Where nobody looks at a terminal, and at most on one."""
NOTHING = "-"
COLOURS = {Verdict.HELD: "green", Verdict.BROKEN: "red", Verdict.NOT_REHEARSED: "yellow"}


class Result(NamedTuple):
    """What came of a drill, or of its beginning."""

    plan: Plan
    phases: list[PhaseReport]
    by_node: dict[str, Numbers]
    """In the outages."""
    promises: dict[str, Verdict]
    is_whole: bool

    @property
    def passed(self) -> bool:
        """Whether it went to its end, and no promise was broken, the objective included."""
        return self.is_whole and Verdict.BROKEN not in self.promises.values()

    @classmethod
    def of(cls, done: Rehearsal, *, is_whole: bool) -> "Result":
        """Sum up what has been measured."""
        plan = done.plan
        phases = [report(each, done.asked, done.direct, plan.pairs) for each in done.phases]
        outages = [each for phase in done.phases if phase.is_outage for each in within(phase, done.asked)]
        bounds = Bounds(
            deadline=plan.settings.deadline,
            objective=plan.objective,
            limit=plan.limit,
            recovers_within=plan.recovers_within,
        )
        by_node = {node: numbers([each for each in outages if each.node == node]) for node in plan.nodes}
        return cls(plan, phases, by_node, promises(phases, done.asked, bounds), is_whole)


def print_json(result: Result) -> None:
    """Print the report for machines: seconds, and shares from 0 to 1."""
    plan = result.plan
    document = {
        "passed": result.passed,
        "whole": result.is_whole,
        "objective": plan.objective,
        "rehearsed": in_words(plan),
        "not_rehearsed": not_rehearsed(plan),
        "phases": [_rounded(asdict(each)) for each in result.phases],
        "nodes": {
            node: {"oldest_allowed": plan.limit(node), "in_outages": _rounded(asdict(each))}
            for node, each in result.by_node.items()
        },
        "promises": result.promises,
    }
    print(json.dumps(document, indent=2))  # noqa: T201 — a command speaks


def print_report(result: Result) -> None:
    """Print the report for people; in colour only on a terminal."""
    console = Console(highlight=False)
    console.width = min(console.width, COLUMNS) if console.is_terminal else COLUMNS
    console.print("[bold]Outage drill[/]" + ("" if result.is_whole else " [yellow](interrupted)[/]"))
    for line in in_words(result.plan):
        console.print(line)
    for line in not_rehearsed(result.plan):
        console.print(line, style="yellow")
    console.print()
    console.print(_phases(result.phases))
    if any(each.is_outage for each in result.phases):
        console.print(_outages(result.phases))
        console.print(_nodes(result))
    for promise, verdict in result.promises.items():
        console.print(f"[{COLOURS[verdict]}]{_said(verdict)}[/]  {promise}", soft_wrap=True)


def in_words(plan: Plan) -> list[str]:
    """Say what was rehearsed, under which policy, and what was not."""
    many = f"{len(plan.failures)} outage{'s' if len(plan.failures) > 1 else ''}"
    said = [
        f"Settings: {plan.source}. Policies, deadline, retries and circuit breaker are as they are set there.",
        f"Rehearsed: {many} of {span(plan.duration)} ({', '.join(plan.failures)}).",
        f"Traffic: {plan.rate} requests a second, {plan.users} users, {len(plan.nodes)} nodes.",
    ]
    lifetime = "no lifetime" if plan.stated_ttl is None else f"a lifetime of {span(plan.stated_ttl)}"
    said.append(f"The service: {plan.generation.value}; it states {lifetime}.")
    if (longest := max(map(plan.limit, plan.nodes))) > plan.duration:
        said.append(f"The policy lets prompts be {span(longest)} old at most; its end was not rehearsed.")
    else:
        said.append(
            f"An outage outlasts the policy, which ends after {span(longest)}: then errors are what it promises."
        )
    windows = {node: plan.windows(node) for node in plan.nodes}
    if fresh := [node for node, each in windows.items() if each.fresh_for > plan.duration]:
        said.append(f"Fresh for longer than an outage, so that the service was hardly needed: {', '.join(fresh)}.")
    elif any(each.revalidate_for > plan.duration for each in windows.values()):
        longest = max(each.revalidate_for for each in windows.values())
        said.append(
            f"Up to {span(longest)} (ttl + stale_while_revalidate) no request waits for the service; "
            "a longer --duration rehearses what comes then."
        )
    return said


def span(seconds: float) -> str:
    """Write a time as people say it: `15m 2s`."""
    said, left = [], round(seconds, 3)
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        whole, left = divmod(left, size)
        said += [f"{whole:g}{unit}"] if whole else []
    return " ".join([*said, *([f"{round(left, 3):g}s"] if left or not said else [])])


def _phases(phases: list[PhaseReport]) -> Table:
    table = _table(
        "What LearnFlow would have seen",
        "phase", "asked", "fresh", "stale", "refused", "lost", "available", "p50 ms", "p99 ms", "oldest",
    )  # fmt: skip
    for each in phases:
        n = each.numbers
        table.add_row(
            each.name, str(n.requests), str(n.fresh), str(n.stale), str(n.refused), str(n.unanswered + n.wrong),
            _share(n.availability), _ms(n.p50), _ms(n.p99), _seconds(n.oldest),
            style="bold" if each.is_outage else None,
        )  # fmt: skip
    return table


def _outages(phases: list[PhaseReport]) -> Table:
    table = _table(
        "The outages, and what was available without the sidecar",
        "failure",
        "lasted",
        "circuit open after",
        "fresh again after",
        "without it",
    )
    after = {each.failure: each.fresh_again_after for each in phases if not each.is_outage}
    for each in phases:
        if each.is_outage:
            opened, again = each.circuit_open_after, after.get(each.failure)
            bare = _share(each.without.availability)
            table.add_row(each.name, _seconds(each.seconds), _seconds(opened), _seconds(again), bare)
    return table


def _nodes(result: Result) -> Table:
    table = _table("The nodes, in all outages", "node", "asked", "available", "oldest", "allowed")
    for node, n in result.by_node.items():
        allowed = span(result.plan.limit(node))
        table.add_row(node, str(n.requests), _share(n.availability), _seconds(n.oldest), allowed)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    return table


def _said(verdict: Verdict) -> str:
    return (verdict.upper() if verdict is Verdict.BROKEN else verdict).ljust(len(Verdict.NOT_REHEARSED))


def _share(share: float | None) -> str:
    return NOTHING if share is None else percents(share)


def _ms(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds * 1000:,.0f}"


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.1f} s"


def _rounded(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _rounded(each) for name, each in document.items()}
    return round(document, 4) if isinstance(document, float) else document


@contextmanager
def progress(plan: Plan, *, quiet: bool) -> Iterator[Show]:
    """Yield what shows how far it is: a bar on a terminal, a line a phase elsewhere, nothing for machines."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
        return
    if not console.is_terminal:
        told: list[str] = []

        def line(drill: Rehearsal) -> None:
            if told[-1:] != [drill.under_way]:
                told.append(drill.under_way)
                print(f"{len(drill.asked):,} answers so far; now: {drill.under_way}", file=sys.stderr)  # noqa: T201

        yield line
        return
    usual_recovery = min(plan.recovery, plan.settings.breaker.reset_timeout)
    expected = plan.baseline + len(plan.failures) * (plan.duration + usual_recovery)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, console=console) as bar:
        task, began_at = bar.add_task("starting", total=expected, more=""), time.monotonic()

        def move(drill: Rehearsal) -> None:
            done, more = time.monotonic() - began_at, f"{len(drill.asked):,} answers"
            bar.update(task, description=drill.under_way, completed=min(done, expected), more=more)

        yield move
