"""A Unix socket for LearnFlow's listener, beside its port: reached by this user and his group, by nobody else."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidecar.stores import StartError

MASK = 0o117
"""Leaves 0660: whoever may write to it may ask."""
KEY = "listen_unix"


@contextmanager
def unix_socket(path: Path | None) -> Iterator[socket.socket | None]:
    """Bind a socket, and remove its file at the end; None: none is wanted. Raises `StartError`.

    What is left of a process that was killed is replaced; a socket at which somebody listens is not.
    """
    if path is None:
        yield None
        return
    with socket.socket(socket.AF_UNIX) as bound:
        try:
            _clear(path)
            before = os.umask(MASK)
            try:
                bound.bind(str(path))
            finally:
                os.umask(before)
        except OSError as error:
            if isinstance(error, StartError):
                raise
            raise StartError(f"{KEY}: cannot listen at {path}: {error.strerror or error}.") from error
        ours = path.stat().st_ino
        try:
            yield bound
        finally:
            with suppress(OSError):
                if path.stat().st_ino == ours:  # and not that of whoever came after us
                    path.unlink()


def _clear(path: Path) -> None:
    """Remove a socket at which nobody listens any more."""
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise StartError(f"{KEY}: {path} is there already, and is no socket. Name another path, or remove it.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise StartError(f"{KEY}: another process listens at {path}. Name another path, or stop it.")
