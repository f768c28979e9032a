"""The demo: healthy traffic, an outage covered from the cache, the end of what the policy allows, recovery."""

import asyncio
import json
import re
import time
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from sidecar.demo import processes

TTL, STALE_IF_ERROR = 3, 7
"""Seconds: short, so that the end of the policy is seen; in production they are minutes."""
POLICY = {
    "SIDECAR_POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "1s",
    "SIDECAR_POLICY__DEFAULT__STALE_IF_ERROR": f"{STALE_IF_ERROR}s",
    "SIDECAR_POLICY__DEFAULT__NETWORK_TIMEOUT": "300ms",
    "SIDECAR_BREAKER__RESET_TIMEOUT": "1s",
    "SIDECAR_LOG__FORMAT": "json",
}
TICK = 0.5
"""Seconds between rounds of requests; a line is printed every second one."""
NODES = ("generating_content", "answer_question", "generating_questions")
USERS = (101, 102)
CONTENT = "Why do tides rise twice a day? <b>Give</b> a formula & an example."
MARKS = {"fresh": "green", "fetched": "green", "stale": "yellow", "error": "red"}


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

    def add(self, kind: str, age: int, milliseconds: float) -> None:
        """Count one answer."""
        self.requests += 1
        self.errors += kind == "error"
        self.served += kind != "error"
        self.stale += kind == "stale"
        self.oldest_age_seconds = max(self.oldest_age_seconds, age)
        self.milliseconds.append(milliseconds)


class Failed(Exception):
    """What was promised did not hold."""


async def play(*, as_json: bool) -> int:
    """Run the demo; returns the exit code: 0 where each phase went as promised, else 1."""
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    console.print("[bold]prompt-sidecar: an outage in half a minute[/bold]")
    console.print(
        f"Three nodes, two users, a new connection per request, as LearnFlow does. The policy, shortened for the demo: "
        f"fresh for {TTL} s, and up to {STALE_IF_ERROR} s longer while the config service gives no answer.\n"
    )
    phases = [
        Phase("healthy", 3.0),
        Phase("outage", STALE_IF_ERROR - 1.0),
        Phase("past the policy", 3.0),
        Phase("recovered", 3.0),
    ]
    upstream_flags = ("--cache-ttl", str(TTL))
    upstream = await processes.start("upstream", "--listen", "127.0.0.1:0", *upstream_flags)
    try:
        address = _found(r"127\.0\.0\.1:\d+", upstream.first_line)
        async with processes.child(
            "run", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0",
            "--upstream-url", f"http://{address}", settings=POLICY,
        ) as sidecar:  # fmt: skip
            story = _Story(console, json.loads(sidecar.first_line)["listen"])
            story.say(f"config service on {address}, sidecar on {story.address}: both are up")
            await story.through(phases[0])
            await upstream.kill()
            story.say("the config service is killed (SIGKILL)")
            await story.through(phases[1])
            await asyncio.sleep(max(0.0, story.last_confirmed + TTL + STALE_IF_ERROR + 0.5 - time.monotonic()))
            story.say(
                f"what was kept is now older than {TTL} s + {STALE_IF_ERROR} s: quality comes before availability"
            )
            await story.through(phases[2])
            upstream = await processes.start("upstream", "--listen", address, *upstream_flags)
            story.say("the config service is back")
            await story.through(phases[3])
    finally:
        await upstream.stop()
    kept = _promises(phases)
    console.print(_table(phases))
    for promise, held in kept.items():
        console.print(f"{'[green]held[/green]  ' if held else '[red]broken[/red]'}  {promise}")
    if as_json:
        print(json.dumps({"phases": [_summary(p) for p in phases], "promises": kept}, indent=2))  # noqa: T201 — its output
    return 0 if all(kept.values()) else 1


class _Story:
    """The requests, and the line that each second gets."""

    def __init__(self, console: Console, address: str) -> None:
        self._console = console
        self.address = address
        self._began = time.monotonic()
        self.last_confirmed = self._began

    def say(self, what: str) -> None:
        self._console.print(f"[bold]{self._clock()}  {what}[/bold]")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"

    async def through(self, phase: Phase) -> None:
        """Ask for each node and user every tick, until the phase is over."""
        until = time.monotonic() + phase.seconds
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session:
            for tick in range(1_000):
                next_at = time.monotonic() + TICK
                if next_at > until + TICK / 2:
                    break
                answers = [await self._ask(session, phase, node, user) for user in USERS for node in NODES]
                if tick % 2 == 0:
                    status, kind, said = answers[0]
                    self._console.print(
                        f"{self._clock()}  [{MARKS[kind]}]{kind:8}[/]  {status}  {said.removeprefix('prompt-sidecar; ')}"
                    )
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    async def _ask(self, session: aiohttp.ClientSession, phase: Phase, node: str, user: int) -> tuple[int, str, str]:
        began = time.monotonic()
        context = {"input_content": CONTENT, "study_material": CONTENT}
        async with session.post(
            f"http://{self.address}/api/v1/generate-prompt",
            json={"user_id": user, "node_name": node, "context": context},
        ) as response:
            answer = await response.json(content_type=None)
            said = response.headers.get("Cache-Status", "")
            age = int(response.headers.get("Age", "0"))
        if response.status != 200:
            kind = "error"
        elif "Give" not in answer["prompt"]:
            raise Failed(f"the prompt of {node} lacks this request's content")
        elif "fwd=" in said and "detail" not in said:
            kind = "fetched"
            self.last_confirmed = began
        else:
            kind = "stale" if "ttl=-" in said else "fresh"
        phase.add(kind, age, (time.monotonic() - began) * 1000)
        return response.status, kind, said


def _promises(phases: list[Phase]) -> dict[str, bool]:
    healthy, covered, past, recovered = phases
    limit = TTL + STALE_IF_ERROR
    return {
        "While all is well, every request gets its prompt.": healthy.errors == 0,
        "The outage is not noticed, for as long as the policy allows.": covered.errors == 0 and covered.stale > 0,
        f"Nothing older than {TTL} s + {STALE_IF_ERROR} s is used.": max(p.oldest_age_seconds for p in phases) <= limit,
        "Past the policy there is an error instead of an old prompt.": past.served == 0,
        "When the config service is back, so are the prompts.": recovered.served > recovered.requests / 2
        and recovered.milliseconds[-1] < 1000,
    }


def _summary(phase: Phase) -> dict[str, Any]:
    return {
        **asdict(phase),
        "milliseconds": {"median": round(median(phase.milliseconds), 2), "most": round(max(phase.milliseconds), 2)},
    }


def _table(phases: list[Phase]) -> Table:
    table = Table(title="\nWhat LearnFlow saw", title_justify="left")
    for heading in ("phase", "asked", "served", "stale", "errors", "oldest", "median", "slowest"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for p in phases:
        table.add_row(
            p.name, str(p.requests), str(p.served), str(p.stale), str(p.errors), f"{p.oldest_age_seconds} s",
            f"{median(p.milliseconds):.1f} ms", f"{max(p.milliseconds):.0f} ms",
        )  # fmt: skip
    return table


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise processes.ChildError(f"no address in: {text}")
    return match[0]
