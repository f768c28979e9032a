"""Lines to standard error by a thread of its own: who does not read them holds nobody up (contract §4 promise 6)."""

import os
import select
import threading
from collections import Counter as Tally
from io import UnsupportedOperation
from queue import SimpleQueue
from typing import TextIO

CLOSE_SECONDS = 1.0
"""How long the end of the process waits for lines that nobody may be reading."""


class LogWriter:
    """A stream that takes a line at once, always; `dropped` counts what it could not keep or write, by reason."""

    def __init__(self, stream: TextIO | None, *, max_lines: int) -> None:
        """`stream`: None where standard error is closed; `max_lines`: wait to be written, further ones are dropped."""
        self.dropped = Tally({"blocked": 0, "failed": 0})
        self._isatty = stream is not None and stream.isatty()
        self._file = _descriptor(stream)
        self.max_lines = max_lines
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def isatty(self) -> bool:
        """Return whether a person reads it."""
        return self._isatty

    def write(self, line: str) -> None:
        """Take a line, or drop it."""
        if self._lines.qsize() >= self.max_lines:
            self.dropped["blocked"] += 1
        else:
            self._lines.put(line)

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def close(self) -> None:
        """Let what was taken be written, if it can be in time."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line.encode("utf-8", "backslashreplace"))
            except OSError:  # a full disk, a pipe without a reader: logging goes on when it can
                self.dropped["failed"] += 1

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise OSError("standard error is closed")
        rest = memoryview(b"\n" + line if self._broken else line)  # after half a line, a whole one begins a new one
        while rest:
            try:
                written = os.write(self._file, rest)
            except BlockingIOError:  # somebody else has made it so
                select.select([], [self._file], [])
                continue
            self._broken = written < len(rest)
            rest = rest[written:]


def _descriptor(stream: TextIO | None) -> int | None:
    if stream is None:
        return None
    try:
        return stream.fileno()
    except (UnsupportedOperation, ValueError):
        return None
