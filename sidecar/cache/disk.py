"""The file of the file store: SQLite in WAL mode. Everything here may block, and is called on the store's thread."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

APPLICATION_ID = 0x50535352
"""Marks the file as ours; one of another application, or of another schema, is set aside."""
SCHEMA = 2
JOURNAL_BYTES = 4 * 1024 * 1024
"""What the journal beside the file is cut back to."""
AT_ONCE = 200
"""Records read at once while all of them are: about a millisecond of the thread that requests wait for."""
_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    key BLOB PRIMARY KEY, owner BLOB, node BLOB, used INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON records (owner);
CREATE INDEX IF NOT EXISTS by_node ON records (node);
CREATE INDEX IF NOT EXISTS by_use ON records (used);
CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL);
INSERT INTO totals SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON records BEGIN UPDATE totals SET entries = entries + 1; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON records BEGIN UPDATE totals SET entries = entries - 1; END;
"""
Void = tuple[str, bytes]
"""What is to be forgotten: a column, and its value."""
ALL: Void = ("all", b"")  # but for what is noted of the store


class Row(NamedTuple):
    """A record, and what it has in common with others; see `Place`."""

    owner: bytes | None
    node: bytes | None
    record: bytes


class Disk:
    """The open file. Its methods raise `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (self._used,) = connection.execute("SELECT coalesce(max(used), 0) FROM records").fetchone()

    def close(self) -> None:
        """Let go of the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def size(self) -> tuple[int, int]:
        """Return how many records there are, and the bytes of the file that are in use, indexes and all."""
        ask = self._connection.execute
        (entries,) = ask("SELECT entries FROM totals").fetchone()
        (pages,), (free,), (page,) = (
            ask(f"PRAGMA {each}").fetchone() for each in ("page_count", "freelist_count", "page_size")
        )
        return int(entries), int((pages - free) * page)

    def get(self, key: bytes) -> bytes | None:
        """Return a record."""
        found = self._connection.execute("SELECT record FROM records WHERE key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def write(
        self, forgetting: Iterable[Void], waiting: dict[bytes, Row], touched: list[bytes], max_bytes: int
    ) -> tuple[int, int]:
        """Forget, write and make room, all of it or nothing; return the size."""
        with self._durable(is_wanted=bool(forgetting)), self._connection:
            self._delete(forgetting)
            self._connection.executemany(
                "UPDATE records SET used = ? WHERE key = ?", [(self._next(), key) for key in touched]
            )
            self._connection.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in waiting])
            self._connection.executemany(
                "INSERT INTO records (key, owner, node, used, record) VALUES (?, ?, ?, ?, ?)",
                [(key, each.owner, each.node, self._next(), each.record) for key, each in waiting.items()],
            )
            entries, size = self.size()
            while size > max_bytes and entries:
                many = max(1, entries // 20)
                self._connection.execute(
                    "DELETE FROM records WHERE key IN (SELECT key FROM records ORDER BY used LIMIT ?)", (many,)
                )
                entries, size = self.size()
        return entries, size

    def some_before(self, used: int) -> list[tuple[bytes, bytes, int]]:
        """Return some records that were used before this one, the last used first."""
        rows = self._connection.execute(
            "SELECT key, record, used FROM records WHERE used < ? AND owner IS NOT NULL ORDER BY used DESC LIMIT ?",
            (used, AT_ONCE),
        )
        return rows.fetchall()

    def forget(self, forgetting: Iterable[Void]) -> int:
        """Delete, and be sure of it: a lost deletion would bring back what a user has changed."""
        with self._durable(), self._connection:
            return self._delete(forgetting)

    def _delete(self, forgetting: Iterable[Void]) -> int:
        gone = 0
        for column, value in forgetting:
            where, values = ("owner IS NOT NULL", ()) if (column, value) == ALL else (f"{column} = ?", (value,))
            gone += self._connection.execute(f"DELETE FROM records WHERE {where}", values).rowcount  # noqa: S608 — ours
        return gone

    @contextmanager
    def _durable(self, *, is_wanted: bool = True) -> Iterator[None]:
        """Have the transaction inside reach the disk, and not only the kernel, before it is over."""
        if is_wanted:
            self._connection.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            if is_wanted:
                self._connection.execute("PRAGMA synchronous = NORMAL")

    def _next(self) -> int:
        self._used += 1
        return int(self._used)


def opened(path: Path) -> Disk:
    """Open the file, or set aside what is none of ours and begin a new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return Disk(_connected(path))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # the disk's trouble, not the file's
        set_aside(path)
        return Disk(_connected(path))


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
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


def set_aside(path: Path) -> None:
    """Rename what cannot be used, so that a person can look at it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    place = next(
        candidate
        for number in range(1000)
        if not os.path.lexists(candidate := f"{path}.corrupt-{stamp}{f'-{number}' if number else ''}")
    )
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{ending}").replace(f"{place}{ending}")


def remove(path: Path) -> None:
    """Remove the file, if the disk allows it."""
    for ending in ("", "-wal", "-shm"):
        with suppress(OSError):
            Path(f"{path}{ending}").unlink()
