"""SQLite against LMDB, as the file store would use either: batches, look-ups, forgetting a user, starting, size.

Both keep the same records in the same order of use, bounded in bytes, with the durability that is promised: a SIGKILL
loses what was not committed, a power cut perhaps the last commits (WAL with synchronous=NORMAL; MDB_NOMETASYNC is about
the same). `python -m benchmarks.stores` runs it.
"""

import argparse
import asyncio
import json
import os
import random
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import lmdb
from rich.console import Console
from rich.table import Table

from sidecar.cache import file
from sidecar.cache.file import FileStore
from sidecar.cache.records import Place

BATCH = 500
LOOK_UPS = 5_000
FORGOTTEN = 200
NODES = 6


def places(many: int) -> list[Place]:
    """Return where the records of many users' nodes are kept."""
    return [
        Place(os.urandom(32), (n // NODES).to_bytes(32, "big"), (n % NODES).to_bytes(32, "big")) for n in range(many)
    ]


class Sqlite:
    """The file store as it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cache.db"
        self.store = FileStore(self.path, max_bytes=2**34, clock=time.monotonic, observer=lambda _: None)

    async def open(self) -> None:
        file.GET_SECONDS = 60.0  # a stalled disk shall be seen, and not given up
        await self.store.open()

    async def put(self, batch: list[tuple[Place, bytes]]) -> None:
        for place, record in batch:
            self.store.put(place, record, age=0.0, ttl=60.0)
        await self.store.flush()

    async def get(self, place: Place) -> bytes | None:
        found = await self.store.get(place)
        return None if found is None else found.record

    async def forget(self, owner: bytes) -> None:
        await self.store.forget(owner=owner)

    async def close(self) -> None:
        await self.store.close()

    def size(self) -> int:
        return sum(each.stat().st_size for each in self.path.parent.iterdir())


class Lmdb:
    """The same with LMDB: records, their use, and an index by owner, each a table of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "lmdb"
        self.env: Any = None
        self.used = 0

    async def open(self) -> None:
        self.env = lmdb.open(str(self.folder), map_size=2**34, max_dbs=3, metasync=False)
        self.records, self.by_use = self.env.open_db(b"records"), self.env.open_db(b"use")
        self.by_owner = self.env.open_db(b"owner", dupsort=True)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def put(self, batch: list[tuple[Place, bytes]]) -> None:
        def write() -> None:
            with self.env.begin(write=True) as transaction:
                for place, record in batch:
                    self.used += 1
                    use = struct.pack(">Q", self.used)
                    assert place.owner is not None
                    transaction.put(place.key, use + place.owner + record, db=self.records)
                    transaction.put(use, place.key, db=self.by_use)
                    transaction.put(place.owner, place.key, db=self.by_owner)

        await self._in_thread(write)

    async def get(self, place: Place) -> bytes | None:
        def read() -> bytes | None:
            with self.env.begin() as transaction:
                found = transaction.get(place.key, db=self.records)
                return None if found is None else bytes(found[40:])

        found: bytes | None = await self._in_thread(read)
        return found

    async def forget(self, owner: bytes) -> None:
        def delete() -> None:
            with self.env.begin(write=True) as transaction:
                cursor = transaction.cursor(db=self.by_owner)
                keys = [bytes(key) for key in cursor.iternext_dup()] if cursor.set_key(owner) else []
                for key in keys:
                    record = transaction.pop(key, db=self.records)
                    transaction.delete(record[:8], db=self.by_use)
                transaction.delete(owner, db=self.by_owner)
            self.env.sync(force=True)

        await self._in_thread(delete)

    async def close(self) -> None:
        self.env.close()

    def size(self) -> int:
        return sum(each.stat().st_blocks * 512 for each in self.folder.iterdir())


async def timed(work: Awaitable[Any]) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def measured(store: Sqlite | Lmdb, again: Sqlite | Lmdb, many: int) -> dict[str, float]:
    """Return what each kind of work takes, in microseconds, and the size; `again`: the same place, opened anew."""
    chance, all_places = random.Random(1), places(many)
    record = os.urandom(500) + b"text " * 60
    await store.open()
    puts = 0.0
    for first in range(0, many, BATCH):
        puts += await timed(store.put([(place, record) for place in all_places[first : first + BATCH]]))
    gets = [await timed(store.get(chance.choice(all_places))) for _ in range(LOOK_UPS)]
    owners = chance.sample(range(many // NODES), FORGOTTEN)
    forgets = [await timed(store.forget(owner.to_bytes(32, "big"))) for owner in owners]
    await store.close()
    starts = await timed(again.open())
    await again.close()
    return {
        "a record written": puts / many * 1e6,
        "a look-up": sorted(gets)[len(gets) // 2] * 1e6,
        "a slow look-up (p99)": sorted(gets)[len(gets) * 99 // 100] * 1e6,
        "a user forgotten for good": sorted(forgets)[len(forgets) // 2] * 1e6,
        "a start": starts * 1e6,
        "bytes on disk, a record": store.size() / many,
    }


async def main() -> None:
    """Measure both, and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    given = parser.parse_args()
    found = {}
    for kind in (Sqlite, Lmdb):
        with tempfile.TemporaryDirectory() as folder:
            found[kind.__name__.lower()] = await measured(kind(Path(folder)), kind(Path(folder)), given.records)
    if given.json:
        print(json.dumps(found))
        return
    table = Table("us, median", "SQLite", "LMDB", "LMDB : SQLite")
    for name, ours in found["sqlite"].items():
        theirs = found["lmdb"][name]
        table.add_row(name, f"{ours:,.0f}", f"{theirs:,.0f}", f"{theirs / ours:.2f}")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
