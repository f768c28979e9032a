"""What the two listeners answer, by the settings in force; made anew at each reload."""

from collections.abc import Callable

from sidecar.server import generate_prompt, prompt_data
from sidecar.server.admin import admin_routes
from sidecar.server.elsewhere import Elsewhere
from sidecar.server.generate_prompt import GeneratePrompt, Reader
from sidecar.server.listener import Handler, Routes
from sidecar.server.ops import ops_routes
from sidecar.server.prompt_data import PromptData
from sidecar.server.proxy import Proxy
from sidecar.server.warm_calls import warm_routes
from sidecar.service.generations import Generation
from sidecar.service.ports import Clock
from sidecar.service.write_watch import WriteWatch
from sidecar.settings import Settings
from sidecar.start_warm import warm_up_rule
from sidecar.status import StatusReport
from sidecar.stores import open_credentials
from sidecar.upstream.forward import Forwarder
from sidecar.wiring import Core

PATHS = (generate_prompt.PATH, prompt_data.PATH)
"""What is answered here; all else is passed on, or read for it."""


class Answers:
    """The routes of LearnFlow's listener and of the ops listener."""

    def __init__(
        self,
        core: Core,
        forwarder: Forwarder,
        settings: Settings,
        *,
        ready: Callable[[], bool],
        gate: Callable[[], str | None],
        clock: Clock,
        wall: Clock,
    ) -> None:
        """`ready`: whether requests can be served; `gate`: what a warm-up at the start still keeps them from."""
        self._core = core
        self._forwarder = forwarder
        self._ready = ready
        self._gate = gate
        self._clock = clock
        self._status = StatusReport(core, ready=ready, clock=clock, wall=wall)
        self.learnflow = self._made_for_learnflow(settings)
        self.ops = self._made_for_ops(settings)

    def adopt(self, settings: Settings) -> None:
        """Answer by other settings the requests that begin from now on."""
        learnflow, ops = self._made_for_learnflow(settings), self._made_for_ops(settings)
        self.learnflow.become(learnflow)
        self.ops.become(ops)

    def _made_for_ops(self, settings: Settings) -> Routes:
        return ops_routes(
            ready=self._ready,
            gate=self._gate,
            metrics=self._core.metrics.scrape,
            status=self._status,
            admin=_admin_calls(self._core, settings),
        )

    def _made_for_learnflow(self, settings: Settings) -> Routes:
        return _learnflow_routes(self._core, self._forwarder, settings, self._clock)


def _admin_calls(core: Core, settings: Settings) -> dict[tuple[str, str], Handler]:
    return admin_routes(
        core.shadow.reset,
        core.invalidations,
        core.breaker,
        is_loopback=settings.ops.listen.is_loopback,
        token_file=settings.ops.admin_token_file,
        observer=core.observer,
        others=warm_routes(
            core.warm_jobs,
            warm_up_rule(settings.warmup),
            core.tiers.working_set if core.store is not None else None,
            max_pairs=settings.warmup.max_pairs,
        ),
    )


def _learnflow_routes(core: Core, forwarder: Forwarder, settings: Settings, clock: Clock) -> Routes:
    """Return what LearnFlow and its bot are answered by."""
    proxy_settings = settings.proxy
    reader = Reader(
        observer=core.observer,
        clock=clock,
        max_body=settings.limits.max_body,
        max_bodies=settings.limits.max_bodies,
        deadline=settings.deadline,
        as_today=lambda: core.selection.current is not Generation.PROMPT_DATA,
        credentials=open_credentials(settings),
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
        max_queue=proxy_settings.max_queue,
        queue_timeout=proxy_settings.queue_timeout,
        response_timeout=proxy_settings.response_timeout,
        idle_timeout=proxy_settings.response_timeout,
    )
    parts = PromptData(core.manager, reader, proxy, clock=clock, deadline=settings.deadline)
    elsewhere = Elsewhere(lambda: (core.routes, core.settings.deadline), core.reads, proxy, clock=clock)
    return Routes({("POST", generate_prompt.PATH): prompts, ("POST", prompt_data.PATH): parts}, elsewhere)
