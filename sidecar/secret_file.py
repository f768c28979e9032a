"""A secret in a file, as Kubernetes, Docker and systemd hand it over; it is never said again."""

import os
import stat
from pathlib import Path

LARGEST = 1024 * 1024
"""Bytes: a system's bundle of authorities takes a quarter of it, and a device or a log is no secret."""


class SecretFileError(ValueError):
    """A file cannot be used as what it should be; says where and why, and nothing of what is in it."""


def read_whole(path: Path) -> bytes:
    """Return what is in a file, which may be nothing; raises `SecretFileError`. It waits for nobody."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SecretFileError(f"{path} is no regular file")
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise SecretFileError(f"{path} is larger than {LARGEST} bytes")
    return content


def _at_once(path: str, flags: int) -> int:
    """Open a file, and a named pipe without waiting for somebody who writes to it: that would be for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path) -> bytes:
    """Return what is in a file; raises `SecretFileError`, also where that is nothing."""
    content = read_whole(path)
    if not content.strip():
        raise SecretFileError(f"{path} is empty")
    return content


def read_secret(path: Path) -> str:
    """Return the one line in a file; a newline at its end is none of it. Raises `SecretFileError`."""
    try:
        text = read_file(path).decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise SecretFileError(f"{path} is not UTF-8 text") from error
    if len(text.splitlines()) > 1:
        raise SecretFileError(f"{path} has more than one line")
    return text


def read_token(path: Path) -> str:
    """Return the bearer token in a file; raises `SecretFileError` where it is nothing that a header can hold."""
    token = read_secret(path).strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SecretFileError(f"{path} holds no bearer token; allowed: printable ASCII without blanks")
    return token
