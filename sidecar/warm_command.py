"""`prompt-sidecar warm`: a list is sent in parts to a running sidecar, whose memory it is that has to be warm."""

import hashlib
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

PART = 1_000
"""Pairs sent as one job: what an interruption may have to do again."""
POLL_SECONDS = 0.2
LINE_SECONDS = 2.0
"""Between two lines where nobody looks at a terminal."""
MOST_TOLD = 20
"""Wrong lines and failures that are told one by one."""

Pair = tuple[int, str]


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

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.results: Counter[str] = Counter(done=0, stored=0, fresh=0, duplicate=0, failed=0)
        self.reasons: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.why: str | None = None
        self.began_at = time.monotonic()

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


class Resume:
    """How many pairs of a list are done, in a file that is bound to the list."""

    def __init__(self, path: Path | None, pairs: Sequence[Pair]) -> None:
        self._path = path
        self._list = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def begin_at(self) -> int:
        """Return where to go on; raises `ListError` where the file is another list's, or no such file."""
        if self._path is None or not self._path.exists():
            return 0
        try:
            found = json.loads(self._path.read_text("utf-8"))
            known, done = found["list"], int(found["done"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ListError(f"--resume: {self._path} is no file of this command's.") from error
        if known != self._list:
            raise ListError(f"--resume: {self._path} belongs to another list; name another file, or remove it.")
        return done

    def note(self, done: int) -> None:
        """Note how many are done: whole, or not at all."""
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_text(json.dumps({"list": self._list, "done": done}) + "\n", "utf-8")
            new.replace(self._path)

    def over(self) -> None:
        """Remove the file: there is nothing to resume."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def warm(wanted: Wanted) -> int:
    """Do it, and return the exit code."""
    try:
        resume = Resume(wanted.resume, wanted.pairs or ())
        begin_at = resume.begin_at()
    except ListError as error:
        print(error, file=sys.stderr)  # noqa: T201 — a command speaks
        return Exit.USAGE
    tally = Tally(None if wanted.pairs is None else len(wanted.pairs) - begin_at)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state, code = "done", Exit.WARM
    with _progress(tally, quiet=wanted.as_json) as show:
        try:
            for body, done in _parts(wanted, begin_at):
                state = _one(wanted, body, tally, show)
                if state != "done":
                    break
                resume.note(done)
        except OpsError as error:
            state, tally.why = "stopped", str(error)
        except KeyboardInterrupt:
            state = "interrupted"
    if state == "interrupted":
        code = Exit.INTERRUPTED
    elif state != "done":
        code = Exit.STOPPED
    else:
        resume.over()
        code = Exit.SOME_FAILED if tally.results["failed"] else Exit.WARM
    _report(wanted, tally, state)
    return code


def _parts(wanted: Wanted, begin_at: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the bodies of the jobs, and how many pairs are done after each."""
    speed = {"rate": wanted.rate, "concurrency": wanted.concurrency}
    given = {name: value for name, value in speed.items() if value is not None}
    if wanted.pairs is None:
        yield {"from_store": True, **given}, 0
        return
    for first in range(begin_at, len(wanted.pairs), PART):
        part = wanted.pairs[first : first + PART]
        yield {"pairs": part, **given}, first + len(part)


def _one(wanted: Wanted, body: dict[str, Any], tally: Tally, show: Callable[[Counter[str], int | None], None]) -> str:
    """Have one job done; cancels it when interrupted. Returns how it ended."""
    begun = call("POST", f"{wanted.ops_url}/admin/warm", body, token_file=wanted.token_file)
    url = f"{wanted.ops_url}{begun['status']}"
    try:
        while True:
            status = call("GET", url, token_file=wanted.token_file)
            show(tally.plus(status), status["total"] if wanted.pairs is None else tally.total)
            if status["state"] not in {"queued", "running"}:
                tally.take(status)
                return str(status["state"])
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        tally.take(call("DELETE", url, token_file=wanted.token_file))
        raise


@contextmanager
def _progress(tally: Tally, *, quiet: bool) -> Iterator[Callable[[Counter[str], int | None], None]]:
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


def _report(wanted: Wanted, tally: Tally, state: str) -> None:
    seconds = time.monotonic() - tally.began_at
    if wanted.as_json:
        answer = {
            "state": state,
            "why": tally.why,
            "total": tally.total,
            **tally.results,
            "seconds": round(seconds, 3),
            "reasons": dict(tally.reasons),
            "failures": tally.failures,
        }
        print(json.dumps(answer))  # noqa: T201
        return
    results = tally.results
    print(  # noqa: T201
        f"{state.capitalize()}: {results['done']:,} pairs in {seconds:,.1f} s; {results['stored']:,} brought, "
        f"{results['fresh']:,} fresh already, {results['duplicate']:,} twice, {results['failed']:,} failed."
    )
    for reason, many in tally.reasons.most_common():
        print(f"  {many:,} times: {reason}", file=sys.stderr)  # noqa: T201
    for each in tally.failures:
        print(f"  user {each['user_id']}, {each['node_name']}: {each['reason']}", file=sys.stderr)  # noqa: T201
    if tally.why is not None:
        print(tally.why, file=sys.stderr)  # noqa: T201
    if state != "done":
        how = "with the same --resume file" if wanted.resume else "with --resume FILE next time"
        print(f"What is done stays warm; to go on where it ended, run it again {how}.", file=sys.stderr)  # noqa: T201
