"""What is made of files that may be replaced while we run: made again when they change, or left as it was."""

import asyncio
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.core.events import UpstreamFilesRead
from sidecar.secret_file import SecretFileError, read_file
from sidecar.service.ports import Observer
from sidecar.watch import identity, watch_all

T = TypeVar("T")

DOUBT_SECONDS = 1.0
"""Between two looks because the value was refused: a storm of refusals says no more than one."""


class Rotating(Generic[T]):
    """A value made of files.

    Two files that belong together are seldom replaced at one instant: what cannot be used in between changes nothing.
    """

    def __init__(
        self,
        what: str,
        files: Mapping[str, Path],
        make: Callable[[], T],
        observer: Observer,
        *,
        adopted: Callable[[T], None] = lambda _: None,
    ) -> None:
        """Read the files for the first time.

        `what`: the value's name in telemetry; `files`: by key; `adopted`: told of each value that is put in force.
        `make`, which runs in a thread of its own when the files change, and this raise `SecretFileError`.
        """
        self._what = what
        self._adopted = adopted
        self._doubted = asyncio.Event()
        self._files = files
        self._make = make
        self._observe = observer
        self._one_at_a_time = asyncio.Lock()
        self._read_as = tuple(map(identity, files.values()))
        self._digest = self._digest_of_files()
        self.value = make()
        self.error: str | None = None
        """What is wrong with the files as they are now; None: nothing."""
        adopted(self.value)

    async def reload(self) -> None:
        """Read the files again; tell of it if they are others, or if they cannot be used."""
        async with self._one_at_a_time:
            before = (self._digest, self.error)
            try:
                self._digest, self.value = await asyncio.to_thread(self._read)
                self.error = None
            except SecretFileError as error:
                self.error = str(error)
            if self._digest != before[0]:
                self._adopted(self.value)
            if (self._digest, self.error) != before:
                self._observe(UpstreamFilesRead(self._what, self.error))

    async def watch(self) -> None:
        """Read the files again after each change of one of them, for ever."""
        await watch_all(tuple(self._files.values()), self.reload, since=self._read_as)

    def doubt(self) -> None:
        """Note that the value was refused: its files may be others already."""
        self._doubted.set()

    async def look_when_in_doubt(self) -> None:
        """Read the files again when the value was refused, for ever."""
        while True:
            await self._doubted.wait()
            await self.reload()
            await asyncio.sleep(DOUBT_SECONDS)
            self._doubted.clear()

    def _read(self) -> tuple[bytes, T]:
        """Return what the files are now; what changes after the digest was taken is read again."""
        digest = self._digest_of_files()
        return digest, (self.value if digest == self._digest else self._make())

    def _digest_of_files(self) -> bytes:
        digest = sha256()
        for key, path in self._files.items():
            try:
                digest.update(sha256(read_file(path)).digest())
            except SecretFileError as error:
                raise SecretFileError(f"{key}: {error}") from error
        return digest.digest()
