"""Settings that change while we run: read again, checked first, swapped whole (contract §5, reload)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from sidecar.config_file import ConfigError
from sidecar.core.events import Reloaded
from sidecar.service.ports import Observer
from sidecar.settings import Settings
from sidecar.watch import Identity

LIVE = frozenset({"policy", "rollout", "shadow", "routes", "log"})
"""The sections that a request reads when it begins, and the log; all else is built in and waits for a restart."""


class Origin(NamedTuple):
    """Where settings come from: how they are read again, and the file to watch, where there is one."""

    load: Callable[[], Settings]
    path: Path | None
    read_as: Identity | None = None
    """What the file was when it was read."""


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
        """Read again, and tell what came of it."""
        async with self._one_at_a_time:
            try:
                read = await asyncio.to_thread(self._load)
            except ConfigError as error:
                self._observe(Reloaded(time.time(), tuple(map(str, error.problems)), ()))
                return
            current = self._current()
            changed = {
                each.name: getattr(read, each.name)
                for each in fields(Settings)
                if getattr(read, each.name) != getattr(current, each.name)
            }
            self._adopt(replace(current, **{name: value for name, value in changed.items() if name in LIVE}))
            self._observe(Reloaded(time.time(), (), tuple(sorted(changed.keys() - LIVE))))
