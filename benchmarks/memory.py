"""What an entry takes in memory: resident memory of a process that keeps nothing else, and what the cache counts.

Each case runs in a fresh process: 100,000 users of six nodes with ten settings each, fewer of them where less is
shared. `make bench` runs it.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import psutil

from sidecar.cache.memory import MemoryCache
from sidecar.core.model import Document, Entry, PromptKey
from sidecar.core.policy import Policy
from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, compile_template

NODES = ("generate_material", "edit_material", "generate_questions", "answer_question", "explain", "assess_quality")
SETTINGS = (
    "role_perspective",
    "subject_name",
    "subject_keywords",
    "language",
    "style",
    "target_audience",
    "material_type",
    "explanation_depth",
    "question_formats",
    "question_purpose",
)
PHRASES = (
    "step-by-step progression from fundamentals",
    "advanced concepts with practical understanding",
    "causal relationships and key definitions",
    "worked examples of common mistakes",
    "deeper connections and a clear structure",
)
CHOICES = 8  # values of a setting, as the service's profiles offer them
CONFIRMED = 1e6  # an instant
PROSE = "Work through the material step by step, and say why each step holds. "

Chance = random.Random
Draw = Callable[[Chance, str], str]


def text(chance: Chance) -> str:
    """Return a value about as long as a real one: 35 to 210 characters, 80 on average."""
    return ", ".join(chance.choices(PHRASES, k=chance.choice((1, 1, 1, 2, 2, 5))))


def from_vocabulary(chance: Chance) -> Draw:
    """Return what draws each setting from a few values that all users share."""
    values = {name: [text(chance) for _ in range(CHOICES)] for name in SETTINGS}
    return lambda chance, name: chance.choice(values[name])


def unlike_any_other(chance: Chance) -> Draw:  # noqa: ARG001 - the way of the other
    """Return what makes each value anew."""
    return lambda chance, name: f"{text(chance)} {chance.getrandbits(48):012x} of {name}"


class Case(NamedTuple):
    """What arrives: whose values, whether all nodes of a user have the same, and for which part of the users."""

    values: Callable[[Chance], Draw]
    same_for_all_nodes: bool
    part: int


CASES = {
    "a shared vocabulary": Case(from_vocabulary, same_for_all_nodes=True, part=1),
    "a shared vocabulary, other settings for each node": Case(from_vocabulary, same_for_all_nodes=False, part=2),
    "values that nobody shares": Case(unlike_any_other, same_for_all_nodes=False, part=5),
}


def templates() -> dict[str, CompiledTemplate]:
    """Return a template of about 1.6 KB for each node; each reads all settings."""
    placeholders = "\n".join(f"{n}. <{name}> {{{{ {name} }}}} </{name}>" for n, name in enumerate(SETTINGS))
    return {
        node: compile_template(
            f"You are an expert, asked to {node}.\n{placeholders}\n{PROSE * 13}\n{{{{ input_content }}}}",
            RenderOptions(autoescape=True),
            profile=Profile.STRICT,
            limits=RenderLimits(),
            clock=time.monotonic,
        )
        for node in NODES
    }


def arrivals(case: str, users: int) -> Iterator[tuple[PromptKey, Entry[Document]]]:
    """Yield entries as fetches bring them: each decoded by itself, so that nothing is shared by accident."""
    chance = Chance(case)
    draw = CASES[case].values(chance)
    decode = msgspec.json.Decoder(dict[str, str]).decode
    compiled, policy = templates(), Policy()
    for user in range(users):
        body = b""
        for n, node in enumerate(NODES):
            if not (CASES[case].same_for_all_nodes and body):
                body = msgspec.json.encode({name: draw(chance, name) for name in SETTINGS})
            document = Document.of(
                compiled[node],
                decode(body),
                required=frozenset(json.loads('["input_content"]')),
                stated_ttl=float("3600"),
                etag=None,
            )
            key = PromptKey(1_000_000 + user, json.loads(f'"{node}"'))
            yield key, Entry.of(document, CONFIRMED + user * len(NODES) + n, chance.uniform(-1, 1), policy)


def measure(case: str, users: int, max_bytes: int) -> dict[str, Any]:
    """Keep a case's entries in this process, and return what they take; bytes."""
    process = psutil.Process()
    users //= CASES[case].part
    cache = MemoryCache(max_entries=users * len(NODES), max_bytes=max_bytes, clock=lambda: CONFIRMED)
    gc.collect()
    before = process.memory_info().rss
    for offered, (key, entry) in enumerate(arrivals(case, users), 1):
        cache._keep(key, entry, 4500.0)  # noqa: SLF001 - `set` without a loop
        if sys.stderr.isatty() and offered % 6000 == 0:
            done = offered / (users * len(NODES))
            print(f"\r  [{'#' * round(30 * done):30}] {done:4.0%}  {case}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 110, end="\r", file=sys.stderr)
    gc.collect()
    resident = process.memory_info().rss
    return {
        "case": case,
        "offered": users * len(NODES),
        "entries": len(cache),
        "resident_mib": round(resident / 2**20, 1),
        "before_mib": round(before / 2**20, 1),
        "resident_bytes_per_entry": round(resident / len(cache)),
        "counted_mib": round(cache.bytes / 2**20, 1),
        "counted_bytes_per_entry": round(cache.bytes / len(cache)),
    }


def main() -> None:
    """Print what an entry takes, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--max-bytes", type=int, default=2**30, help="the cache's bound")
    parser.add_argument("--case", choices=CASES, help="measure one case, in this process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.users, arguments.max_bytes)))
        return
    results = []
    if not arguments.json:
        print(f"\nMemory: {arguments.users:,} users of {len(NODES)} nodes with {len(SETTINGS)} settings each")
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--case", case]
        command += ["--users", str(arguments.users), "--max-bytes", str(arguments.max_bytes)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        results.append(json.loads(child.stdout))
        if not arguments.json:
            _show(results[-1])
    if arguments.json:
        print(json.dumps(results, indent=2))


def _show(result: dict[str, Any]) -> None:
    print(
        f"  {result['case']}:\n"
        f"    resident {result['resident_bytes_per_entry']} bytes an entry, "
        f"counted {result['counted_bytes_per_entry']}; "
        f"{result['entries']:,} of {result['offered']:,} entries kept, {result['resident_mib']} MiB resident"
    )


if __name__ == "__main__":
    main()
