"""The core's composition: settings → what answers prompts, without listeners. Names the concrete classes."""

import random
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sidecar.cache.memory import MemoryCache
from sidecar.cache.records import Records
from sidecar.cache.redis_group import RedisGroup
from sidecar.cache.tiered import Store, TieredCache
from sidecar.core.events import Crashed
from sidecar.core.model import Document, PromptKey, RouteKey, SettingsKey, StaticAnswer, UserSettings
from sidecar.core.policy import Policy
from sidecar.core.prompt import RenderLimits
from sidecar.core.retry import RetryBudget, RetryRule, Rng
from sidecar.core.routes import RoutePattern, RouteTable
from sidecar.drain import BACKGROUND, STORE, Drain
from sidecar.secret_file import SecretFileError
from sidecar.service.background import Background
from sidecar.service.detection import Selection
from sidecar.service.generations import Documents, FromPlaceholders, FromPromptData, Generation
from sidecar.service.invalidation import Invalidations
from sidecar.service.ports import Clock, Observer
from sidecar.service.prompts import PromptManager, Rules
from sidecar.service.rendering import ConfirmedNodes
from sidecar.service.resources import Resources
from sidecar.service.shadow import Shadow, ShadowRule
from sidecar.service.waiting import Waiting
from sidecar.service.warm_jobs import WarmJobs
from sidecar.service.warmup import WarmUp
from sidecar.service.writes import Writes
from sidecar.settings import OnUpstreamFailure, Settings, UpstreamApi, UpstreamSettings
from sidecar.stores import FileMistakeError, StartError, open_seal, open_store
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.history import RequestHistory
from sidecar.telemetry.logs import LogListener
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.troubles import Troubles
from sidecar.traces import Traces, open_traces
from sidecar.upstream.access import Access
from sidecar.upstream.attempt_spans import AttemptSpans, server_attributes
from sidecar.upstream.batch import BatchSource
from sidecar.upstream.breaker import Breaker
from sidecar.upstream.client import UpstreamClient
from sidecar.upstream.detect import EndpointProbe
from sidecar.upstream.guarded import Bulkhead, Guard, GuardedSource, GuardRules
from sidecar.upstream.passthrough import GeneratePromptService
from sidecar.upstream.placeholders import PlaceholdersSource
from sidecar.upstream.prompt_data import PromptDataSource
from sidecar.upstream.static_read import StaticReadSource, may_keep
from sidecar.upstream.template_file import TODAY, TemplateFile, TemplateFileError
from sidecar.upstream.templates import Templates
from sidecar.watch import watch

__all__ = ["Core", "StartError", "installed_version", "open_core", "rules_of"]


def installed_version() -> str:
    """Return the version of the installed package, or of nothing installed."""
    try:
        return version("prompt-sidecar")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(slots=True)
class Core:
    """What answers prompts, without the listeners."""

    guard: Guard
    client: UpstreamClient

    manager: PromptManager
    warm_jobs: WarmJobs
    reads: Resources[RouteKey, StaticAnswer]
    cache: MemoryCache
    tiers: TieredCache
    store: Store | None
    group: RedisGroup | None
    writes: Writes
    invalidations: Invalidations
    selection: Selection
    shadow: Shadow
    templates: TemplateFile | None
    metrics: Metrics
    history: RequestHistory
    troubles: Troubles
    background: Background
    breaker: Breaker
    access: Access
    observer: Dispatcher
    traces: Traces
    settings: Settings
    """What is in force."""
    routes: RouteTable[Policy]
    log: LogListener

    def adopt(self, settings: Settings) -> None:
        """Put other settings in force, as far as they need no restart, for the requests that begin from now on."""
        before, self.settings = self.settings, settings
        self.routes = _routes(settings)
        self.manager.adopt(rules_of(settings))
        if (settings.retry, settings.breaker, settings.upstream) != (before.retry, before.breaker, before.upstream):
            self.guard.adopt(_guard_rules(settings))
            self.breaker.adopt(**_breaker_numbers(settings))
            self.client.adopt(max_response=settings.upstream.max_response)
        if settings.cache != before.cache:
            self.cache.resize(max_entries=settings.cache.max_entries, max_bytes=settings.cache.max_bytes)
        self.log.look_again()


def rules_of(settings: Settings) -> Rules:
    """Return what a request is answered by."""
    shadow = settings.shadow
    return Rules(
        policy_for=settings.policy.for_node,
        deadline=settings.deadline,
        rollout=settings.rollout.rule,
        local_on_failure=settings.rollout.on_upstream_failure is OnUpstreamFailure.LOCAL,
        shadow=ShadowRule(shadow.sample_rate, shadow.max_in_flight, shadow.max_mismatches, shadow.window),
    )


def _routes(settings: Settings) -> RouteTable[Policy]:
    return RouteTable({RoutePattern.parse(path): policy for path, policy in settings.routes.items()})


@asynccontextmanager
async def open_core(
    settings: Settings,
    *,
    clock: Clock = time.monotonic,
    wall: Clock = time.time,
    rng: Rng | None = None,
    drain: Drain | None = None,
) -> AsyncIterator[Core]:
    """Wire what answers prompts, and take it apart in order; raises `StartError`.

    `clock`: monotonic seconds, for ages within this process; `wall`: Unix seconds, for ages across a restart; `drain`:
    what bounds the end, where it has begun before.
    """
    drain = Drain(settings.drain) if drain is None else drain
    rng = random.Random() if rng is None else rng  # noqa: S311 — jitter, not cryptography
    render, upstream = settings.render, settings.upstream
    memory = MemoryCache(max_entries=settings.cache.max_entries, max_bytes=settings.cache.max_bytes, clock=clock)
    boot, seal = secrets.token_bytes(8), open_seal(settings)
    traces = open_traces(settings.tracing, version=installed_version(), instance=boot.hex(), clock=clock, wall=wall)
    metrics = _metrics(memory, clock, wall, traces=traces.are_sent)
    history, troubles, log = RequestHistory(clock), Troubles(clock), LogListener()
    observer = Dispatcher(metrics.handlers(), log.handlers(), history.handlers(), troubles.handlers(), traces.handlers)
    background = Background(observer)
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
    template_file, access = _template_file(settings, templates, observer), _access(upstream, observer)
    store, group = await open_store(settings, boot, clock=clock, rng=rng, observer=observer)
    metrics.has_store(store)
    cache = TieredCache(
        memory,
        store,
        Records(templates.get, seal),
        namespace=upstream.url,
        boot=boot,
        clock=clock,
        wall=wall,
        observer=observer,
        tracer=traces.tracer,
    )
    client = UpstreamClient(
        upstream.url,
        connect_timeout=upstream.connect_timeout,
        max_response=upstream.max_response,
        access=access,
        tracer=traces.tracer,
    )
    breaker = Breaker("upstream", **_breaker_numbers(settings), clock=clock, observer=observer)
    guard = Guard(
        _guard_rules(settings),
        breaker=breaker,
        clock=clock,
        rng=rng,
        observer=observer,
        spans=AttemptSpans(traces.tracer, server_attributes(upstream.url)),
    )

    async def probe() -> bool | None:
        return await EndpointProbe(client, timeout_seconds=core.settings.retry.per_try_timeout)()

    selection = Selection(
        None if upstream.api is UpstreamApi.AUTO else Generation(upstream.api.value),
        otherwise=Generation.PLACEHOLDERS if template_file else Generation.PASSTHROUGH,
        probe=probe,
        background=background,
        clock=clock,
        observer=observer,
    )

    async def endpoint_exists() -> bool | None:
        return await selection.endpoint_exists(core.settings.retry.per_try_timeout)

    exists = endpoint_exists if upstream.api is UpstreamApi.AUTO else None
    writes = Writes(clock)
    invalidations = Invalidations(writes, cache, observer, group)
    if group is not None:
        await group.open(invalidations)
    nodes = ConfirmedNodes(settings.metrics.max_nodes)

    def all_policies(_: Policy) -> Iterable[Policy]:
        policies = core.settings.policy
        return (policies.default, *policies.nodes.values())

    shared: dict[str, Any] = {
        "cache": cache,
        "writes": writes,
        "clock": clock,
        "rng": rng,
        "background": background,
        "observer": observer,
        "tracer": traces.tracer,
    }
    single = PromptDataSource(
        client, templates, autoescape=render.autoescape, undefined=render.undefined, exists=exists
    )
    prompt_data: Resources[PromptKey, Document] = Resources(source=GuardedSource(guard, single), **shared)
    documents: dict[Generation, Documents] = {Generation.PROMPT_DATA: FromPromptData(prompt_data, nodes.confirm)}
    if template_file is not None:
        user_settings: Resources[SettingsKey, UserSettings] = Resources(
            source=GuardedSource(guard, PlaceholdersSource(client, exists=exists)),
            **shared,
            keep_under=all_policies,
        )
        documents[Generation.PLACEHOLDERS] = FromPlaceholders(user_settings, template_file, nodes.confirm)
    reads: Resources[RouteKey, StaticAnswer] = Resources(
        source=GuardedSource(guard, StaticReadSource(client)),
        **shared,
        may_keep=may_keep,
    )
    service = GeneratePromptService(client, guard)
    shadow = Shadow(
        service,
        label=nodes.label,
        background=background,
        clock=clock,
        observer=observer,
        max_nodes=settings.metrics.max_nodes,
    )
    manager = PromptManager(
        selection=selection,
        documents=documents,
        service=service,
        cache=cache,
        writes=writes,
        nodes=nodes,
        shadow=shadow,
        rules=rules_of(settings),
        clock=clock,
        rng=rng,
        background=background,
        observer=observer,
        waiting=Waiting(max_requests=settings.limits.max_waiting, max_bytes=settings.limits.max_bodies),
        max_nodes=settings.metrics.max_nodes,
    )
    core = Core(
        guard=guard,
        client=client,
        manager=manager,
        warm_jobs=_warm_jobs(
            settings,
            manager=manager,
            batch=BatchSource(client, guard, single, timeout=settings.warmup.batch_timeout),
            guard=guard,
            nodes=nodes,
            clock=clock,
            observer=observer,
        ),
        reads=reads,
        cache=memory,
        tiers=cache,
        store=store,
        group=group,
        writes=writes,
        invalidations=invalidations,
        selection=selection,
        shadow=shadow,
        templates=template_file,
        metrics=metrics,
        history=history,
        troubles=troubles,
        background=background,
        breaker=breaker,
        access=access,
        observer=observer,
        traces=traces,
        settings=settings,
        routes=_routes(settings),
        log=log,
    )
    await _begin(core, documents, rng)
    try:
        yield core
    finally:
        await _end(drain, background, store, group)
        await client.close()
        await drain.step("traces", traces.close(), until=STORE)


def _metrics(memory: MemoryCache, clock: Clock, wall: Clock, *, traces: bool) -> Metrics:
    metrics = Metrics(version=installed_version(), cache=memory, clock=clock, wall=wall, traces=traces)
    metrics.settings_loaded(time.time())
    return metrics


async def _end(drain: Drain, background: Background, store: Store | None, group: RedisGroup | None) -> None:
    await drain.step("background", background.drain(), until=BACKGROUND)
    if store is not None:
        await drain.step("store", store.close(), until=STORE)
    if group is not None:
        await drain.step("group", group.close(), until=STORE)


def _warm_jobs(
    settings: Settings,
    *,
    manager: PromptManager,
    batch: BatchSource,
    guard: Guard,
    nodes: ConfirmedNodes,
    clock: Clock,
    observer: Observer,
) -> WarmJobs:
    warm_up = WarmUp(
        documents=manager.documents_in_use,
        batch=batch,
        upstream=guard,
        policy_for=manager.policy_for,
        confirm=nodes.confirm,
        deadline=lambda: max(manager.rules.deadline, settings.warmup.batch_timeout),
        clock=clock,
        observer=observer,
    )
    return WarmJobs(warm_up, clock)


async def _begin(core: Core, documents: Mapping[Generation, Documents], rng: Rng) -> None:
    """Begin what goes on behind the requests."""
    selection, templates = core.selection, core.templates
    core.metrics.has_upstream_files(core.access.files)
    core.traces.begin(core.background, core.observer)
    selection.begin()
    await _remember_generation(selection, core.tiers, documents)

    def interval() -> float:
        return core.settings.upstream.detect_interval * rng.uniform(0.9, 1.1)

    core.background.keep(selection.watch(interval), name="detect-generation")
    core.background.keep(core.warm_jobs.work(), name="warm-up")
    for name, watch_files in core.access.watches.items():
        core.background.keep(watch_files(), name=name)
    if templates is not None:
        core.background.keep(
            watch(
                templates.path,
                templates.reload,
                since=templates.read_as,
                failed=lambda error: core.observer(Crashed("templates-reload", error)),
            ),
            name="watch-templates",
        )


async def _remember_generation(
    selection: Selection, cache: TieredCache, documents: Mapping[Generation, Documents]
) -> None:
    """Begin with the generation that the store was filled from, and note each change of it."""
    known = await cache.noted("generation")
    if known in {each.value for each in documents}:
        selection.remember(Generation(known))

    def note() -> None:
        if selection.current is not None:
            cache.note("generation", selection.current.value)

    selection.on_change(note)
    note()


def _breaker_numbers(settings: Settings) -> dict[str, Any]:
    breaker = settings.breaker
    return {
        "fail_max": breaker.fail_max,
        "reset_timeout": breaker.reset_timeout,
        "success_threshold": breaker.success_threshold,
    }


def _access(upstream: UpstreamSettings, observer: Observer) -> Access:
    access = Access(observer)
    try:
        if upstream.url.startswith("https://"):
            access.use_tls(upstream.tls)
        if upstream.token_file is not None:
            access.use_token(upstream.token_file)
    except SecretFileError as error:
        raise FileMistakeError(f"{error}.") from error
    return access


def _guard_rules(settings: Settings) -> GuardRules:
    retry = settings.retry
    return GuardRules(
        bulkhead=Bulkhead(settings.upstream.max_in_flight),
        retry=RetryRule(retry.attempts, retry.backoff, retry.max_backoff, retry.min_attempt),
        budget=RetryBudget(retry.budget, retry.budget_reserve),
        per_try_timeout=retry.per_try_timeout,
        max_quiet=settings.breaker.reset_timeout,
    )


def _template_file(settings: Settings, templates: Templates, observer: Observer) -> TemplateFile | None:
    path, render = settings.upstream.templates_file, settings.render
    if path is None or settings.upstream.api in {UpstreamApi.PROMPT_DATA, UpstreamApi.PASSTHROUGH}:
        return None
    options = TODAY if render.autoescape is None else replace(TODAY, autoescape=render.autoescape)
    options = options if render.undefined is None else replace(options, undefined=render.undefined)
    template_file = TemplateFile(path, templates, options, observer)
    try:
        template_file.open()
    except TemplateFileError as error:
        raise StartError(f"upstream.templates_file: {error}.") from error
    return template_file
