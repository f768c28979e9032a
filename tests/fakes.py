"""What stands for the outside in tests of the service: a scripted source, still chance, a list of events."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Generic, TypeVar

from sidecar.cache.memory import MemoryCache
from sidecar.cache.records import Records
from sidecar.cache.tiered import TieredCache
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.core.events import Event
from sidecar.core.model import Document, Kept, Key, PromptKey, Rendered, SettingsKey, UserSettings
from sidecar.core.policy import Policy
from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, Undefined, compile_template
from sidecar.core.rollout import RolloutRule
from sidecar.service.background import Background
from sidecar.service.detection import Selection
from sidecar.service.generations import FromPlaceholders, FromPromptData, Generation
from sidecar.service.ports import Generated
from sidecar.service.prompts import PromptManager, Rules
from sidecar.service.rendering import ConfirmedNodes
from sidecar.service.resources import Resources
from sidecar.service.shadow import Shadow, ShadowRule
from sidecar.service.waiting import Waiting
from sidecar.service.writes import Writes
from sidecar.upstream.guarded import Confirmation

E = TypeVar("E", bound=Event)
K = TypeVar("K", bound=Key)
V = TypeVar("V", bound=Kept)


def loop_time() -> float:
    """Return the loop's time, which looptime fakes."""
    return asyncio.get_running_loop().time()


class Still:
    """Chance that is always in the middle: no jitter, no spread."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@cache
def compiled(source: str, *, undefined: Undefined = Undefined.STRICT, autoescape: bool = False) -> CompiledTemplate:
    """Compile a template as its arrival would: the same source once."""
    options = RenderOptions(autoescape=autoescape, undefined=undefined)
    return compile_template(source, options, profile=Profile.STRICT, limits=RenderLimits(), clock=lambda: 0.0)


def memory_alone(memory: MemoryCache) -> TieredCache:
    """Return a cache with nothing behind the memory."""
    return TieredCache(
        memory,
        None,
        Records(compile_as_is),
        namespace="http://upstream",
        boot=b"boot",
        clock=loop_time,
        wall=loop_time,
        observer=lambda _: None,
    )


def compile_as_is(source: str, options: RenderOptions) -> CompiledTemplate:
    """Compile a template with its own options."""
    return compile_template(source, options, profile=Profile.STRICT, limits=RenderLimits(), clock=lambda: 0.0)


def document(
    source: str = "Explain {{ topic }} in {{ style }}.",
    settings: dict[str, str] | None = None,
    *,
    required: Iterable[str] = (),
    ttl: float | None = 100.0,
    etag: str | None = None,
    undefined: Undefined = Undefined.STRICT,
) -> Document:
    """Make a document as the upstream would have served it."""
    given = {"style": "plain words"} if settings is None else settings
    template = compiled(source, undefined=undefined)
    return Document.of(template, given, required=frozenset(required), stated_ttl=ttl, etag=etag)


def answered(status: int) -> UpstreamFailure:
    """Make the failure that an authoritative 4xx is."""
    kind = FailureKind.GONE if status in {400, 404, 410, 422} else FailureKind.REFUSED
    return UpstreamFailure(
        kind,
        f"the config service answered {status}",
        status=status,
        answer=Answer(status, b'{"detail":"no"}', "application/json"),
    )


Script = Callable[[PromptKey, Document | None], Awaitable[Document]]


class FakeSource:
    """A guarded source that does as it is told: `does` is awaited for each fetch; what it raises is the failure."""

    endpoint = "prompt-data"

    def __init__(self) -> None:
        self.calls: Counter[PromptKey] = Counter()
        self.known: list[Document | None] = []
        self.deadlines: list[float] = []
        self.names: list[str | None] = []
        """In whose name each call was made."""
        self.open_for: float | None = None
        self.proven = True
        self.serves: Document | UpstreamFailure = document()
        self.takes = 0.0

    def circuit_open_for(self) -> float | None:
        return self.open_for

    def is_proven(self) -> bool:
        return self.proven

    async def fetch(
        self, key: PromptKey, known: Document | None, deadline_at: float, authorization: str | None = None
    ) -> Confirmation[Document]:
        self.calls[key] += 1
        self.names.append(authorization)
        self.known.append(known)
        self.deadlines.append(deadline_at)
        sent_at = loop_time()
        serves = self.serves
        left = deadline_at - sent_at
        if self.takes > left:
            await asyncio.sleep(left)
            raise UpstreamFailure(FailureKind.READ_TIMEOUT, "the config service did not answer in time")
        await asyncio.sleep(self.takes)
        if isinstance(serves, UpstreamFailure):
            raise serves
        return Confirmation(serves, sent_at)


class FakeService:
    """The service's own rendering, as it is told: `serves` is what it answers, or how it fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.names: list[str | None] = []
        self.asked: list[tuple[dict[str, Any], float, bool]] = []
        self.serves: Generated | UpstreamFailure = Generated("Rendered by the service, as it does today.", {"a": "b"})
        self.answers: Answer | UpstreamFailure = Answer(200, b"{}", "application/json")
        self.takes = 0.0
        self.room = True

    def has_room(self) -> bool:
        return self.room

    async def generate(
        self,
        user_id: int,
        node_name: str,
        context: Mapping[str, Any],
        deadline_at: float,
        *,
        shadow: bool = False,
        authorization: str | None = None,
    ) -> Generated:
        self.names.append(authorization)
        self.calls.append((user_id, node_name))
        self.asked.append((dict(context), deadline_at, shadow))
        serves = self.serves
        await asyncio.sleep(self.takes)
        if isinstance(serves, UpstreamFailure):
            raise serves
        return serves

    async def prompt_data(
        self, user_id: int, node_name: str, deadline_at: float, authorization: str | None = None
    ) -> Answer:
        self.names.append(authorization)
        self.calls.append((user_id, node_name))
        self.asked.append(({}, deadline_at, False))
        if isinstance(self.answers, UpstreamFailure):
            raise self.answers
        return self.answers


EVERYONE = RolloutRule(fraction=1.0, nodes=None, exclude=frozenset())
MAX_BODIES = 10_000
"""Bytes."""
NO_SHADOW = ShadowRule(sample_rate=0.0, max_in_flight=4, max_mismatches=3, window=600.0)


class World:
    """A manager with everything around it faked, in the loop's faked time."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        deadline: float = 4.0,
        max_nodes: int = 100,
        generation: Generation | None = Generation.PROMPT_DATA,
        rollout: RolloutRule = EVERYONE,
        local_on_failure: bool = False,
        shadow: ShadowRule = NO_SHADOW,
        max_waiting: int = 1000,
    ) -> None:
        self.events: list[Event] = []
        self.source = FakeSource()
        self.service = FakeService()
        self.policy = policy or Policy()
        self.background = Background(self.events.append)
        self.cache = MemoryCache(max_entries=1000, max_bytes=1 << 24, clock=loop_time)
        self.tiers = memory_alone(self.cache)
        self.writes = Writes(loop_time)
        self.nodes = ConfirmedNodes(max_nodes)
        self.exists: bool | None = None
        self.as_today = False
        self.selection = Selection(
            generation,
            otherwise=Generation.PASSTHROUGH,
            probe=self._probe,
            background=self.background,
            clock=loop_time,
            observer=self.events.append,
        )
        self.resources: Resources[PromptKey, Document] = Resources(
            source=self.source,
            cache=self.tiers,
            writes=self.writes,
            clock=loop_time,
            rng=Still(),
            background=self.background,
            observer=self.events.append,
        )
        self.shadow = Shadow(
            self.service,
            label=self.nodes.label,
            background=self.background,
            clock=loop_time,
            observer=self.events.append,
            max_nodes=max_nodes,
        )
        self.rules = Rules(
            policy_for=lambda _: self.policy,
            deadline=deadline,
            rollout=rollout,
            local_on_failure=local_on_failure,
            shadow=shadow,
        )
        self.manager = PromptManager(
            selection=self.selection,
            documents={Generation.PROMPT_DATA: FromPromptData(self.resources, self.nodes.confirm)},
            service=self.service,
            cache=self.tiers,
            writes=self.writes,
            nodes=self.nodes,
            shadow=self.shadow,
            rules=self.rules,
            clock=loop_time,
            rng=Still(),
            background=self.background,
            observer=self.events.append,
            waiting=Waiting(max_requests=max_waiting, max_bytes=MAX_BODIES),
            max_nodes=max_nodes,
        )
        self.selection.begin()

    async def _probe(self) -> bool | None:
        return self.exists

    async def ask(
        self, user: int = 1, node: str = "explain", directives: Directives = NO_DIRECTIVES, **context: Any
    ) -> Rendered:
        return await self.manager.get_rendered_prompt(user, node, context or {"topic": "tides"}, directives=directives)

    @property
    def fetches(self) -> int:
        return self.source.calls.total()

    def seen(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def settle(self) -> None:
        """Let everything in the background end."""
        await self.background.drain(60)


class Fetch(Generic[K, V]):
    """A fetch under way, which ends when a test says so; `known` is what it may revalidate."""

    def __init__(self, key: K, known: V | None) -> None:
        self.key = key
        self.known = known
        self.sent_at = loop_time()
        self.ended: asyncio.Future[V] = asyncio.get_running_loop().create_future()

    def brings(self, document: V) -> None:
        self.ended.set_result(document)

    def fails(self, failure: UpstreamFailure) -> None:
        self.ended.set_exception(failure)


class HeldSource(Generic[K, V]):
    """A guarded source whose fetches all wait, in the order of their sending, for a test to end them."""

    endpoint = "held"

    def __init__(self) -> None:
        self.fetches: list[Fetch[K, V]] = []
        self.open_for: float | None = None
        self.proven = True

    def circuit_open_for(self) -> float | None:
        return self.open_for

    def is_proven(self) -> bool:
        return self.proven

    async def fetch(
        self,
        key: K,
        known: V | None,
        deadline_at: float,
        authorization: str | None = None,  # noqa: ARG002 — its port
    ) -> Confirmation[V]:
        fetch: Fetch[K, V] = Fetch(key, known)
        self.fetches.append(fetch)
        try:
            async with asyncio.timeout(max(0.0, deadline_at - fetch.sent_at)):
                return Confirmation(await fetch.ended, fetch.sent_at)
        except TimeoutError as error:
            raise UpstreamFailure(FailureKind.READ_TIMEOUT, "the config service did not answer in time") from error


class Serving(Generic[K, V]):
    """A guarded source of any kind that serves the same to all, or fails; it takes `takes` seconds."""

    endpoint = "user-placeholders"

    def __init__(self, serves: V | UpstreamFailure) -> None:
        self.serves: V | UpstreamFailure = serves
        self.takes = 0.0
        self.calls: list[K] = []
        self.open_for: float | None = None
        self.proven = True

    def circuit_open_for(self) -> float | None:
        return self.open_for

    def is_proven(self) -> bool:
        return self.proven

    async def fetch(
        self,
        key: K,
        known: V | None,  # noqa: ARG002 — its port
        deadline_at: float,
        authorization: str | None = None,  # noqa: ARG002 — its port
    ) -> Confirmation[V]:
        self.calls.append(key)
        sent_at, serves = loop_time(), self.serves
        if self.takes > deadline_at - sent_at:
            await asyncio.sleep(deadline_at - sent_at)
            raise UpstreamFailure(FailureKind.READ_TIMEOUT, "the config service did not answer in time")
        await asyncio.sleep(self.takes)
        if isinstance(serves, UpstreamFailure):
            raise serves
        return Confirmation(serves, sent_at)


class FakeTemplates:
    """Today's template file, compiled as today's service renders; `refused` holds what the gate does not admit."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = {
            node: compiled(source, undefined=Undefined.EMPTY, autoescape=True) for node, source in templates.items()
        }
        self.refused: dict[str, str] = {}

    def find(self, node_name: str) -> CompiledTemplate | None:
        if node_name in self.refused:
            raise UpstreamFailure(FailureKind.NOT_ADMITTED, self.refused[node_name])
        return self.templates.get(node_name)


TODAYS_TEMPLATES = {
    "explain": "Explain {{ topic }} in {{ style }}.",
    "quiz": "Ask about {{ topic }} in {{ language }}.",
    "echo": "Say {{ topic }}.",
}


class TodaysWorld(World):
    """A world before today's service: settings by user, templates from a file; `policies` by node."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        policies: Mapping[str, Policy] | None = None,
        templates: Mapping[str, str] = TODAYS_TEMPLATES,
        generation: Generation | None = Generation.PLACEHOLDERS,
        **others: Any,
    ) -> None:
        super().__init__(policy, generation=generation, **others)
        by_node = dict(policies or {})
        self.templates = FakeTemplates(templates)
        self.users: Serving[SettingsKey, UserSettings] = Serving(
            UserSettings({"style": "plain words", "language": "English"})
        )
        self.settings: Resources[SettingsKey, UserSettings] = Resources(
            source=self.users,
            cache=self.tiers,
            writes=self.writes,
            clock=loop_time,
            rng=Still(),
            background=self.background,
            observer=self.events.append,
            keep_under=lambda _: (self.policy, *by_node.values()),
        )
        self.todays = FromPlaceholders(self.settings, self.templates, self.nodes.confirm)
        self.manager._documents = {**self.manager._documents, Generation.PLACEHOLDERS: self.todays}
        self.selection._otherwise = Generation.PLACEHOLDERS
        self.manager.adopt(replace(self.rules, policy_for=lambda node: by_node.get(node, self.policy)))
