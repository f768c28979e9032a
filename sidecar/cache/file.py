"""The file store: SQLite in WAL mode on a thread of its own, written in batches, never waited for long."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from sidecar.cache.records import Place
from sidecar.core.events import StoreChanged
from sidecar.service.ports import Clock, Observer, StoreAwayError

T = TypeVar("T")
APPLICATION_ID = 0x50535352
"""Marks the file as ours; one of another application, or of another schema, is set aside."""
SCHEMA = 1
BATCH_SECONDS = 0.5
"""What a SIGKILL may lose; what is forgotten is forgotten at once."""
GET_SECONDS = 0.05
"""A request waits no longer for the disk; a healthy one answers in a tenth of a millisecond."""
REOPEN_SECONDS = 5.0
"""Between two attempts to use a file that was in trouble."""
MOST_WAITING = 10_000
"""Records that wait to be written; with more, the oldest are not written: they can be fetched again."""
AT_ONCE = 200
"""Records read at once while all of them are: about a millisecond of the thread that requests wait for."""
_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    key BLOB PRIMARY KEY, owner BLOB, node BLOB, used INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON records (owner);
CREATE INDEX IF NOT EXISTS by_node ON records (node);
CREATE INDEX IF NOT EXISTS by_use ON records (used);
CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON records BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + length(new.record);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON records BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - length(old.record);
END;
"""


class StoreBusyError(OSError):
    """Another sidecar has the file."""


class _Waiting(NamedTuple):
    owner: bytes | None
    node: bytes | None
    record: bytes


class FileStore:
    """Records in a file of this sidecar alone, bounded in bytes, the least recently used making room.

    Nothing is dropped for its age: a clock may have jumped. Trouble with the disk is told of once, serving goes on
    without the store, and it is tried again from time to time.
    """

    kind = "file"
    is_shared = False

    def __init__(self, path: Path, *, max_bytes: int, clock: Clock, observer: Observer) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._observe = observer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="file-store")
        self._disk: _Disk | None = None
        self._lock: int | None = None
        self._waiting: dict[bytes, _Waiting] = {}
        self._touched: dict[bytes, None] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._try_again_at = 0.0
        self._is_corrupt = False
        self.error: str | None = None
        """What is wrong with the file; None: nothing."""
        self.entries: int | None = 0
        self.bytes: int | None = 0
        self.lost = 0
        """Records that were not written, for want of a working disk."""

    async def open(self) -> None:
        """Begin to use the file; raises `StoreBusyError`, while any other trouble is only told of."""
        await self._in_thread(self._take_lock)
        await self._reopen()

    async def get(self, place: Place) -> bytes | None:
        """Return a record, None where there is none or the disk does not answer in time."""
        key = place.key
        waiting = self._waiting.get(key)
        if waiting is not None:
            return waiting.record
        if not await self._usable():
            return None
        disk = self._disk
        assert disk is not None
        try:
            async with asyncio.timeout(GET_SECONDS):
                record = await self._in_thread(lambda: disk.get(key))
        except TimeoutError:
            self._in_trouble("slow")
            return None
        except sqlite3.Error as error:
            self._broken(error)
            return None
        if record is not None:
            self._touched[key] = None
            self._flush_soon()
        return record

    def ticket(self, place: Place) -> None:
        """Return nothing: no other sidecar forgets what this one keeps."""

    def put(self, place: Place, record: bytes, *, fetched_at: float, ttl: float, ticket: object = None) -> None:
        """Keep a record, whatever its time: a clock may have jumped; returns at once."""
        _ = fetched_at, ttl, ticket
        self._waiting.pop(place.key, None)
        self._waiting[place.key] = _Waiting(place.owner, place.node, record)
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        self._flush_soon()

    async def drop(self, place: Place) -> None:
        """Forget a record that is of no use."""
        self._waiting.pop(place.key, None)
        await self._forget("key = ?", (place.key,))

    async def forget(self, *, owner: bytes | None = None, node: bytes | None = None, everything: bool = False) -> int:
        """Forget for good before this returns, what still waits to be written included; say how many."""
        gone = {
            key
            for key, each in self._waiting.items()
            if (everything and each.owner is not None)
            or (owner is not None and each.owner == owner)
            or (node is not None and each.node == node)
        }
        for key in gone:
            del self._waiting[key]
        if everything:
            return await self._forget("owner IS NOT NULL", ())  # what is noted of the store stays
        count = 0
        for column, value in (("owner", owner), ("node", node)):
            if value is not None:
                count += await self._forget(f"{column} = ?", (value,))
        return count

    async def walk(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the key and the record of each entry, most recently used first, some at a time; see `Store.walk`."""
        await self.flush()
        before = 2**62
        while True:
            if self._disk is None and not await self._usable():  # nobody waits for this, so a slow disk will do
                raise StoreAwayError(self.error or "closed")
            disk = self._disk
            assert disk is not None
            try:
                rows = await self._in_thread(partial(disk.some_before, before))
            except sqlite3.Error as error:
                self._broken(error)
                raise StoreAwayError(_word_for(error)) from error
            for key, record, used in rows:
                yield key, record
                before = used
            if not rows:
                return

    async def flush(self) -> None:
        """Write what waits."""
        if not self._waiting and not self._touched:
            return
        waiting, self._waiting = self._waiting, {}
        touched, self._touched = [*self._touched], {}
        if not await self._usable():
            self.lost += len(waiting)
            return
        disk = self._disk
        assert disk is not None
        try:
            self.entries, self.bytes = await self._in_thread(lambda: disk.write(waiting, touched, self._max_bytes))
        except sqlite3.Error as error:
            self.lost += len(waiting)
            self._broken(error)

    async def close(self) -> None:
        """Write what waits, and let go of the file."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self.flush()
        disk, self._disk = self._disk, None
        if disk is not None:
            with suppress(sqlite3.Error):
                await self._in_thread(disk.close)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _take_lock(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # the same trouble will be told of when the file is opened
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreBusyError(
                f"store.path: another sidecar uses {self._path}. Give each a file of its own, or set store.kind: none."
            ) from error
        self._lock = lock

    async def _usable(self) -> bool:
        if self._disk is None and self._clock() >= self._try_again_at:
            await self._reopen()
        return self._disk is not None and self._clock() >= self._try_again_at

    async def _reopen(self) -> None:
        self._try_again_at = self._clock() + REOPEN_SECONDS
        try:
            if self._lock is None:
                await self._in_thread(self._take_lock)
            if self._is_corrupt:
                await self._in_thread(lambda: _set_aside(self._path))
                self._is_corrupt = False
            self._disk = await self._in_thread(lambda: _opened(self._path))
            self.entries, self.bytes = await self._in_thread(self._disk.count)
        except (sqlite3.Error, OSError) as error:
            self._broken(error)
            return
        self._try_again_at = 0.0
        if self.error is not None:
            self.error = None
            self._observe(StoreChanged(None))

    async def _forget(self, where: str, values: tuple[bytes, ...]) -> int:
        if not await self._usable():
            return 0
        disk = self._disk
        assert disk is not None
        try:
            return await self._in_thread(lambda: disk.forget(where, values))
        except sqlite3.Error as error:
            self._broken(error)
            return 0

    def _broken(self, error: sqlite3.Error | OSError) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            with suppress(RuntimeError):
                self._thread.submit(disk.close)
        word = _word_for(error)
        self._is_corrupt = word == "corrupt"
        self._in_trouble(word)

    def _in_trouble(self, word: str) -> None:
        self._try_again_at = self._clock() + REOPEN_SECONDS
        if self.error != word:
            self.error = word
            self._observe(StoreChanged(word))

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_later(), name="file-store-flush")

    async def _flush_later(self) -> None:
        while self._waiting or self._touched:
            await asyncio.sleep(BATCH_SECONDS)
            await self.flush()


class _Disk:
    """The open file; used on the store's thread only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (self._used,) = connection.execute("SELECT coalesce(max(used), 0) FROM records").fetchone()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()

    def count(self) -> tuple[int, int]:
        entries, size = self._connection.execute("SELECT entries, bytes FROM totals").fetchone()
        return int(entries), int(size)

    def get(self, key: bytes) -> bytes | None:
        found = self._connection.execute("SELECT record FROM records WHERE key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def write(self, waiting: dict[bytes, _Waiting], touched: list[bytes], max_bytes: int) -> tuple[int, int]:
        with self._connection:
            self._connection.executemany(
                "UPDATE records SET used = ? WHERE key = ?", [(self._next(), key) for key in touched]
            )
            self._connection.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in waiting])
            self._connection.executemany(
                "INSERT INTO records (key, owner, node, used, record) VALUES (?, ?, ?, ?, ?)",
                [(key, each.owner, each.node, self._next(), each.record) for key, each in waiting.items()],
            )
            entries, size = self.count()
            while size > max_bytes and entries:
                many = max(1, entries // 20)
                self._connection.execute(
                    "DELETE FROM records WHERE key IN (SELECT key FROM records ORDER BY used LIMIT ?)", (many,)
                )
                entries, size = self.count()
        return entries, size

    def some_before(self, used: int) -> list[tuple[bytes, bytes, int]]:
        """Return some records that were used before this one, the last used first."""
        rows = self._connection.execute(
            "SELECT key, record, used FROM records WHERE used < ? AND owner IS NOT NULL ORDER BY used DESC LIMIT ?",
            (used, AT_ONCE),
        )
        return rows.fetchall()

    def forget(self, where: str, values: tuple[bytes, ...]) -> int:
        """Delete, and be sure of it: a lost deletion would bring back what a user has changed."""
        self._connection.execute("PRAGMA synchronous = FULL")
        try:
            with self._connection:
                return self._connection.execute(f"DELETE FROM records WHERE {where}", values).rowcount  # noqa: S608 — ours
        finally:
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def _next(self) -> int:
        self._used += 1
        return int(self._used)


def _opened(path: Path) -> _Disk:
    """Open the file, or set aside what is none of ours and begin a new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _Disk(_connected(path))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # the disk's trouble, not the file's
        _set_aside(path)
        return _Disk(_connected(path))


def _connected(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # its journal files get the same mode
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, schema) != (APPLICATION_ID, SCHEMA):
            if application or schema or tables:
                raise sqlite3.DatabaseError("the file is of another application or schema")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside(path: Path) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    place = next(
        candidate
        for number in range(1000)
        if not os.path.lexists(candidate := f"{path}.corrupt-{stamp}{f'-{number}' if number else ''}")
    )
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{ending}").replace(f"{place}{ending}")


def _word_for(error: sqlite3.Error | OSError) -> str:
    """Return one of a closed set of words."""
    if isinstance(error, StoreBusyError):
        return "busy"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, OSError):
        return "unwritable"
    text = str(error)
    for sign, word in (("full", "full"), ("readonly", "read-only"), ("I/O", "io"), ("locked", "locked")):
        if sign in text:
            return word
    return "corrupt" if "malformed" in text or "not a database" in text else "unusable"
