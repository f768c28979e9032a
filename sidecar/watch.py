"""A file that may be replaced while we run: by an editor, or by the symlink swap of a mounted ConfigMap."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 1.0
"""Between two looks; a look is one stat(), which works on every volume that a pod can mount."""


class Identity(NamedTuple):
    """What changes when a file's content does."""

    device: int
    inode: int
    changed_ns: int
    size: int


Identities = tuple[Identity | None, ...]


def identity(path: Path) -> Identity | None:
    """Return what changes when a file's content does, whatever links lead to it; None where there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116 — follows links, as does open()
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


async def watch(
    path: Path,
    changed: Callable[[], Awaitable[None]],
    *,
    since: Identity | None = None,
    poll_seconds: float = POLL_SECONDS,
    failed: Callable[[Exception], None] | None = None,
) -> None:
    """Call `changed` after each change of the file, for ever; what it raises goes to `failed`, and the watch goes on.

    `since`: what the file was when it was read; None: what it is now. A file is left alone until it looked the same
    twice: what is still being written must not be read.
    """
    known = None if since is None else (since,)
    await watch_all((path,), changed, since=known, poll_seconds=poll_seconds, failed=failed)


async def watch_all(
    paths: Sequence[Path],
    changed: Callable[[], Awaitable[None]],
    *,
    since: Identities | None = None,
    poll_seconds: float = POLL_SECONDS,
    failed: Callable[[Exception], None] | None = None,
) -> None:
    """Call `changed` after each change of any of the files, for ever; see `watch`."""
    seen = await asyncio.to_thread(_identities, paths)
    taken = seen if since is None else since
    while True:
        await asyncio.sleep(poll_seconds)
        now = await asyncio.to_thread(_identities, paths)
        if now == seen != taken:
            taken = now
            try:
                await changed()
            except Exception as error:
                if failed is None:
                    raise
                failed(error)
        seen = now


def _identities(paths: Sequence[Path]) -> Identities:
    return tuple(identity(path) for path in paths)
