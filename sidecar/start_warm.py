"""The warm-up at start: from a list, or from what the store has; readiness may wait for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from sidecar.pairs import Wrong, read_pairs
from sidecar.service.ports import Clock
from sidecar.service.warm_jobs import Gate
from sidecar.service.warmup import Pair, WarmUpRule, listed
from sidecar.settings import Settings, WarmUpSettings
from sidecar.stores import StartError
from sidecar.wiring import Core

MOST_WRONG = 20
"""Lines of a list that are told of one by one."""


def warm_up_rule(settings: WarmUpSettings) -> WarmUpRule:
    """Return how fast a warm-up is, and how long it tries."""
    return WarmUpRule(settings.rate, settings.concurrency, settings.batch, settings.patience)


async def begin_warm_up(core: Core, settings: Settings, clock: Clock) -> Callable[[], str | None]:
    """Begin what the settings name, and return why the sidecar is not ready yet; raises `StartError`."""
    warm = settings.warmup
    pairs: AsyncIterator[Pair]
    total: int | None = None
    if warm.file is not None:
        found = await asyncio.to_thread(_read, warm.file, warm.max_pairs)
        pairs, total = listed(found), len(found)
    elif warm.from_store and core.store is not None:
        pairs = core.tiers.working_set()
    else:
        return lambda: None
    number = core.warm_jobs.submit(pairs, total, warm_up_rule(warm))
    job = core.warm_jobs.get(number)
    assert job is not None
    return Gate(job, min_ratio=warm.min_ratio, until=clock() + warm.timeout, clock=clock).closed


def _read(path: Path, most: int) -> list[Pair]:
    log: structlog.stdlib.BoundLogger = structlog.get_logger()
    pairs: list[Pair] = []
    wrong = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for found in read_pairs(lines):
                if not isinstance(found, Wrong):
                    pairs.append(found)
                elif (wrong := wrong + 1) <= MOST_WRONG:
                    log.warning("warm_up_list_wrong", line=found.line, what=found.what)
                if len(pairs) > most:
                    raise StartError(f"warmup.file: {path} has more pairs than warmup.max_pairs ({most}).")
    except OSError as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"warmup.file: {path} cannot be read: {error.strerror}.") from error
    if wrong > MOST_WRONG:
        log.warning("warm_up_list_wrong", more=wrong - MOST_WRONG)
    return pairs
