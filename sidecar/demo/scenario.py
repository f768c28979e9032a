"""The demo: healthy traffic, an outage covered from the cache, the end of what the policy allows, recovery."""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.demo import processes
from sidecar.demo.asking import Answer, as_learnflow, ask

TTL, STALE_IF_ERROR = 3, 7
"""Seconds: short, so that the end of the policy is seen; in production they are minutes."""
POLICY = {
    "SIDECAR_POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "1s",
    "SIDECAR_POLICY__DEFAULT__STALE_IF_ERROR": f"{STALE_IF_ERROR}s",
    "SIDECAR_POLICY__DEFAULT__NETWORK_TIMEOUT": "300ms",
    "SIDECAR_BREAKER__RESET_TIMEOUT": "1s",
}
SPREAD_SECONDS = TTL * 0.1 + 0.2
"""The ttl is spread by a tenth; the rest is for the clock's sake."""
TICK = 0.5
"""Seconds between rounds of requests; every second one is shown."""
NODES = ("generating_content", "answer_question", "generating_questions")
USERS = (101, 102)
CONTENT = "Why do tides rise twice a day? <b>Give</b> a formula & an example."
SOON_MS = 1000.0
"""Milliseconds in which a prompt must come again after the outage."""
MARKS = {"fresh": "green", "fetched": "green", "stale": "yellow", "error": "red"}
MOST_COLUMNS, COUNTS_COLUMNS = 80, 16
INTRODUCTION = (
    f"{len(NODES)} nodes of {len(USERS)} users, asked for every {TICK} s, each time on a new connection, as LearnFlow "
    f"does. The policy, shortened for the demo: a prompt's parts are fresh for {TTL} s; while the config service gives "
    f"no answer they may serve for {STALE_IF_ERROR} s more; then there is an error."
)


@dataclass
class Phase:
    """One part of the story, and what came of it."""

    name: str
    seconds: float
    requests: int = 0
    served: int = 0
    stale: int = 0
    errors: int = 0
    oldest_age_seconds: int = 0
    milliseconds: list[float] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.requests += 1
        self.errors += answer.kind == "error"
        self.served += answer.kind != "error"
        self.stale += answer.kind == "stale"
        self.oldest_age_seconds = max(self.oldest_age_seconds, answer.age)
        self.milliseconds.append(answer.milliseconds)


class StoryError(Exception):
    """The story could not be told to its end."""


async def play(*, as_json: bool) -> int:
    """Run the demo; returns the exit code: 0 where each phase went as promised, else 1."""
    console = Console(highlight=False, quiet=as_json)
    console.width = min(console.width, MOST_COLUMNS)
    console.print("[bold]prompt-sidecar: an outage in half a minute[/bold]\n")
    console.print(INTRODUCTION + "\n")
    phases = [
        Phase("healthy", 3.0),
        Phase("outage", STALE_IF_ERROR - 1.0),
        Phase("past the policy", 3.0),
        Phase("recovered", 3.0),
    ]
    exit_code = await _tell(_Story(console), phases)
    kept = _promises(phases, exit_code)
    console.print()
    console.print(_table(phases))
    for promise, held in kept.items():
        console.print(f"{'[green]held[/]  ' if held else '[red]BROKEN[/]'}  {promise}")
    if as_json:
        print(json.dumps({"phases": [_summary(p) for p in phases], "promises": kept}, indent=2))  # noqa: T201 — its output
    return 0 if all(kept.values()) else 1


async def _tell(story: "_Story", phases: list[Phase]) -> int:
    """Go through the phases; returns the sidecar's exit code at the end."""
    healthy, outage, past, recovered = phases
    flags = ("upstream", "--cache-ttl", str(TTL))
    async with AsyncExitStack() as stack:
        upstream = await processes.start(*flags, "--listen", "127.0.0.1:0")
        stack.push_async_callback(upstream.stop)
        address = upstream.address
        sidecar = await processes.start(
            "run", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0",
            "--upstream-url", f"http://{address}", settings=POLICY,
        )  # fmt: skip
        stack.push_async_callback(sidecar.stop)
        story.begin(sidecar.address)
        story.say(f"Config service: {address}. Sidecar: {story.address}.")
        await story.through(healthy)
        await upstream.kill()
        story.say("The config service is killed (SIGKILL).")
        await story.through(outage)
        story.say(f"Now wait until what was kept is older than {TTL} s + {STALE_IF_ERROR} s ...")
        await asyncio.sleep(max(0.0, story.kept_until - time.monotonic()))
        story.say("... it is: quality comes before availability.")
        await story.through(past)
        upstream = await processes.start(*flags, "--listen", address)
        stack.push_async_callback(upstream.stop)
        story.say("The config service is back.")
        await story.through(recovered)
        return await sidecar.stop()


class _Story:
    """The requests, and the line that each second gets."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.address = ""
        self._began = self._last_confirmed = 0.0

    def begin(self, address: str) -> None:
        """Start the clock."""
        self.address = address
        self._began = self._last_confirmed = time.monotonic()

    @property
    def kept_until(self) -> float:
        """The instant at which nothing that the sidecar keeps may be used any more."""
        return self._last_confirmed + TTL + STALE_IF_ERROR + SPREAD_SECONDS

    def say(self, what: str) -> None:
        """Tell of an event."""
        self._console.print(Text(f"{self._clock()}  {what}", style="bold"), no_wrap=True, overflow="ellipsis")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"

    async def through(self, phase: Phase) -> None:
        """Ask for each node and user every tick, until the phase is over."""
        began = time.monotonic()
        async with as_learnflow() as session:
            for tick in range(round(phase.seconds / TICK)):
                answers = [await self._ask(session, node, user) for user in USERS for node in NODES]
                for answer in answers:
                    phase.add(answer)
                if tick % 2 == 0:
                    self._show(answers)
                await asyncio.sleep(max(0.0, began + (tick + 1) * TICK - time.monotonic()))

    def _show(self, answers: list[Answer]) -> None:
        """Print a round in one line: how many of which kind, and how the first answer says it was made."""
        kinds = Counter(answer.kind for answer in answers)
        counts = Text(", ").join(Text(f"{count} {kind}", style=MARKS[kind]) for kind, count in kinds.items())
        counts.pad_right(max(0, COUNTS_COLUMNS - len(counts)))
        first = answers[0]
        age = "" if first.kind == "error" else f"age {first.age} s"
        said = Text(first.said.removeprefix("prompt-sidecar; "), style="dim")
        line = Text.assemble(f"{self._clock()}  ", counts, f" {first.status} {age:7} ", said)
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    async def _ask(self, session: aiohttp.ClientSession, node: str, user: int) -> Answer:
        context = {"input_content": CONTENT, "study_material": CONTENT}
        try:
            answer = await ask(session, self.address, node, user, context)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StoryError(f"The sidecar on {self.address} did not answer: {type(error).__name__}.") from error
        if answer.kind != "error":
            if "Give" not in answer.prompt:
                raise StoryError(f"The prompt of {node} lacks this request's content.")
            self._last_confirmed = max(self._last_confirmed, time.monotonic() - answer.age)  # Age is rounded down
        return answer


def _promises(phases: list[Phase], exit_code: int) -> dict[str, bool]:
    healthy, covered, past, recovered = phases
    limit = TTL + STALE_IF_ERROR
    return {
        "While all is well, every request gets its prompt.": healthy.errors == 0,
        "The outage is not noticed, for as long as the policy allows.": covered.errors == 0 and covered.stale > 0,
        f"Nothing older than {TTL} s + {STALE_IF_ERROR} s is used.": max(p.oldest_age_seconds for p in phases) <= limit,
        "Past the policy there is an error instead of an old prompt.": past.served == 0,
        "When the config service is back, so are the prompts.": recovered.served > recovered.requests / 2
        and recovered.milliseconds[-1] < SOON_MS,
        "Told to stop, the sidecar ends by itself.": exit_code == 0,
    }


def _summary(phase: Phase) -> dict[str, Any]:
    return {
        **asdict(phase),
        "milliseconds": {"median": round(median(phase.milliseconds), 2), "most": round(max(phase.milliseconds), 2)},
    }


def _table(phases: list[Phase]) -> Table:
    table = Table(title="What LearnFlow saw", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for heading in ("phase", "asked", "served", "stale", "errors", "oldest", "median", "slowest"):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=True)
    for p in phases:
        table.add_row(
            p.name, str(p.requests), str(p.served), str(p.stale), str(p.errors), f"{p.oldest_age_seconds} s",
            f"{median(p.milliseconds):.1f} ms", f"{max(p.milliseconds):.0f} ms",
        )  # fmt: skip
    return table
