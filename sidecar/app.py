"""The composition root: settings → a wired application; start and drain. The only place that names concrete classes."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EADDRINUSE
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import structlog
from aiohttp import web

from sidecar.cache.memory import MemoryCache
from sidecar.core.prompt import RenderLimits
from sidecar.core.retry import RetryBudget, RetryRule, Rng
from sidecar.server import generate_prompt
from sidecar.server.generate_prompt import GeneratePrompt
from sidecar.server.listener import Handler, Routes, make_server
from sidecar.server.ops import ops_routes
from sidecar.service.background import Background
from sidecar.service.ports import Clock, Observer
from sidecar.service.prompts import PromptManager
from sidecar.settings import Address, Settings
from sidecar.telemetry.dispatch import dispatcher
from sidecar.telemetry.logs import LogListener
from sidecar.telemetry.metrics import Metrics
from sidecar.upstream.breaker import Breaker
from sidecar.upstream.client import UpstreamClient
from sidecar.upstream.guarded import GuardedSource
from sidecar.upstream.prompt_data import PromptDataSource
from sidecar.upstream.templates import Templates

BACKLOG = 1024
"""Connections that may wait to be accepted: LearnFlow opens one for each attempt."""


def installed_version() -> str:
    """Return the version of the installed package, or of nothing installed."""
    try:
        return version("prompt-sidecar")
    except PackageNotFoundError:
        return "0+unknown"


class StartError(OSError):
    """The sidecar cannot start here; says what and where."""


class Core(NamedTuple):
    """What answers prompts, without the listeners."""

    manager: PromptManager
    cache: MemoryCache
    metrics: Metrics
    background: Background
    breaker: Breaker
    observer: Observer


@asynccontextmanager
async def open_core(
    settings: Settings, *, clock: Clock = time.monotonic, rng: Rng | None = None
) -> AsyncIterator[Core]:
    """Wire what answers prompts, and take it apart in order."""
    rng = random.Random() if rng is None else rng  # noqa: S311 — jitter, not cryptography
    cache = MemoryCache(max_entries=settings.cache.max_entries, max_bytes=settings.cache.max_bytes, clock=clock)
    metrics = Metrics(version=installed_version(), cache=cache)
    metrics.settings_loaded(time.time())
    observer = dispatcher(metrics.handlers(), LogListener().handlers())
    background = Background(observer)
    render, upstream, retry = settings.render, settings.upstream, settings.retry
    templates = Templates(
        profile=render.profile,
        limits=RenderLimits(
            max_template_bytes=render.max_template,
            max_output_bytes=render.max_output,
            max_iterations=render.max_iterations,
            max_seconds=render.max_time,
        ),
        clock=clock,
    )
    client = UpstreamClient(upstream.url, connect_timeout=upstream.connect_timeout, max_response=upstream.max_response)
    breaker = Breaker(
        "upstream",
        fail_max=settings.breaker.fail_max,
        reset_timeout=settings.breaker.reset_timeout,
        success_threshold=settings.breaker.success_threshold,
        clock=clock,
        observer=observer,
    )
    source = GuardedSource(
        PromptDataSource(client, templates, autoescape=render.autoescape, undefined=render.undefined),
        breaker=breaker,
        bulkhead=asyncio.Semaphore(upstream.max_in_flight),
        rule=RetryRule(retry.attempts, retry.backoff, retry.max_backoff, retry.min_attempt),
        budget=RetryBudget(retry.budget, retry.budget_reserve),
        per_try_timeout=retry.per_try_timeout,
        clock=clock,
        rng=rng,
        observer=observer,
        max_quiet=settings.breaker.reset_timeout,
    )
    manager = PromptManager(
        source=source,
        cache=cache,
        policy_for=settings.policy.for_node,
        deadline=settings.deadline,
        clock=clock,
        rng=rng,
        background=background,
        observer=observer,
        max_nodes=settings.metrics.max_nodes,
    )
    try:
        yield Core(manager, cache, metrics, background, breaker, observer)
    finally:
        await background.drain(settings.deadline)
        await client.close()


class Sidecar(NamedTuple):
    """A running sidecar: what it is made of, and where it listens."""

    core: Core
    listen: Address
    ops: Address


@asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock = time.monotonic, rng: Rng | None = None
) -> AsyncIterator[Sidecar]:
    """Start the sidecar, and drain it at the end: stop accepting, let what is in flight end, then what is behind it.

    Raises `StartError` where an address cannot be bound. Source: contract §5, SIGTERM.
    """
    ready = False
    log: structlog.stdlib.BoundLogger = structlog.get_logger()
    async with open_core(settings, clock=clock, rng=rng) as core:
        answer = GeneratePrompt(
            core.manager,
            observer=core.observer,
            clock=clock,
            max_body=settings.limits.max_body,
            deadline=settings.deadline,
        )
        ops_runner = _runner(ops_routes(ready=lambda: ready, metrics=core.metrics.expose), settings, core.observer)
        runner = _runner(Routes({("POST", generate_prompt.PATH): answer}), settings, core.observer)
        try:
            ops = await _listen(ops_runner, settings.ops.listen, "ops.listen")
            listen = await _listen(runner, settings.listen, "listen")
            ready = True
            log.info(
                "started", listen=str(listen), ops=str(ops), upstream=settings.upstream.url, version=installed_version()
            )
            yield Sidecar(core, listen, ops)
        finally:
            was_ready, ready = ready, False
            if was_ready:
                log.info("draining", background=len(core.background))
            await runner.cleanup()
            await core.background.drain(settings.deadline)
            await ops_runner.cleanup()
    log.info("stopped")


def _runner(handler: Handler, settings: Settings, observer: Observer) -> web.ServerRunner:
    server = make_server(
        handler, observer, max_header=settings.limits.max_header, max_headers=settings.limits.max_headers
    )
    return web.ServerRunner(server, shutdown_timeout=settings.deadline)


async def _listen(runner: web.ServerRunner, address: Address, key: str) -> Address:
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port, backlog=BACKLOG).start()
    except OSError as error:
        hint = " Is another sidecar running there? Choose another address, or stop what has it."
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # names have their own
        raise StartError(
            f"{key}: cannot listen on {address}: {reason}.{hint if error.errno == EADDRINUSE else ''}"
        ) from error
    host, port = runner.addresses[0][:2]
    return Address(host, port)
