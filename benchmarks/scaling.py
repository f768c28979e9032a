"""How many pods, users and nodes one Redis carries: what a call costs is measured, the traffic is simulated.

Measured here, with a real Valkey (or `--url`): processor time of the server for each kind of call that a sidecar makes,
and memory for a record. Simulated: requests that come at random times (Poisson), each to a pod chosen at random, the
worst case for memories of their own; `cache-first`, one lifetime for all. `make scaling` runs it.
"""

import argparse
import asyncio
import itertools
import json
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from sidecar.cache.records import Records, Stored, place_of
from sidecar.cache.redis_group import BLOCK_SECONDS, LOOK_SECONDS
from sidecar.cache.redis_keys import ALL, STORE, Keyspace, packed
from sidecar.core.model import Document, PromptKey
from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, compile_template

PODS = (1, 10, 100, 1_000, 10_000)
RECORDS = 20_000
CALLS = 40_000
LISTENERS = 400
SAMPLE = 400
"""Pairs of user and node that are simulated; each is on its own, so that many more behave alike."""


class Cost(NamedTuple):
    """What Redis pays."""

    get: float
    """Seconds of processor time for a token and a record."""
    put: float
    told: float
    """For a change: its token, and its message."""
    heard: float
    """For each sidecar that hears a message."""
    record: float
    """Bytes of memory for a record, its keys and its share of the token included."""


class Load(NamedTuple):
    """Who asks for what."""

    users: int
    nodes: int
    requests: float
    """Of each user, a minute, over all nodes."""
    ttl: float
    """Seconds."""
    changes: float
    """Changes of settings a user and hour."""
    gather: float
    """Seconds between two readings of messages: `store.redis.gather`."""


class Share(NamedTuple):
    """Where an answer's static parts came from."""

    memory: float
    redis: float
    upstream: float


def share_of(load: Load, pods: int, *, shared: bool, seed: int = 1) -> Share:
    """Simulate pairs of user and node for ten lifetimes, and count after the first."""
    chance = random.Random(seed)
    rate = load.requests / 60 / load.nodes
    found = [0, 0, 0]
    for _ in range(SAMPLE):
        memories: dict[int, float] = {}  # pod → when the upstream vouched for what it has
        in_redis = -load.ttl
        now, end = 0.0, 11 * load.ttl
        while (now := now + chance.expovariate(rate)) < end:
            pod = chance.randrange(pods)
            if now - memories.get(pod, -load.ttl) < load.ttl:
                source = 0
            elif shared and now - in_redis < load.ttl:
                source, memories[pod] = 1, in_redis
            else:
                source, memories[pod], in_redis = 2, now, now
            if now > load.ttl:
                found[source] += 1
    total = sum(found) or 1
    return Share(*(each / total for each in found))


def document() -> Document:
    """Return a document of about the real size: a template of 1.6 KB, ten settings of 80 characters."""
    settings = {f"setting_{n}": f"{random.random()} of what the user chose, {n}, in words" * 2 for n in range(10)}
    text = "".join(f"<part>{{{{ {name} }}}}</part>\n" for name in settings) + "Say why each step holds. " * 50
    options = RenderOptions(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template: CompiledTemplate = compile_template(
        text, options, profile=Profile.STRICT, limits=RenderLimits(), clock=lambda: 0.0
    )
    return Document.of(template, settings, required=frozenset(), stated_ttl=300.0, etag=None)


async def spent(redis: Any) -> float:
    """Return the processor time of the server so far; seconds."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def pipelined(redis: Any, calls: list[tuple[Any, ...]], *, batch: int = 8) -> float:
    """Make calls, and return the server's processor time for each."""
    before = await spent(redis)
    for first in range(0, len(calls), batch):
        pipe = redis.pipeline(transaction=False)
        for call in calls[first : first + batch]:
            pipe.execute_command(*call)
        await pipe.execute()
    return (await spent(redis) - before) / len(calls)


async def measured(redis: Any) -> Cost:
    """Measure what each kind of call costs the server."""
    keys, eras = Keyspace("bench", "http://upstream"), {ALL: b"era"}
    documents = [document() for _ in range(50)]
    records = Records(lambda _source, _options: documents[0].template)
    places = [place_of("http://upstream", PromptKey(user, "explain")) for user in range(RECORDS)]
    made = [
        records.encode(place.key, Stored(chosen, 1.0, 0.0, b"b" * 8, 1))
        for place, chosen in zip(places, itertools.cycle(documents), strict=False)
    ]
    token = b"t" * 16
    before = (await redis.info("memory"))["used_memory"]
    tokens = [("SET", keys.token(place.owner or b""), token, "PX", 86_400_000) for place in places]
    await pipelined(redis, tokens)
    stores = [
        (
            "EVAL",
            STORE,
            2,
            keys.token(p.owner or b""),
            keys.record(p, eras),
            token,
            packed(token, 1.0, p.key, record),
            600_000,
        )
        for p, record in zip(places, made, strict=True)
    ]
    put = await pipelined(redis, stores)
    record = ((await redis.info("memory"))["used_memory"] - before) / RECORDS
    gets = [("MGET", keys.token(p.owner or b""), keys.record(p, eras)) for p in random.choices(places, k=CALLS)]
    get = await pipelined(redis, gets)
    message = b"m" * 60
    tells = [call for p in places[:5000] for call in (("DEL", keys.token(p.owner or b"")), _told(keys, message))]
    told = 2 * await pipelined(redis, tells)
    return Cost(get, put, told, await heard(redis, keys, message, told), record)


def _told(keys: Keyspace, message: bytes) -> tuple[Any, ...]:
    return ("XADD", keys.changes, "MAXLEN", "~", 10_000, "*", "from", "someone", "m", message)


async def heard(redis: Any, keys: Keyspace, message: bytes, told: float) -> float:
    """Measure what one listener costs for one message."""
    host = redis.connection_pool.connection_kwargs
    readers = [Redis(host=host["host"], port=host["port"], protocol=2) for _ in range(LISTENERS)]
    messages = 20

    async def listen(reader: Any) -> None:
        last, left = b"$", messages
        while left:
            for _, entries in await reader.xread({keys.changes: last}, count=100, block=10_000) or ():
                last, left = entries[-1][0], left - len(entries)

    listening = [asyncio.ensure_future(listen(reader)) for reader in readers]
    await asyncio.sleep(1.0)
    before = await spent(redis)
    for _ in range(messages):
        await redis.execute_command(*_told(keys, message))
        await asyncio.sleep(0.2)
    await asyncio.wait(listening, timeout=20)
    cost = (await spent(redis) - before) / messages - told / 2
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, *(reader.aclose() for reader in readers), return_exceptions=True)
    return max(0.0, cost) / LISTENERS


class Row(NamedTuple):
    """One size of a group."""

    pods: int
    shared: Share
    alone: Share
    calls_shared: float
    """To the upstream, a second."""
    calls_alone: float
    redis_calls: float
    """A second."""
    core: float
    """Share of one core of Redis."""


def row_of(load: Load, pods: int, cost: Cost) -> Row:
    """Work out what a group of this size asks of Redis and of the upstream."""
    shared, alone = (share_of(load, pods, shared=each) for each in (True, False))
    requests = load.users * load.requests / 60
    gets, puts = requests * (1 - shared.memory), requests * shared.upstream
    changes = load.users * load.changes / 3600 * 2  # its beginning and its end
    idle = pods * (1 / BLOCK_SECONDS + 2 / LOOK_SECONDS)
    readings = pods * min(changes, 1 / load.gather)
    core = gets * cost.get + puts * cost.put + idle * cost.get + changes * cost.told + readings * cost.heard
    return Row(
        pods,
        shared,
        alone,
        requests * shared.upstream,
        requests * alone.upstream,
        gets + puts + idle + changes * 2,
        core,
    )


@asynccontextmanager
async def server(url: str | None) -> AsyncIterator[Any]:
    """Yield a client of the server at a URL, or of a Valkey of our own."""
    if url is not None:
        async with Redis.from_url(url, protocol=2) as client:
            yield client
        return
    from tests.redis_servers import Server, free_port

    with tempfile.TemporaryDirectory() as folder:
        own = Server("valkey", Path(folder), free_port())
        await own.start()
        try:
            yield own.client
        finally:
            await own.kill()


def show(cost: Cost, load: Load, rows: list[Row]) -> None:
    """Print what was found."""
    console = Console()
    millionths = {name: f"{value * 1e6:.1f} us" for name, value in cost._asdict().items() if name != "record"}
    console.print(f"One core of Redis, for each: {millionths}; memory for a record: {cost.record:,.0f} bytes")
    console.print(f"{load}")
    table = Table("pods", "from memory", "from Redis", "upstream/s", "without Redis", "Redis calls/s", "of a core")
    for row in rows:
        table.add_row(
            f"{row.pods:,}",
            f"{row.shared.memory:.0%}",
            f"{row.shared.redis:.0%}",
            f"{row.calls_shared:,.1f}",
            f"{row.calls_alone:,.1f}",
            f"{row.redis_calls:,.0f}",
            f"{row.core:.1%}",
        )
    console.print(table)


async def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a Redis that may be filled, redis://…; default: a Valkey of its own")
    parser.add_argument("--users", type=int, default=10_000, help="users at work at once (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=6, help="nodes of a workflow (default: %(default)s)")
    parser.add_argument("--requests", type=float, default=6.0, help="of a user, a minute (default: %(default)s)")
    parser.add_argument("--ttl", type=float, default=300.0, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--changes", type=float, default=1.0, help="of settings, a user and hour (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.add_argument("--gather", type=float, default=0.4, help="store.redis.gather, seconds (default: %(default)s)")
    given = parser.parse_args()
    load = Load(given.users, given.nodes, given.requests, given.ttl, given.changes, given.gather)
    async with server(given.url) as redis:
        cost = await measured(redis)
    rows = [row_of(load, pods, cost) for pods in PODS]
    if given.json:
        print(json.dumps({"cost": cost._asdict(), "load": load._asdict(), "rows": [row._asdict() for row in rows]}))
    else:
        show(cost, load, rows)


if __name__ == "__main__":
    asyncio.run(main())
