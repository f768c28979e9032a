"""The composition root: a wired core and its listeners; start, reload and drain."""

import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from errno import EADDRINUSE
from typing import NamedTuple

import structlog
from aiohttp import web

from sidecar.core.retry import Rng
from sidecar.reload import Origin, Reloader
from sidecar.server import generate_prompt, prompt_data
from sidecar.server.admin import admin_routes
from sidecar.server.elsewhere import Elsewhere
from sidecar.server.generate_prompt import GeneratePrompt, Reader
from sidecar.server.listener import Handler, Routes, make_server
from sidecar.server.ops import ops_routes
from sidecar.server.prompt_data import PromptData
from sidecar.server.proxy import Proxy
from sidecar.server.traced import RequestSpans, traced
from sidecar.server.warm_calls import warm_routes
from sidecar.service.generations import Generation
from sidecar.service.ports import Clock, Observer
from sidecar.service.trace import NO_TRACER
from sidecar.service.write_watch import WriteWatch
from sidecar.settings import Address, Settings
from sidecar.start_warm import begin_warm_up, warm_up_rule
from sidecar.status import status_of
from sidecar.upstream.forward import Forwarder
from sidecar.watch import watch
from sidecar.wiring import Core, StartError, installed_version, open_core

__all__ = ["Core", "Sidecar", "StartError", "installed_version", "open_core", "running"]

BACKLOG = 1024
"""Connections that may wait to be accepted: LearnFlow opens one for each attempt."""


class Sidecar(NamedTuple):
    """A running sidecar: what it is made of, where it listens, and how its settings are read again."""

    core: Core
    listen: Address
    ops: Address
    reload: Reloader


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    origin: Origin | None = None,
    clock: Clock = time.monotonic,
    wall: Clock = time.time,
    rng: Rng | None = None,
    sockets: Mapping[str, socket.socket] | None = None,
) -> AsyncIterator[Sidecar]:
    """Start the sidecar, and drain it at the end: stop accepting, let what is in flight end, then what is behind it.

    `origin`: where the settings come from; without one a reload finds them unchanged. `sockets`: listening already, by
    the names of `sidecar.activation`; each is used in place of the address in the settings.
    Raises `StartError` where an address cannot be bound. Source: contract §5, SIGTERM.
    """
    ready, inherited = False, sockets or {}
    log: structlog.stdlib.BoundLogger = structlog.get_logger()
    async with open_core(settings, clock=clock, wall=wall, rng=rng) as core, _forwarder(core) as forwarder:
        reload = Reloader(origin.load if origin else lambda: settings, lambda: core.settings, core.adopt, core.observer)
        ops = ops_routes(
            ready=lambda: ready,
            metrics=core.metrics.scrape,
            status=lambda: status_of(core, ready=lambda: ready, clock=clock),
            admin=admin_routes(
                core.shadow.reset,
                core.invalidations,
                is_loopback=settings.ops.listen.is_loopback,
                token_file=settings.ops.admin_token_file,
                others=warm_routes(
                    core.warm_jobs,
                    warm_up_rule(settings.warmup),
                    core.tiers.working_set if core.store is not None else None,
                    max_pairs=settings.warmup.max_pairs,
                ),
            ),
            gate=await begin_warm_up(core, settings, clock),
        )
        ops_runner = _runner(ops, settings, core.observer)
        runner = _runner(_learnflow_routes(core, forwarder, settings, clock), settings, core.observer)
        try:
            ops_address = await _listen(ops_runner, settings.ops.listen, "ops.listen", inherited.get("ops"))
            listen = await _listen(runner, settings.listen, "listen", inherited.get("learnflow"))
            if origin is not None and origin.path is not None:
                core.background.keep(watch(origin.path, reload, since=origin.read_as), name="watch-settings")
            ready = True
            log.info(
                "started",
                listen=str(listen),
                ops=str(ops_address),
                upstream=settings.upstream.url,
                api=settings.upstream.api.value,
                version=installed_version(),
            )
            yield Sidecar(core, listen, ops_address, reload)
        finally:
            was_ready, ready = ready, False
            if was_ready:
                log.info("draining", background=len(core.background))
            await runner.cleanup()
            await core.background.drain(settings.deadline)
            await ops_runner.cleanup()
    log.info("stopped")


def _learnflow_routes(core: Core, forwarder: Forwarder, settings: Settings, clock: Clock) -> Handler:
    """Return what LearnFlow and its bot are answered by."""
    proxy_settings = settings.proxy
    reader = Reader(
        observer=core.observer,
        clock=clock,
        max_body=settings.limits.max_body,
        deadline=settings.deadline,
        as_today=lambda: core.selection.current is not Generation.PROMPT_DATA,
    )
    prompts = GeneratePrompt(core.manager, reader, clock=clock)
    proxy = Proxy(
        forwarder,
        watch=WriteWatch(
            core.writes,
            forget=core.tiers.forget,
            group=core.group,
            settle_seconds=lambda: proxy_settings.response_timeout,
            observer=core.observer,
        ),
        observer=core.observer,
        clock=clock,
        max_in_flight=proxy_settings.max_in_flight,
        queue_timeout=proxy_settings.queue_timeout,
        response_timeout=proxy_settings.response_timeout,
        idle_timeout=proxy_settings.response_timeout,
    )
    parts = PromptData(core.manager, reader, proxy, clock=clock, deadline=settings.deadline)
    elsewhere = Elsewhere(lambda: (core.routes, core.settings.deadline), core.reads, proxy, clock=clock)
    paths = generate_prompt.PATH, prompt_data.PATH
    routes: Handler = Routes({("POST", paths[0]): prompts, ("POST", paths[1]): parts}, elsewhere)
    if core.traces.tracer is not NO_TRACER:
        routes = RequestSpans(
            routes, core.traces.tracer, paths=paths, host=settings.listen.host, port=settings.listen.port
        )
    return traced(routes)


@asynccontextmanager
async def _forwarder(core: Core) -> AsyncIterator[Forwarder]:
    upstream = core.settings.upstream
    forwarder = Forwarder(upstream.url, connect_timeout=upstream.connect_timeout, tracer=core.traces.tracer)
    try:
        yield forwarder
    finally:
        await forwarder.close()


def _runner(handler: Handler, settings: Settings, observer: Observer) -> web.ServerRunner:
    server = make_server(
        handler, observer, max_header=settings.limits.max_header, max_headers=settings.limits.max_headers
    )
    return web.ServerRunner(server, shutdown_timeout=settings.deadline)


async def _listen(
    runner: web.ServerRunner, address: Address, key: str, inherited: socket.socket | None = None
) -> Address:
    await runner.setup()
    if inherited is not None:
        given = Address(*inherited.getsockname()[:2])
        if address.is_loopback and not given.is_loopback:
            raise StartError(
                f"{key}: the inherited socket listens on {given}, which others can reach; allowed: loopback, as the "
                f"setting says ({address}), or the same address in both."
            )
        await web.SockSite(runner, inherited, backlog=BACKLOG).start()
        return given
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
