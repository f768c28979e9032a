"""The composition root: a wired core and its listeners; start, reload and drain."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from errno import EADDRINUSE
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from sidecar.answers import PATHS, Answers
from sidecar.core.events import Crashed
from sidecar.core.retry import Rng
from sidecar.drain import BACKGROUND, OPS, REQUESTS, Drain
from sidecar.reload import Origin, Reload, Reloader
from sidecar.server.connections import ConnectionLimits
from sidecar.server.door import Door
from sidecar.server.leaving import LeavingServer, accept_rest
from sidecar.server.listener import Handler, make_server
from sidecar.server.traced import RequestSpans, traced
from sidecar.service.ports import Clock, Observer
from sidecar.service.trace import NO_TRACER
from sidecar.settings import Address, Settings
from sidecar.start_warm import begin_warm_up
from sidecar.telemetry.log_setup import Logs
from sidecar.unix_socket import unix_socket
from sidecar.upstream.forward import Forwarder
from sidecar.watch import watch
from sidecar.wiring import Core, StartError, installed_version, open_core

__all__ = ["Core", "Sidecar", "StartError", "installed_version", "open_core", "running"]

BACKLOG = 1024
"""Connections that may wait to be accepted: LearnFlow opens one for each attempt."""
CUT_SECONDS = 0.1
"""How long a handler may take to end after its request was cut; aiohttp waits so long twice."""


class Sidecar(NamedTuple):
    """A running sidecar: what it is made of, where it listens, and how its settings are read again."""

    core: Core
    listen: Address
    ops: Address
    reload: Reload


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    origin: Origin | None = None,
    clock: Clock = time.monotonic,
    wall: Clock = time.time,
    rng: Rng | None = None,
    sockets: Mapping[str, socket.socket] | None = None,
    drain: Drain | None = None,
    around_reload: Callable[[Reload], Reload] = lambda reload: reload,
    logs: Logs | None = None,
) -> AsyncIterator[Sidecar]:
    """Start the sidecar, and drain it at the end: stop accepting, let what is in flight end, then what is behind it.

    The ops listener, where readiness is seen to be gone, closes last before the core.

    `origin`: where the settings come from; without one a reload finds them unchanged. `sockets`: listening already, by
    the names of `sidecar.activation`; each is used in place of the address in the settings. `drain`: to hasten it;
    `around_reload`: what is to be done around each reload; `logs`: the process's own, if it has one.
    Raises `StartError` where an address cannot be bound. Source: contract §5, SIGTERM.
    """
    ready, inherited = False, sockets or {}
    log: structlog.stdlib.BoundLogger = structlog.get_logger()
    drain = Drain(settings.drain) if drain is None else drain
    async with (
        open_core(settings, clock=clock, wall=wall, rng=rng, drain=drain) as core,
        _forwarder(core) as forwarder,
        _beside(settings.listen_unix) as beside,
    ):
        if logs is not None:
            core.metrics.has_log(lambda: logs.dropped)
            core.background.keep(logs.attend(), name="log")
        gate = await begin_warm_up(core, settings, clock)
        answers = Answers(core, forwarder, settings, ready=lambda: ready, gate=gate, clock=clock, wall=wall)

        def adopt(changed: Settings) -> None:
            answers.adopt(changed)
            if logs is not None and changed.log != core.settings.log:
                logs.adopt(changed.log)
            core.adopt(changed)
            drain.adopt(changed.drain)

        reloader = Reloader(origin.load if origin else lambda: settings, lambda: core.settings, adopt, core.observer)
        reload = around_reload(reloader)
        server, ops_server = _servers(core, answers, settings)
        ops_runner, runner = (web.ServerRunner(each, shutdown_timeout=CUT_SECONDS) for each in (ops_server, server))
        try:
            ops_address = await _listen(
                ops_runner,
                settings.ops.listen,
                "ops.listen",
                inherited.get("ops"),
                may_be_reached=not settings.ops.listen.is_loopback,
            )
            listen = await _listen(
                runner,
                settings.listen,
                "listen",
                inherited.get("learnflow"),
                may_be_reached=settings.listen_beyond_loopback,
            )
            if beside is not None:
                await web.SockSite(runner, beside, backlog=BACKLOG).start()
            if origin is not None and origin.path is not None:
                failed = partial(_reload_failed, core.observer)
                watching = watch(origin.path, reload, since=origin.read_as, failed=failed)
                core.background.keep(watching, name="watch-settings")
            ready = True
            log.info(
                "started",
                listen=str(listen),
                ops=str(ops_address),
                upstream=settings.upstream.url,
                api=settings.upstream.api.value,
                version=installed_version(),
            )
            if not listen.is_loopback:
                log.warning("listening_beyond_loopback", listen=str(listen))
            yield Sidecar(core, listen, ops_address, reload)
        finally:
            was_ready, ready = ready, False
            if was_ready:
                log.info("draining", background=len(core.background))
                await drain.delay()
            await _stop_accepting(runner, server, inherited.get("learnflow"))
            await drain.step("requests", server.drain(idle_grace=drain.idle_grace), until=REQUESTS)
            await runner.cleanup()
            await drain.step("background", core.background.drain(), until=BACKGROUND)
            await _stop_accepting(ops_runner, ops_server, inherited.get("ops"))
            await drain.step("ops", ops_server.drain(idle_grace=0.0), until=OPS)
            await ops_runner.cleanup()
    if logs is not None:
        logs.tell_all()
    log.info("stopped")


@asynccontextmanager
async def _beside(path: Path | None) -> AsyncIterator[socket.socket | None]:
    with unix_socket(path) as bound:
        yield bound


def _reload_failed(observer: Observer, error: Exception) -> None:
    observer(Crashed("reload", error))


def _names(settings: Settings, *names: str) -> frozenset[str]:
    return settings.allowed_hosts | {name for name in names if name}


@asynccontextmanager
async def _forwarder(core: Core) -> AsyncIterator[Forwarder]:
    settings = core.settings
    forwarder = Forwarder(
        settings.upstream.url,
        connect_timeout=settings.upstream.connect_timeout,
        access=core.access,
        adds_token=settings.proxy.add_token,
        tracer=core.traces.tracer,
    )
    try:
        yield forwarder
    finally:
        await forwarder.close()


def _servers(core: Core, answers: Answers, settings: Settings) -> tuple[LeavingServer, LeavingServer]:
    """Return the servers of LearnFlow's listener and of the ops listener, each behind its door."""
    observer, limits = core.observer, settings.limits
    names = _names(settings, settings.listen.host, urlsplit(settings.upstream.url).hostname or "")
    calls: Handler = Door(answers.learnflow, names=names, observer=observer)
    if core.traces.tracer is not NO_TRACER:
        host, port = settings.listen.host, settings.listen.port
        calls = RequestSpans(calls, core.traces.tracer, paths=PATHS, host=host, port=port)
    ops_door = Door(answers.ops, names=_names(settings, settings.ops.listen.host), observer=observer)
    connections = ConnectionLimits(limits.max_connections, limits.head_timeout, limits.keep_alive, limits.write_timeout)
    ops_connections = connections._replace(max_connections=settings.ops.max_connections, shed_as="ops_connections")
    return _server(traced(calls), settings, observer, connections), _server(
        ops_door, settings, observer, ops_connections
    )


def _server(handler: Handler, settings: Settings, observer: Observer, connections: ConnectionLimits) -> LeavingServer:
    limits = settings.limits
    return make_server(
        handler, observer, max_header=limits.max_header, max_headers=limits.max_headers, connections=connections
    )


async def _stop_accepting(runner: web.ServerRunner, server: LeavingServer, inherited: socket.socket | None) -> None:
    """Close the listener; what waits at an inherited socket waits for the next process, all else is taken yet."""
    listening: list[socket.socket] = []
    for site in runner.sites:
        opened = site._server  # noqa: SLF001 — aiohttp tells the addresses of its sockets, not the sockets
        if inherited is None and isinstance(opened, asyncio.AbstractServer):
            listening += [socket.socket(fileno=os.dup(each.fileno())) for each in getattr(opened, "sockets", ())]
        await site.stop()
    await accept_rest(listening, server, most=BACKLOG)


async def _listen(
    runner: web.ServerRunner,
    address: Address,
    key: str,
    inherited: socket.socket | None = None,
    *,
    may_be_reached: bool,
) -> Address:
    """Listen, and return where; `may_be_reached`: by others than this machine."""
    await runner.setup()
    if inherited is not None:
        given = Address(*inherited.getsockname()[:2])
        if not (given.is_loopback or may_be_reached):
            raise StartError(
                f"{key}: the inherited socket listens on {given}, which others can reach; allowed: loopback, unless "
                f"{'listen_beyond_loopback is true' if key == 'listen' else 'the setting names such an address, too'}."
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
    bound = [Address(*each[:2]) for each in runner.addresses]  # several, where a name has several addresses
    for each in bound:
        if not (each.is_loopback or may_be_reached):
            raise StartError(f"{key}: {address} is {each} on this machine, which others can reach; write an address.")
    return bound[0]
