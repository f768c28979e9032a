"""Settings that change while we run: read again, checked first, swapped whole (contract §5, reload)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.config_file import ConfigError
from sidecar.core.events import Crashed, Reloaded
from sidecar.service.ports import Observer
from sidecar.settings import ANY, KeyPath, Settings, keys
from sidecar.watch import Identity

LIVE: frozenset[KeyPath] = frozenset(
    {
        ("ops", "admin_token_file"),
        ("upstream", "detect_interval"),
        ("upstream", "max_in_flight"),
        ("upstream", "max_response"),
        ("deadline",),
        ("retry",),
        ("breaker",),
        ("policy",),
        ("rollout",),
        ("shadow",),
        ("routes",),
        ("proxy",),
        ("cache",),
        ("warmup", "rate"),
        ("warmup", "concurrency"),
        ("warmup", "batch"),
        ("warmup", "patience"),
        ("warmup", "max_pairs"),
        ("limits", "max_body"),
        ("drain",),
        ("log",),
    }
)
"""The keys, and the sections as a whole, whose change is in force for the requests that begin after it. All others are
built into what runs (sockets, files, connections, compiled templates) or count at the start only: they wait for a
restart, and are named."""


def is_live(path: KeyPath) -> bool:
    """Return whether a change of this key needs no restart."""
    return any(path[:depth] in LIVE for depth in range(1, len(path) + 1))


class Merged(NamedTuple):
    """What a reload puts in force, and the keys that wait for a restart."""

    settings: Settings
    waiting: tuple[str, ...]


def merged(current: Settings, read: Settings) -> Merged:
    """Lay what can change now over what is in force; what is equal stays the same object."""
    waiting: list[str] = []

    def lay(now: Any, new: Any, at: KeyPath) -> Any:
        if now == new:
            return now
        if is_live(at):
            return new
        if at in _SECTIONS:
            names = [each.name for each in fields(now)]
            return replace(now, **{name: lay(getattr(now, name), getattr(new, name), (*at, name)) for name in names})
        waiting.append(".".join(at))
        return now

    settings: Settings = lay(current, read, ())
    return Merged(settings, tuple(waiting))


_SECTIONS = {key.path[:depth] for key in keys() for depth in range(len(key.path)) if ANY not in key.path}


class Origin(NamedTuple):
    """Where settings come from: how they are read again, and the file to watch, where there is one."""

    load: Callable[[], Settings]
    path: Path | None
    read_as: Identity | None = None
    """What the file was when it was read."""


Reload = Callable[[], Awaitable[None]]


class Reloader:
    """Reads the settings again, and puts into force what can be; a mistake leaves the old ones as they are."""

    def __init__(
        self,
        load: Callable[[], Settings],
        current: Callable[[], Settings],
        adopt: Callable[[Settings], None],
        observer: Observer,
    ) -> None:
        self._load = load
        self._current = current
        self._adopt = adopt
        self._observe = observer
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self) -> None:
        """Read again, and tell what came of it; never raises, as whoever asked goes on."""
        async with self._one_at_a_time:
            try:
                read = await asyncio.to_thread(self._load)
                current = self._current()
                settings, waiting = merged(current, read)
                if settings != current:
                    self._adopt(settings)
            except ConfigError as error:
                self._tell(tuple(map(str, error.problems)), ())
            except Exception as error:  # noqa: BLE001 — told of, by its name and place
                self._observe(Crashed("reload", error))
                self._tell((f"config: {type(error).__name__} while it was read; the log says where",), ())
            else:
                self._tell((), waiting)

    def _tell(self, problems: tuple[str, ...], waiting: tuple[str, ...]) -> None:
        self._observe(Reloaded(time.time(), problems, waiting))
