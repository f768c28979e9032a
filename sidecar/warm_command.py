"""`prompt-sidecar warm`: a list is sent in parts to a running sidecar, whose memory it is that has to be warm."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sidecar.ops_client import OpsError, call
from sidecar.pairs import Wrong, read_pairs
from sidecar.warm_resume import Noted, Resume, ResumeError

PART = 1_000
"""Pairs sent as one job, fewer where the sidecar takes no more: what an interruption may have to do again."""
POLL_SECONDS = 0.2
LINE_SECONDS = 2.0
"""Between two lines where nobody looks at a terminal."""
MOST_TOLD = 20
"""Wrong lines and failures that are told one by one."""

TOO_LARGE = 413

Pair = tuple[int, str]
Show = Callable[[Counter[str], int | None], None]
"""Shows the results so far, of so many pairs."""


class Exit(IntEnum):
    """Exit codes."""

    WARM = 0
    SOME_FAILED = 1
    USAGE = 2
    STOPPED = 3
    """Before the end: the sidecar or the config service is away."""
    INTERRUPTED = 130


class ListError(Exception):
    """There is nothing to warm up; a sentence."""


class Wanted(NamedTuple):
    """What the command line asks for."""

    pairs: Sequence[Pair] | None
    """None: what the store has."""
    ops_url: str
    token_file: Path | None
    rate: int | None
    concurrency: int | None
    resume: Path | None
    as_json: bool


class Tally:
    """What has been done so far, over all parts."""

    def __init__(self, total: int | None, before: Noted) -> None:
        self.total = total
        self.results: Counter[str] = Counter(done=0, stored=0, fresh=0, duplicate=0, failed=0)
        self.failed_before = before.failed
        self.reasons: Counter[str] = Counter(before.reasons)
        self.failures = [*before.failures]
        self.why: str | None = None
        self.began_at = time.monotonic()

    @property
    def failed(self) -> int:
        """Pairs of the list that failed, in the runs before as well."""
        return self.failed_before + self.results["failed"]

    def plus(self, status: dict[str, Any]) -> Counter[str]:
        """Return the results with those of a part that is under way."""
        return Counter({name: count + status[name] for name, count in self.results.items()})

    def take(self, status: dict[str, Any]) -> None:
        """Add a part that has ended."""
        self.results = self.plus(status)
        self.reasons += Counter(status["reasons"])
        self.failures += status["failures"][: MOST_TOLD - len(self.failures)]
        self.why = status["why"]


def read_list(names: Sequence[str], tell: Callable[[str], None]) -> list[Pair]:
    """Return the pairs of some files (`-`: standard input), each once; tells what is wrong, and goes on.

    Raises `ListError` where nothing is left, or a file cannot be read.
    """
    pairs: dict[Pair, None] = {}
    wrong = 0
    for name in names:
        try:
            with _opened(name) as lines:
                for found in read_pairs(lines):
                    if not isinstance(found, Wrong):
                        pairs[found] = None
                    elif (wrong := wrong + 1) <= MOST_TOLD:
                        tell(f"{name}, {found}")
        except OSError as error:
            raise ListError(f"{name} cannot be read: {error.strerror}.") from error
    if wrong > MOST_TOLD:
        tell(f"… and {wrong - MOST_TOLD} more lines that are no pairs.")
    if not pairs:
        raise ListError("No pair of user and node was found: wanted is user_id,node_name, one a line.")
    return list(pairs)


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    if name == "-":
        yield sys.stdin
        return
    with Path(name).open(encoding="utf-8", errors="replace") as lines:
        yield lines


def crossed(users: str, nodes: str) -> list[Pair]:
    """Return each user with each node, of two lists with commas; raises `ListError`."""
    found: list[Pair] = []
    for user, node in product(users.split(","), nodes.split(",")):
        for each in read_pairs([f"{user},{node}"]):
            if isinstance(each, Wrong):
                raise ListError(f"--users, --nodes: {each.what}.")
            found.append(each)
    return found


def warm(wanted: Wanted) -> int:
    """Do it, and return the exit code."""
    resume = Resume(wanted.resume, wanted.pairs or ())
    try:
        before = resume.read()
    except ResumeError as error:
        print(error, file=sys.stderr)  # noqa: T201 — a command speaks
        return Exit.USAGE
    tally = Tally(None if wanted.pairs is None else len(wanted.pairs) - before.done, before)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    with _progress(tally, quiet=wanted.as_json) as show:
        try:
            state = _Run(wanted, tally, resume, show, signals).all(before.done)
        except (OpsError, ResumeError) as error:
            state, tally.why = "stopped", str(error)
    _report(wanted, tally, state, resume)
    if state == "interrupted":
        return Exit.INTERRUPTED
    if state != "done":
        return Exit.STOPPED
    return Exit.SOME_FAILED if tally.failed else Exit.WARM


class _Run(NamedTuple):
    """One run of the command; its methods return how it ended."""

    wanted: Wanted
    tally: Tally
    resume: Resume
    show: Show
    signals: Sequence[int]
    """Those that came; looked at between calls, so that no job is left running that was begun meanwhile."""

    def all(self, begin_at: int) -> str:
        """Have the list done from there on, in parts that the sidecar takes, or what its store has."""
        if self.wanted.pairs is None:
            return self._one({"from_store": True})
        done, at_once, state = begin_at, PART, "done"
        while state == "done" and done < len(self.wanted.pairs):
            part = self.wanted.pairs[done : done + at_once]
            try:
                state = self._one({"pairs": part})
            except OpsError as error:
                if error.status != TOO_LARGE or len(part) == 1:
                    raise
                at_once = len(part) // 2
                continue
            if state == "done":
                done += len(part)
                self.resume.note(done, self.tally.failed, self.tally.reasons, self.tally.failures)
        if state == "done":
            self.resume.over()
        return state

    def _one(self, what: dict[str, Any]) -> str:
        """Have one job done; cancels it when interrupted."""
        wanted = self.wanted
        speed = {"rate": wanted.rate, "concurrency": wanted.concurrency}
        body = what | {name: value for name, value in speed.items() if value is not None}
        begun = call("POST", f"{wanted.ops_url}/admin/warm", body, token_file=wanted.token_file)
        url = f"{wanted.ops_url}{begun['status']}"
        while not self.signals:
            status = call("GET", url, token_file=wanted.token_file)
            self.show(self.tally.plus(status), status["total"] if wanted.pairs is None else self.tally.total)
            if status["state"] not in {"queued", "running"}:
                self.tally.take(status)
                return str(status["state"])
            time.sleep(POLL_SECONDS)
        self.tally.take(call("DELETE", url, token_file=wanted.token_file))
        return "interrupted"


@contextmanager
def _progress(tally: Tally, *, quiet: bool) -> Iterator[Show]:
    """Yield what shows how far it is: a bar on a terminal, a line now and then elsewhere, nothing for machines."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _results, _total: None
        return
    if not console.is_terminal:
        shown_at = [0.0]

        def line(results: Counter[str], total: int | None) -> None:
            now = time.monotonic()
            if now - shown_at[0] >= LINE_SECONDS:
                shown_at[0] = now
                print(_in_words(results, total, now - tally.began_at), file=sys.stderr)  # noqa: T201

        yield line
        return
    columns = (TextColumn("Warming up"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("warm", total=tally.total, more="")

        def bar(results: Counter[str], total: int | None) -> None:
            rate = results["done"] / max(0.001, time.monotonic() - tally.began_at)
            more = f"{rate:,.0f}/s" + (f", {results['failed']:,} failed" if results["failed"] else "")
            progress.update(task, completed=results["done"], total=total, more=more)

        yield bar


def _in_words(results: Counter[str], total: int | None, seconds: float) -> str:
    rate = results["done"] / max(0.001, seconds)
    of = "" if total is None else f" of {total:,}"
    left = "" if total is None or not rate else f", {max(0, total - results['done']) / rate:,.0f} s left"
    return f"{results['done']:,}{of} pairs, {rate:,.0f}/s, {results['failed']:,} failed{left}"


def _report(wanted: Wanted, tally: Tally, state: str, resume: Resume) -> None:
    seconds = time.monotonic() - tally.began_at
    if wanted.as_json:
        answer = {
            "state": state,
            "why": tally.why,
            "total": tally.total,
            **tally.results,
            "failed_before": tally.failed_before,
            "seconds": round(seconds, 3),
            "reasons": dict(tally.reasons),
            "failures": tally.failures,
        }
        print(json.dumps(answer))  # noqa: T201
        return
    results = tally.results
    print(  # noqa: T201
        f"{state.capitalize()}: {results['done']:,} pairs in {seconds:,.1f} s; {results['stored']:,} brought, "
        f"{results['fresh']:,} fresh already, {results['duplicate']:,} twice, {results['failed']:,} failed"
        + (f", and {tally.failed_before:,} in the runs before." if tally.failed_before else ".")
    )
    for reason, many in tally.reasons.most_common():
        print(f"  {many:,} times: {reason}", file=sys.stderr)  # noqa: T201
    for each in tally.failures:
        print(f"  user {each['user_id']}, {each['node_name']}: {each['reason']}", file=sys.stderr)  # noqa: T201
    if tally.why is not None:
        print(tally.why, file=sys.stderr)  # noqa: T201
    if resume.is_there:
        print("To go on where it ended, run it again with the same --resume file.", file=sys.stderr)  # noqa: T201
