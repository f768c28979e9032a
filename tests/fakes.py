"""What stands for the outside in tests of the service: a scripted source, still chance, a list of events."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from sidecar.cache.memory import MemoryCache
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.core.events import Event
from sidecar.core.model import Document, PromptKey, Rendered
from sidecar.core.policy import Policy
from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, Undefined, compile_template
from sidecar.service.background import Background
from sidecar.service.prompts import PromptManager
from sidecar.upstream.guarded import Confirmation

E = TypeVar("E", bound=Event)


def loop_time() -> float:
    """Return the loop's time, which looptime fakes."""
    return asyncio.get_running_loop().time()


class Still:
    """Chance that is always in the middle: no jitter, no spread."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def compiled(source: str, *, undefined: Undefined = Undefined.STRICT, autoescape: bool = False) -> CompiledTemplate:
    """Compile a template as its arrival would."""
    options = RenderOptions(autoescape=autoescape, undefined=undefined)
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

    def __init__(self) -> None:
        self.calls: Counter[PromptKey] = Counter()
        self.known: list[Document | None] = []
        self.deadlines: list[float] = []
        self.open_for: float | None = None
        self.serves: Document | UpstreamFailure = document()
        self.takes = 0.0

    def circuit_open_for(self) -> float | None:
        return self.open_for

    async def fetch(self, key: PromptKey, known: Document | None, deadline_at: float) -> Confirmation:
        self.calls[key] += 1
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


class World:
    """A manager with everything around it faked, in the loop's faked time."""

    def __init__(self, policy: Policy | None = None, *, deadline: float = 4.0, max_nodes: int = 100) -> None:
        self.events: list[Event] = []
        self.source = FakeSource()
        self.policy = policy or Policy()
        self.background = Background(self.events.append)
        self.cache = MemoryCache(max_entries=1000, max_bytes=1 << 24, clock=loop_time)
        self.manager = PromptManager(
            source=self.source,
            cache=self.cache,
            policy_for=lambda _: self.policy,
            deadline=deadline,
            clock=loop_time,
            rng=Still(),
            background=self.background,
            observer=self.events.append,
            max_nodes=max_nodes,
        )

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
