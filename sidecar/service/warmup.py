"""Warm-up: many prompts' static parts are brought into the cache beforehand, without getting in live traffic's way."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple, Protocol

from sidecar.core.decision import NO_DIRECTIVES
from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.events import WarmedUp, WarmUpEnded
from sidecar.core.model import Document, PromptKey
from sidecar.core.policy import Policy
from sidecar.service.generations import Documents, Generation
from sidecar.service.ports import Clock, Confirmed, Observer, StoreAwayError
from sidecar.service.resources import Landed, Terms

Pair = tuple[int, str]
"""User and node; an empty node stands for all nodes of the user, where one set of settings serves them."""

YIELD_SECONDS = 0.05
"""Between two looks at whether live traffic leaves room."""
BATCH_GONE_SECONDS = 600.0
"""How long single calls are made after the batch endpoint was not there."""
RECENT = 10_000
"""Keys that are remembered, to do pairs near each other once; further apart, the second is found fresh."""
MOST_TRIES = 3
"""How often a pair is tried that fails while the circuit is open, or opens it."""
LOOKS_AT_ONCE = 8
"""Looks at what is kept: half of the connections to a shared store, so that requests find one."""
MOST_TOLD = 1_000
"""Failures that are kept one by one; the others are only counted."""


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """Before its end: the upstream or the store is away, or there is nothing that could be warmed."""
    CANCELLED = "cancelled"


class WarmUpRule(NamedTuple):
    """How fast, and how long for."""

    rate: float
    """Pairs a second."""
    concurrency: int
    batch: int
    """Pairs in one batch call; 1: single calls."""
    patience: float
    """Seconds without room for a call, after which a job is stopped; trial calls make none."""


class Failed(NamedTuple):
    """A pair that could not be brought, and why."""

    user_id: int
    node_name: str
    reason: str


class Unit(NamedTuple):
    """What one entry serves: a document, or the settings for all nodes of a user."""

    key: Any
    pair: Pair
    policy: Policy
    tries: int = 1


class Job:
    """One warm-up, and how far it is."""

    def __init__(self, pairs: AsyncIterator[Pair], total: int | None, rule: WarmUpRule) -> None:
        """`total`: how many pairs, duplicates included; None where that is known only at the end."""
        self.pairs = pairs
        self.rule = rule
        self.total = total
        self.state = State.QUEUED
        self.why: str | None = None
        """Why it was stopped."""
        self.results: Counter[str] = Counter(stored=0, fresh=0, failed=0, duplicate=0)
        self.again: list[Unit] = []
        """What failed for an open circuit, and is tried again."""
        self.reasons: Counter[str] = Counter()
        self.failures: list[Failed] = []
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.ended = asyncio.Event()

    @property
    def done(self) -> int:
        """Pairs that are dealt with."""
        return self.results.total()

    def fail(self, pair: Pair, reason: str) -> None:
        """Note a pair that could not be brought."""
        self.results["failed"] += 1
        self.reasons[reason] += 1
        if len(self.failures) < MOST_TOLD:
            self.failures.append(Failed(*pair, reason))


class Batch(Protocol):
    """The batch call; see `upstream.batch`."""

    async def fetch(self, keys: Sequence[PromptKey], deadline_at: float) -> list[Confirmed[Document] | UpstreamFailure]:
        """Bring documents in the order of their keys; raises `UpstreamFailure` for all at once."""
        ...


class Upstream(Protocol):
    """Whether a call may go out; see `upstream.guarded`."""

    def has_room(self, *, trial: bool = False) -> bool:
        """Return whether a call that nobody waits for may go out; `trial`: also one that may close the circuit."""
        ...

    def circuit_open_for(self) -> float | None:
        """Return None where a call may go out now, else the seconds until it is worth asking again."""
        ...


class WarmUp:
    """Brings jobs' pairs into the cache, one job after the other."""

    def __init__(
        self,
        *,
        documents: Callable[[], Awaitable[Documents | None]],
        batch: Batch,
        upstream: Upstream,
        policy_for: Callable[[str], Policy],
        confirm: Callable[[str], None],
        deadline: Callable[[], float],
        clock: Clock,
        observer: Observer,
    ) -> None:
        """`documents`: where they come from now, None where nothing is kept."""
        self._documents = documents
        self._batch = batch
        self._upstream = upstream
        self._policy_for = policy_for
        self._confirm = confirm
        self._deadline = deadline
        self._clock = clock
        self._observe = observer
        self._batch_gone_until = 0.0
        self._next_at = 0.0
        self._no_room_since: float | None = None
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def run(self, job: Job) -> None:
        """Do a job; it ends as done, stopped or (where this task is) cancelled, and says so."""
        job.state, job.began_at, self._next_at = State.RUNNING, self._clock(), self._clock()
        self._no_room_since = None
        try:
            documents = await self._documents()
            if documents is None:
                job.state, job.why = State.STOPPED, "the config service renders by itself here: nothing of it is kept"
            elif await self._all(job, documents):
                job.state = State.DONE
            else:
                job.state, job.why = State.STOPPED, f"the config service took no calls for {job.rule.patience:g} s"
        except StoreAwayError as error:
            job.state, job.why = State.STOPPED, f"the store cannot be read to its end ({error})"
        except asyncio.CancelledError:
            job.state = State.CANCELLED
            raise
        finally:
            job.ended_at = self._clock()
            job.ended.set()
            self._observe(WarmUpEnded(job.state.value, dict(job.results), dict(job.reasons)))

    async def _all(self, job: Job, documents: Documents) -> bool:
        """Bring all pairs; return False where the upstream takes no calls."""
        under_way: set[asyncio.Task[None]] = set()
        waiting: list[Unit] = []
        try:
            async for unit in self._units(job, documents):
                waiting.append(unit)
                if not await self._send_whole(job, documents, waiting, under_way):
                    return False
            while waiting or under_way or job.again:
                waiting += job.again
                job.again.clear()
                if not await self._send_whole(job, documents, waiting, under_way, least=1):
                    return False
                await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return True

    async def _send_whole(
        self,
        job: Job,
        documents: Documents,
        waiting: list[Unit],
        under_way: set[asyncio.Task[None]],
        *,
        least: int | None = None,
    ) -> bool:
        """Send what waits, as many at once as make a call, `least` at least; return False where none may go."""
        while len(waiting) >= (least or self._at_once(job, documents)):
            many = await self._room(job, min(len(waiting), self._at_once(job, documents)), under_way)
            if not many:
                return False
            units = waiting[:many]
            del waiting[:many]
            while len(under_way) >= job.rule.concurrency:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.ensure_future(self._bring(job, documents, units))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        return True

    async def _units(self, job: Job, documents: Documents) -> AsyncIterator[Unit]:
        """Yield what is to be brought; of pairs near each other that one entry serves, the first."""
        recent: OrderedDict[Any, None] = OrderedDict()
        async for pair in job.pairs:
            key = documents.key_for(*pair)
            if key is None:
                job.fail(pair, "unknown node" if pair[1] else "no node")
            elif key in recent:
                job.results["duplicate"] += 1
            else:
                recent[key] = None
                if len(recent) > RECENT:
                    recent.popitem(last=False)
                yield Unit(key, pair, self._policy_for(pair[1]))

    def _at_once(self, job: Job, documents: Documents) -> int:
        if documents.generation is not Generation.PROMPT_DATA or self._clock() < self._batch_gone_until:
            return 1
        return job.rule.batch

    async def _room(self, job: Job, many: int, under_way: set[asyncio.Task[None]]) -> int:
        """Wait until some may go, and return how many of them: one, alone, where it may close the circuit; 0: none."""
        now = self._clock()
        await asyncio.sleep(max(0.0, self._next_at - now))
        while not self._upstream.has_room():
            if self._no_room_since is None:
                self._no_room_since = self._clock()
            if self._clock() >= self._no_room_since + job.rule.patience:
                return 0
            if not under_way and self._upstream.has_room(trial=True):
                many = 1
                break
            await asyncio.sleep(YIELD_SECONDS)
        else:
            self._no_room_since = None
        self._next_at = max(self._clock(), self._next_at) + many / job.rule.rate
        return many

    async def _bring(self, job: Job, documents: Documents, units: list[Unit]) -> None:
        """Bring a few, by the batch call where there are several and the service has it."""
        wanted = []
        fresh = await asyncio.gather(*(self._is_fresh(documents, unit) for unit in units))
        for unit, is_fresh in zip(units, fresh, strict=True):
            if is_fresh:
                job.results["fresh"] += 1
                self._observe(WarmedUp("fresh"))
            else:
                wanted.append(unit)
        if len(wanted) > 1 and await self._by_batch(job, documents, wanted):
            return
        for unit in wanted:
            landed = await documents.resources.refresh(unit.key, self._terms(unit))
            self._note(job, unit, landed)

    async def _is_fresh(self, documents: Documents, unit: Unit) -> bool:
        async with self._looks:
            return await documents.resources.is_fresh(unit.key, self._terms(unit))

    async def _by_batch(self, job: Job, documents: Documents, units: list[Unit]) -> bool:
        """Bring all of them by one call; return False where that is not the way, and single calls are."""
        resources = documents.resources
        begun = {unit.key: resources.begin(unit.key) for unit in units}
        try:
            brought = await self._batch.fetch([unit.key for unit in units], self._clock() + self._deadline())
        except UpstreamFailure as failure:
            if failure.status in {404, 405}:
                self._batch_gone_until = self._clock() + BATCH_GONE_SECONDS
                return False
            is_answer = not failure.rule.stale or failure.rule.status == 502
            if is_answer or (failure.kind is FailureKind.SERVER_ERROR and not self._is_away()):
                return False  # one of them may have spoilt it for all, or all of them are too much
            for unit in units:
                self._note(job, unit, failure)
            return True
        for unit, each in zip(units, brought, strict=True):
            landed = await resources.land(unit.key, begun[unit.key], each, unit.policy, None)
            self._note(job, unit, landed)
        return True

    def _is_away(self) -> bool:
        return self._upstream.circuit_open_for() is not None

    def _terms(self, unit: Unit) -> Terms:
        return Terms(unit.policy, NO_DIRECTIVES, self._clock(), self._deadline())

    def _note(self, job: Job, unit: Unit, landed: Landed[Any] | UpstreamFailure) -> None:
        if isinstance(landed, UpstreamFailure):
            may_help = landed.kind is FailureKind.CIRCUIT_OPEN or (landed.rule.retry and self._is_away())
            if may_help and unit.tries < MOST_TRIES:
                job.again.append(unit._replace(tries=unit.tries + 1))
                return
            job.fail(unit.pair, reason_of(landed))
        elif not landed.stored:
            job.fail(unit.pair, "not kept: the policy keeps nothing, or it was changed meanwhile")
        else:
            if unit.pair[1]:
                self._confirm(unit.pair[1])
            job.results["stored"] += 1
            self._observe(WarmedUp("stored"))
            return
        self._observe(WarmedUp("failed"))


def reason_of(failure: UpstreamFailure) -> str:
    """Return why a pair could not be brought, in a word or a status."""
    if failure.status is not None and failure.status >= 400:
        return f"the config service answered {failure.status}"
    return failure.kind.value.replace("_", " ")


async def listed(pairs: Iterable[Pair], *, breathe_after: int = 1_000) -> AsyncIterator[Pair]:
    """Yield pairs that are all known already, and let others run now and then."""
    given = iter(pairs)
    while some := list(islice(given, breathe_after)):
        for pair in some:
            yield pair
        await asyncio.sleep(0)
