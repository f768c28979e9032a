"""The file of `warm --resume`: how much of a list is done, and what failed of it."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec


class ResumeError(Exception):
    """The file cannot be used; a sentence."""


class Noted(msgspec.Struct):
    """What the runs before have done of a list."""

    digest: str
    """Which list."""
    done: int = 0
    failed: int = 0
    reasons: dict[str, int] = {}
    failures: list[dict[str, Any]] = []
    """Some of what failed, as a job's status tells it."""


class Resume:
    """How far a list is, in a file that is bound to the list; without a path, nowhere."""

    def __init__(self, path: Path | None, pairs: Sequence[tuple[int, str]]) -> None:
        self._path = path
        self._digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    @property
    def is_there(self) -> bool:
        """Whether there is something to resume."""
        return self._path is not None and self._path.exists()

    def read(self) -> Noted:
        """Return what is done already; raises `ResumeError`, also where nothing could be noted."""
        if self._path is None:
            return Noted(self._digest)
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise ResumeError(f"--resume: {self._path.parent} is no folder in which a file can be written.")
        if not self._path.exists():
            return Noted(self._digest)
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Noted)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ResumeError(f"--resume: {self._path} is no file of this command's.") from error
        if found.digest != self._digest:
            raise ResumeError(f"--resume: {self._path} belongs to another list; name another file, or remove it.")
        return found

    def note(self, done: int, failed: int, reasons: dict[str, int], failures: list[dict[str, Any]]) -> None:
        """Note how far it is: whole, or not at all; raises `ResumeError`."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_bytes(msgspec.json.encode(Noted(self._digest, done, failed, reasons, failures)))
            new.replace(self._path)
        except OSError as error:
            raise ResumeError(f"--resume: {self._path} cannot be written: {error.strerror}.") from error

    def over(self) -> None:
        """Remove the file: there is nothing to resume; raises `ResumeError`."""
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise ResumeError(f"--resume: {self._path} cannot be removed: {error.strerror}.") from error
