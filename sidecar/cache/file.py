"""The file store: SQLite in WAL mode on a thread of its own, written in batches, never waited for long."""

import asyncio
import fcntl
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from sidecar.cache.disk import ALL, Disk, Row, Void, opened, remove, set_aside
from sidecar.cache.records import Place
from sidecar.cache.tiered import Found
from sidecar.core.events import StoreChanged
from sidecar.service.ports import Clock, Observer, StoreAwayError

T = TypeVar("T")
BATCH_SECONDS = 0.5
"""What a SIGKILL may lose; what is forgotten is forgotten at once."""
GET_SECONDS = 0.05
"""A request waits no longer for the disk; a healthy one answers in a tenth of a millisecond."""
FORGET_SECONDS = 0.5
"""Who has something forgotten waits no longer for the disk; until it is done, nothing of it is read."""
OPEN_SECONDS = 0.5
"""The start waits no longer for the disk: a pod must answer within a second."""
REOPEN_SECONDS = 5.0
"""Between two attempts to use a file that was in trouble."""
MOST_WAITING = 10_000
"""Records that wait to be written; with more, the oldest are not written: they can be fetched again."""
MOST_FORGOTTEN = 1_000
"""What may wait to be forgotten; with more, all is."""


class StoreBusyError(OSError):
    """Another sidecar has the file."""


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
        self._disk: Disk | None = None
        self._lock: int | None = None
        self._waiting: dict[bytes, Row] = {}
        self._touched: dict[bytes, None] = {}
        self._forgetting: dict[Void, int] = {}
        self._numbers = itertools.count()
        self._flushing: asyncio.Task[None] | None = None
        self._healing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[int | None]] = set()
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
        self._healing = asyncio.ensure_future(self._begin())
        await asyncio.wait({self._healing}, timeout=OPEN_SECONDS)
        if self._healing.done():
            self._healing.result()
        else:
            self._in_trouble("slow")

    async def get(self, place: Place) -> Found | None:
        """Return a record, None where there is none or the disk does not answer in time."""
        key = place.key
        waiting = self._waiting.get(key)
        if waiting is not None:
            return Found(waiting.record)
        disk = self._disk
        if disk is None:
            self._heal_soon()
        if disk is None or self._clock() < self._try_again_at or self._is_forgotten(place):
            return None
        try:
            async with asyncio.timeout(GET_SECONDS):
                record = await self._in_thread(lambda: disk.get(key))
        except TimeoutError:
            self._in_trouble("slow")
            return None
        except sqlite3.Error as error:
            self._broken(error)
            return None
        self._well()
        if record is None or self._is_forgotten(place):
            return None
        self._touched[key] = None
        self._flush_soon()
        return Found(record)

    def ticket(self, place: Place) -> None:
        """Return nothing: no other sidecar forgets what this one keeps."""

    def put(self, place: Place, record: bytes, *, age: float, ttl: float, ticket: object = None) -> None:
        """Keep a record, whatever its time: a clock may have jumped; returns at once."""
        _ = age, ttl, ticket
        self._waiting.pop(place.key, None)
        self._waiting[place.key] = Row(place.owner, place.node, record)
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        self._flush_soon()

    async def drop(self, place: Place) -> None:
        """Forget a record that is of no use."""
        self._waiting.pop(place.key, None)
        await self._forget(("key", place.key))

    async def forget(
        self, *, owner: bytes | None = None, node: bytes | None = None, everything: bool = False
    ) -> int | None:
        """Forget for good before this returns, what still waits to be written included; say how many.

        None: the disk does not take it now. Nothing of it is read any more, and it goes as soon as the disk takes it.
        """
        gone = {
            key
            for key, each in self._waiting.items()
            if (everything and each.owner is not None)
            or (owner is not None and each.owner == owner)
            or (node is not None and each.node == node)
        }
        for key in gone:
            del self._waiting[key]
        named = [(column, value) for column, value in (("owner", owner), ("node", node)) if value is not None]
        count = await self._forget(*([ALL] if everything else named))
        return None if count is None else count + len(gone)

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
        """Write what waits, after what is to be forgotten."""
        if not self._waiting and not self._touched and not self._forgetting:
            return
        waiting, self._waiting = self._waiting, {}
        touched, self._touched = [*self._touched], {}
        if self._disk is None and not await self._usable():
            self.lost += len(waiting)
            return
        disk, forgetting = self._disk, dict(self._forgetting)
        assert disk is not None
        try:
            self.entries, self.bytes = await self._in_thread(
                lambda: disk.write(forgetting, waiting, touched, self._max_bytes)
            )
        except sqlite3.Error as error:
            self.lost += len(waiting)
            self._broken(error)
        else:
            self._forgotten(forgetting)
            self._well()

    async def close(self) -> None:
        """Write what waits, and let go of the file."""
        tasks = [each for each in (self._flushing, self._healing, *self._tasks) if each is not None]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._try_again_at = 0.0
        await self.flush()
        disk, self._disk = self._disk, None
        if disk is not None:
            with suppress(sqlite3.Error):
                await self._in_thread(disk.close)
        if self._forgetting:
            await self._in_thread(partial(remove, self._path))  # the next process would read what is to be forgotten
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
        """Return whether there is an open file, after another attempt to open it where one is due."""
        self._heal_soon()
        if self._healing is not None:
            await asyncio.wait({self._healing})
        return self._disk is not None

    def _heal_soon(self) -> None:
        is_trying = self._healing is not None and not self._healing.done()
        if self._disk is None and not is_trying and self._clock() >= self._try_again_at:
            self._healing = asyncio.get_running_loop().create_task(self._reopen(), name="file-store-open")

    async def _begin(self) -> None:
        await self._in_thread(self._take_lock)
        await self._reopen()

    async def _reopen(self) -> None:
        self._try_again_at = self._clock() + REOPEN_SECONDS
        try:
            if self._lock is None:
                await self._in_thread(self._take_lock)
            if self._is_corrupt:
                await self._in_thread(lambda: set_aside(self._path))
                self._is_corrupt = False
            self._disk = await self._in_thread(lambda: opened(self._path))
            self.entries, self.bytes = await self._in_thread(self._disk.size)
        except (sqlite3.Error, OSError) as error:
            self._broken(error)
            return
        self._try_again_at = 0.0
        self._well()
        if self._forgetting:
            await self._apply(dict(self._forgetting))

    def _is_forgotten(self, place: Place) -> bool:
        void = self._forgetting
        return bool(void) and (
            ("key", place.key) in void
            or (place.owner is not None and (("owner", place.owner) in void or ALL in void))
            or (place.node is not None and ("node", place.node) in void)
        )

    async def _forget(self, *what: Void) -> int | None:
        number = next(self._numbers)
        self._forgetting |= dict.fromkeys(what, number)
        if len(self._forgetting) > MOST_FORGOTTEN:
            self._forgetting = {ALL: number}
        task = asyncio.ensure_future(self._apply(dict.fromkeys(what, number)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=FORGET_SECONDS)
        if not task.done():
            self._in_trouble("slow")
            return None
        return task.result()

    async def _apply(self, forgetting: dict[Void, int]) -> int | None:
        """Forget on disk; None: the disk does not take it."""
        if self._disk is None and not await self._usable():
            return None
        disk = self._disk
        assert disk is not None
        try:
            gone = await self._in_thread(lambda: disk.forget(forgetting))
        except sqlite3.Error as error:
            self._broken(error)
            return None
        self._forgotten(forgetting)
        return gone

    def _forgotten(self, forgetting: dict[Void, int]) -> None:
        """Note what is forgotten for good, unless it was asked for once more meanwhile."""
        for each, number in forgetting.items():
            if self._forgetting.get(each) == number:
                del self._forgetting[each]

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

    def _well(self) -> None:
        if self.error is not None and self._clock() >= self._try_again_at:
            self.error = None
            self._observe(StoreChanged(None))

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_later(), name="file-store-flush")

    async def _flush_later(self) -> None:
        while self._waiting or self._touched:
            await asyncio.sleep(BATCH_SECONDS)
            await self.flush()


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
