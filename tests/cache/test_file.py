"""The file store: what is written is there after a restart, whatever ended the process; trouble never spreads."""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from sidecar.cache import disk
from sidecar.cache import file as file_module
from sidecar.cache.file import FileStore, StoreBusyError
from sidecar.cache.records import Place
from sidecar.cache.tiered import Found
from sidecar.core.events import Event, StoreChanged
from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.service.ports import StoreAwayError
from tests.harness import ManualClock, eventually

KILLS = 50
MIB = 2**20


def place(name: str) -> Place:
    return Place(name.encode(), None, None)


class Opened:
    """A store in a folder, its clock and what it told."""

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.path = path
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.store = FileStore(path, max_bytes=max_bytes, clock=self.clock, observer=self.events.append)

    def put(self, name: str, record: bytes = b"record", owner: bytes | None = None, node: bytes | None = None) -> None:
        self.store.put(Place(name.encode(), owner, node), record, age=0.0, ttl=60.0)

    async def heals(self) -> None:
        """Let the time pass after which the file is tried again, and have it tried."""
        self.clock.advance(file_module.REOPEN_SECONDS)
        await self.names("whatever")
        if self.store._healing is not None:
            await asyncio.wait({self.store._healing})

    async def names(self, *names: str) -> set[str]:
        return {name for name in names if await self.store.get(place(name)) is not None}


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Opened]:
    found = Opened(path, **options)
    await found.store.open()
    try:
        yield found
    finally:
        await found.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "a folder" / "cache.db"
    for each in tmp_path.rglob("*"):
        each.chmod(0o700)


async def test_what_was_put_is_there_at_once_and_after_a_restart(path: Path) -> None:
    async with opened(path) as one:
        one.put("a", b"\x00\xff")
        assert await one.store.get(place("a")) == Found(b"\x00\xff")
        assert await one.store.get(place("b")) is None
    async with opened(path) as two:
        assert await two.store.get(place("a")) == Found(b"\x00\xff")
        assert two.store.entries == 1
        assert two.events == []


async def test_nobody_else_can_read_the_files(path: Path) -> None:
    async with opened(path) as one:
        one.put("a")
        await one.store.flush()
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes.keys() >= {"cache.db", "cache.db-wal", "cache.db-shm", "cache.db.lock"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_the_newest_record_of_a_key_counts(path: Path) -> None:
    async with opened(path) as one:
        for record in (b"1", b"22", b"333"):
            one.put("a", record)
            await one.store.flush()
        assert await one.store.get(place("a")) == Found(b"333")
        assert one.store.entries == 1


async def test_the_least_recently_used_make_room(path: Path) -> None:
    async with opened(path, max_bytes=200_000) as one:
        for number in range(9):
            one.put(str(number), b"x" * 15_000)
        await one.store.flush()
        assert await one.names("0") == {"0"}  # used again
        await one.store.flush()
        one.put("new", b"x" * 45_000)
        await one.store.flush()
        assert one.store.bytes is not None
        assert one.store.bytes <= 200_000
        assert await one.names("0", "1", "2", "8", "new") == {"0", "8", "new"}


async def test_the_bound_is_one_of_the_file_indexes_and_all(path: Path) -> None:
    bound = 2 * MIB
    async with opened(path, max_bytes=bound) as one:
        for first in range(0, 20_000, 500):
            for number in range(first, first + 500):
                one.put(str(number), os.urandom(100), owner=str(number).encode() * 8, node=b"node" * 8)
            await one.store.flush()
            assert one.store.bytes is not None
            assert one.store.bytes <= bound
        size = path.stat().st_size
        journal = path.with_name("cache.db-wal").stat().st_size
    assert bound / 2 < size <= bound * 1.3, "a batch is written before room is made"
    assert journal <= 5 * MIB


async def test_an_owners_a_nodes_or_all_records_are_forgotten_and_no_others(path: Path) -> None:
    async with opened(path) as one:
        one.put("a", owner=b"1", node=b"x")
        one.put("b", owner=b"12", node=b"x")
        await one.store.flush()
        one.put("c", owner=b"1")
        assert await one.store.forget(owner=b"1") == 2
        assert await one.names("a", "b", "c") == {"b"}
        one.put("d", node=b"x")
        await one.store.flush()
        assert await one.store.forget(node=b"x") == 2
        one.put("e", owner=b"2")
        await one.store.flush()
        one.put("g", owner=b"2")
        one.put("what is noted of the store")
        await one.store.forget(everything=True)
        assert await one.names("a", "b", "c", "d", "e", "g", "what is noted of the store") == {
            "what is noted of the store"
        }
        one.put("f")
        await one.store.drop(place("f"))
        assert await one.names("f") == set()


async def test_a_second_sidecar_is_told_that_the_file_is_taken(path: Path) -> None:
    async with opened(path):
        with pytest.raises(StoreBusyError, match=r"store\.path: another sidecar uses .*cache\.db"):
            await Opened(path).store.open()
    async with opened(path) as after:
        assert after.store.error is None


async def test_a_file_that_another_sidecar_took_meanwhile_is_trouble_and_no_crash(path: Path) -> None:
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_text("in the way")
    async with opened(path) as one:
        assert one.events == [StoreChanged("unwritable")]
        path.parent.unlink()
        async with opened(path) as two:
            two.put("a")
            await one.heals()
            assert await one.names("a") == set()
            assert one.events[-1] == StoreChanged("busy")
        await one.heals()
        assert await one.names("a") == {"a"}
        assert one.events[-1] == StoreChanged(None)


FOREIGN = {
    "text": b"this is no database, and never was one" * 100,
    "half a page": b"SQLite format 3\0" + b"\x10\x00" * 100,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
async def test_a_file_that_is_none_of_ours_is_set_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    async with opened(path) as one:
        one.put("a")
        await one.store.flush()
        assert await one.names("a") == {"a"}
        assert one.store.error is None
    (aside,) = path.parent.glob("cache.db.corrupt-*")
    assert aside.read_bytes() == content


async def test_a_database_of_another_application_or_schema_is_set_aside(path: Path) -> None:
    path.parent.mkdir()
    for pragma in ("application_id = 7", "user_version = 99"):
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE precious (x)")
            other.execute(f"PRAGMA {pragma}")
        other.close()
        async with opened(path) as one:
            one.put("a")
    asides = list(path.parent.glob("cache.db.corrupt-*"))
    assert len([each for each in asides if not each.name.endswith(("-wal", "-shm"))]) == 2


async def test_a_file_that_breaks_while_it_is_used_is_set_aside_and_a_new_one_begun(path: Path) -> None:
    async with opened(path) as one:
        for number in range(200):
            one.put(str(number), os.urandom(1000))
        await one.store.flush()
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    async with opened(path) as two:
        found = [await two.store.get(place(str(number))) for number in range(200)]
        assert None in found
        two.clock.advance(file_module.REOPEN_SECONDS)
        two.put("new")
        await two.store.flush()
        two.clock.advance(file_module.REOPEN_SECONDS)
        two.put("newer")
        await two.store.flush()
        assert two.store.error is None
        assert await two.names("newer") == {"newer"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_told_of_once(path: Path) -> None:
    path.parent.mkdir(mode=0o500)
    async with opened(path) as one:
        assert one.events == [StoreChanged("permission")]


async def test_a_path_that_can_be_no_file_is_told_of_and_heals_when_it_can(path: Path) -> None:
    path.mkdir(parents=True)
    async with opened(path) as one:
        assert one.events == [StoreChanged("unwritable")]
        one.put("a")
        await one.store.flush()
        assert (one.store.lost, await one.names("a")) == (1, set())
        path.rmdir()
        one.put("b")
        await one.store.flush()
        assert one.store.lost == 2, "it is not tried again at once"
        one.clock.advance(file_module.REOPEN_SECONDS)
        one.put("c")
        await one.store.flush()
        assert await one.names("c") == {"c"}
        assert one.events == [StoreChanged("unwritable"), StoreChanged(None)]


async def test_a_full_disk_loses_what_is_written_then_and_nothing_else(path: Path) -> None:
    async with opened(path) as one:
        one.put("before")
        await one.store.flush()
        now = one.store._disk
        assert now is not None
        now._connection.execute("PRAGMA max_page_count = 10")
        one.put("large", b"x" * 1_000_000)
        await one.store.flush()
        assert one.events == [StoreChanged("full")]
        assert await one.names("before") == set(), "degraded for a while"
        await one.heals()
        assert await one.names("before", "large") == {"before"}
        assert one.events[1:] == [StoreChanged(None)]


async def test_a_disk_that_hangs_holds_nobody_up(path: Path) -> None:
    async with opened(path) as one:
        one.put("a")
        await one.store.flush()
        let_go = asyncio.Event()
        loop = asyncio.get_running_loop()
        one.store._thread.submit(lambda: asyncio.run_coroutine_threadsafe(let_go.wait(), loop).result())
        assert await one.store.get(place("a")) is None
        assert one.events == [StoreChanged("slow")]
        one.put("b")  # returns
        let_go.set()
        one.clock.advance(file_module.REOPEN_SECONDS)
        assert await one.names("a") == {"a"}


@asynccontextmanager
async def hanging(one: Opened) -> AsyncIterator[None]:
    """Have the disk answer nothing."""
    let_go, has_begun = threading.Event(), threading.Event()

    def hangs() -> None:
        has_begun.set()
        let_go.wait()

    one.store._thread.submit(hangs)
    await asyncio.to_thread(has_begun.wait)
    try:
        yield
    finally:
        let_go.set()


async def test_what_is_to_be_forgotten_while_the_disk_hangs_is_not_read_and_goes_later(path: Path) -> None:
    async with opened(path) as one:
        one.put("a", owner=b"1")
        one.put("b", owner=b"2")
        await one.store.flush()
        async with hanging(one):
            assert await one.store.forget(owner=b"1") is None
            assert one.events == [StoreChanged("slow")]
            one.clock.advance(file_module.REOPEN_SECONDS)
            assert await one.store.get(Place(b"a", b"1", None)) is None
        await asyncio.gather(*one.store._tasks)
        assert await one.names("b") == {"b"}
        assert one.events[1:] == [StoreChanged(None)]
    async with opened(path) as two:
        assert await two.names("a", "b") == {"b"}


async def test_what_is_new_after_a_forgetting_that_waits_is_not_forgotten_with_it(path: Path) -> None:
    async with opened(path) as one:
        one.put("a", b"old", owner=b"1")
        await one.store.flush()
        async with locked(path):
            assert await one.store.forget(owner=b"1") is None
        one.put("a", b"new", owner=b"1")
        await one.heals()
        await one.store.flush()
    async with opened(path) as two:
        assert await two.store.get(place("a")) == Found(b"new")


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Hold the file, as a person does who looks at it and forgets to leave."""
    with closing(sqlite3.connect(path)) as person:
        person.execute("BEGIN IMMEDIATE")
        yield


async def test_what_could_not_be_forgotten_to_the_end_takes_the_file_along(path: Path) -> None:
    one = Opened(path)
    await one.store.open()
    one.put("a", owner=b"1")
    await one.store.flush()
    async with locked(path):
        assert await one.store.forget(owner=b"1") is None
        await one.store.close()
    async with opened(path) as two:
        assert await two.names("a") == set()


async def test_too_much_that_waits_to_be_forgotten_is_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "MOST_FORGOTTEN", 3)
    async with opened(path) as one:
        one.put("a", owner=b"1")
        one.put("what is noted of the store")
        await one.store.flush()
        async with hanging(one):
            monkeypatch.setattr(file_module, "FORGET_SECONDS", 0.01)
            for owner in (b"2", b"3", b"4", b"5"):
                assert await one.store.forget(owner=owner) is None
        await one.store.flush()
        await one.heals()
        assert await one.names("a", "what is noted of the store") == {"what is noted of the store"}


async def test_a_disk_that_hangs_when_it_is_opened_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as one:
        one.put("a")
    let_go = threading.Event()

    def opens_late(path: Path) -> disk.Disk:
        let_go.wait()
        return disk.opened(path)

    monkeypatch.setattr(file_module, "opened", opens_late)
    monkeypatch.setattr(file_module, "OPEN_SECONDS", 0.05)
    async with opened(path) as two:
        assert two.events == [StoreChanged("slow")]
        assert await two.names("a") == set()
        let_go.set()
        await two.heals()
        assert await two.names("a") == {"a"}
        assert two.events[1:] == [StoreChanged(None)]


async def test_a_walk_waits_for_a_slow_disk_and_says_where_it_cannot_go_on(path: Path) -> None:
    async with opened(path) as one:
        for number in range(disk.AT_ONCE + 1):
            one.put(str(number), owner=b"1")
        walk = one.store.walk()
        await anext(walk)
        one.store._in_trouble("slow")
        assert len([each async for each in walk]) == disk.AT_ONCE
        assert one.store._disk is not None
        one.store._disk.close()
        for _ in ("while it is read", "while it is not tried again"):
            with pytest.raises(StoreAwayError, match="unusable"):
                await anext(one.store.walk())


async def test_with_too_much_to_write_the_oldest_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "MOST_WAITING", 3)
    async with opened(path) as one:
        for name in "abcd":
            one.put(name)
        await one.store.flush()
        assert (await one.names("a", "b", "c", "d"), one.store.lost) == ({"b", "c", "d"}, 1)


async def test_what_was_put_is_written_by_itself_soon(path: Path) -> None:
    async with opened(path) as one:
        one.put("a")

        async def written() -> bool:
            await asyncio.sleep(0.01)
            return one.store.entries == 1

        await eventually(written)


WRITER = """
    import asyncio, sys, time
    from pathlib import Path
    from sidecar.cache.file import FileStore
    from sidecar.cache.records import Place

    async def main(path, first):
        store = FileStore(Path(path), max_bytes=1 << 24, clock=time.monotonic, observer=lambda _: None)
        await store.open()
        number = int(first)
        while True:
            number += 1
            key = str(number % 50).encode()
            owner = str(number % 5).encode()
            store.put(Place(key, owner, None), owner + b":" + str(number).encode() * 200, age=0.0, ttl=60.0)
            if number % 20 == 0:
                await store.flush()
                print("written", number, flush=True)
            if number % 70 == 0:
                if await store.forget(owner=owner) is not None:
                    print("forgotten", number, flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_fifty_kills_in_the_middle_of_writes_lose_no_truth(path: Path) -> None:
    """After each, every record is whole and one that was put; what was written is there, what was forgotten is not."""
    path.parent.mkdir()
    number = 0
    for _ in range(KILLS):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(number)),
            env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "COVERAGE_PROCESS_START": ""},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).split() for _ in range(8)]
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
        lines += [line.split() for line in rest.splitlines() if len(line.split()) == 2]
        forgotten = {int(n) % 5: int(n) for word, n in lines if word == b"forgotten"}
        number = max(int(n) for _, n in lines)
        async with opened(path) as one:
            assert one.events == []
            for key in range(50):
                found = await one.store.get(place(str(key)))
                if found is None:
                    continue
                owner, _, text = found.record.partition(b":")
                told = text[: len(text) // 200]
                assert told * 200 == text
                assert int(told) % 50 == key
                assert int(told) > forgotten.get(int(owner), 0), "what was forgotten came back"
    assert not list(path.parent.glob("*.corrupt-*"))
