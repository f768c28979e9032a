"""What the upstream serves and the policy lets us keep: look up, decide, serve or fetch. One engine for all of it."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar, assert_never

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.credential import NOBODY, Credential
from sidecar.core.decision import NO_DIRECTIVES, Action, Directives, after_failure, decide
from sidecar.core.errors import DIVERTING, FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import Coalesced, Evicted, FetchFailed
from sidecar.core.freshness import State, Windows, state_of, strategy_for, windows
from sidecar.core.model import Entry, Kept, Key, hollowed, may_replace
from sidecar.core.policy import Policy, Strategy
from sidecar.core.retry import Rng
from sidecar.core.routes import MOST_ID
from sidecar.service.background import Background
from sidecar.service.ports import Cache, Clock, Confirmed, Observer, Source, Unsettled
from sidecar.service.single_flight import Joined, SingleFlight, wait
from sidecar.service.trace import NO_TRACER, Tracer, detached
from sidecar.service.writes import Writes

ANSWER_MARGIN = 0.1
"""Seconds before the deadline (a tenth of it at most) at which a fetch gives up, so that the answer leaves in time."""

BOOT_PATIENCE = 0.25
"""Seconds to wait for an upstream that was not heard of since the start, while usable stale data is at hand: a pod that
restarts in an outage must answer within a second of its start. About ten times what a healthy one takes."""

_UNAVAILABLE = frozenset({502, 503, 504})

K = TypeVar("K", bound=Key)
V = TypeVar("V", bound=Kept)


class View(NamedTuple):
    """An entry as it looks at one instant, under its policy."""

    strategy: Strategy
    state: State
    age: float
    windows: Windows

    @property
    def staleness(self) -> float:
        """Seconds since freshness ended; negative while fresh."""
        return self.age - self.windows.fresh_for


_NOTHING = Windows(0.0, 0.0, 0.0)


def look(entry: Entry[V] | None, policy: Policy, now: float) -> View:
    """Return how an entry looks at `now`."""
    if entry is None:
        return View(strategy_for(policy, None), State.ABSENT, 0.0, _NOTHING)
    stated = entry.document.stated_ttl
    w = windows(policy, stated, entry.spread)
    age = now - entry.confirmed_at
    return View(strategy_for(policy, stated), state_of(age, w), age, w)


class Terms(NamedTuple):
    """On what terms something is asked for."""

    policy: Policy
    directives: Directives
    began_at: float
    deadline: float
    label: str | None = None
    """What telemetry may call it."""
    may_wait: bool = True
    """Whether the upstream may be asked: not where too many wait for it already."""
    credential: Credential = NOBODY
    """In whose name; the key asked for holds its tag."""

    @property
    def margin(self) -> float:
        """Seconds kept back from the deadline for rendering and writing."""
        return min(ANSWER_MARGIN, self.deadline / 10)

    @property
    def deadline_at(self) -> float:
        """The instant at which a fetch for this request must have ended."""
        return self.began_at + self.deadline - self.margin


@dataclass(frozen=True, slots=True)
class Landed(Generic[V]):
    """What a fetch brought: an entry, and whether it was kept."""

    entry: Entry[V]
    stored: bool


class Begun(NamedTuple, Generic[V]):
    """How things stood when the upstream was asked."""

    at: float
    epoch: int | None
    """None: nothing that it brings may be kept."""
    ticket: object
    """For what is behind the memory."""
    known: V | None
    """What is kept already, and may be revalidated."""


class Obtained(NamedTuple, Generic[V]):
    """What answers a request, and how it was come by."""

    entry: Entry[V]
    provenance: Provenance


class Diverted(Exception):
    """This way is closed, another may be open; `failure` says why, `forward` why the upstream was asked."""

    def __init__(self, failure: UpstreamFailure, forward: Forward) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.forward = forward


class Resources(Generic[K, V]):
    """Entries of one kind, from one endpoint."""

    def __init__(
        self,
        *,
        source: Source[K, V],
        cache: Cache,
        writes: Writes,
        clock: Clock,
        rng: Rng,
        background: Background,
        observer: Observer,
        tracer: Tracer = NO_TRACER,
        keep_under: Callable[[Policy], Iterable[Policy]] = lambda policy: (policy,),
        may_keep: Callable[[V], bool] = lambda _: True,
    ) -> None:
        """`keep_under`: all the policies under which an entry fetched under one may be looked at."""
        self._may_keep = may_keep
        self._source = source
        self._cache = cache
        self._writes = writes
        self._clock = clock
        self._rng = rng
        self._observe = observer
        self._tracer = tracer
        self._keep_under = keep_under
        self._flights: SingleFlight[tuple[K, int], Landed[V] | UpstreamFailure] = SingleFlight(background, clock)

    def peek(self, key: K) -> Entry[V] | None:
        """Return what is kept, if no write made it void."""
        entry: Entry[V] | None = self._cache.peek(key)
        return None if entry is None or self._writes.is_void(key.owner, entry.epoch) else entry

    async def obtain(self, key: K, terms: Terms) -> Obtained[V]:
        """Decide by the stale table, and do it; raises `PromptError`, or `Diverted`."""
        try:
            return await self._obtain(key, terms)
        except PromptError as error:
            doubted_for = self._writes.doubted_for()
            if not doubted_for or error.status not in _UNAVAILABLE or self._cache.peek(key) is None:
                raise
            if self._clock() + doubted_for >= terms.deadline_at:
                raise
            await asyncio.sleep(doubted_for)  # what is kept may then be trusted again, or is known to be void
            return await self._obtain(key, terms)

    async def _obtain(self, key: K, terms: Terms) -> Obtained[V]:
        entry = self.peek(key)
        now = self._clock()
        if self._cache.has_store and self._may_be_behind(entry, terms, now):
            entry = await self._recall(key, terms)
            now = self._clock()
        if (
            entry is not None
            and now < entry.hit_until
            and entry.policy is terms.policy
            and terms.directives is NO_DIRECTIVES
        ):
            return Obtained(entry, Provenance(hit=True, ttl=entry.hit_until - now, age=now - entry.confirmed_at))
        view = look(entry, terms.policy, now)
        open_for = self._source.circuit_open_for()
        circuit_open = open_for is not None or not terms.may_wait
        action = decide(
            view.strategy,
            view.state,
            circuit_open=circuit_open,
            directives=terms.directives,
            staleness=view.staleness,
        )
        self._tracer.note({"prompt_sidecar.entry": view.state.value, "prompt_sidecar.decision": action.value})
        match action:
            case Action.SERVE | Action.SERVE_AND_REVALIDATE:
                assert entry is not None
                if action is Action.SERVE_AND_REVALIDATE:
                    with detached():
                        self._join(key, terms, now + terms.deadline)
                return Obtained(entry, _hit(view, action, circuit_open=circuit_open))
            case Action.FETCH | Action.FETCH_BRIEFLY:
                return await self._forward(key, terms, view, brief=action is Action.FETCH_BRIEFLY)
            case Action.FAIL_CIRCUIT_OPEN if open_for is None:
                raise unavailable(overload(), Provenance(detail="overload"))
            case Action.FAIL_CIRCUIT_OPEN:
                failure = UpstreamFailure(
                    FailureKind.CIRCUIT_OPEN,
                    "the circuit to the config service is open after repeated failures",
                    retry_after=open_for,
                )
                raise unavailable(failure, Provenance(detail="circuit-open"))
            case Action.FAIL_NOT_CACHED:
                raise PromptError(
                    504,
                    "Nothing usable is cached, and the request says only-if-cached.",
                    reason="not_cached",
                    provenance=Provenance(detail="only-if-cached"),
                )
            case _:
                assert_never(action)

    def _may_be_behind(self, entry: Entry[V] | None, terms: Terms, now: float) -> bool:
        """Return whether what is behind the memory is worth a look.

        It is where memory has nothing; and before the upstream is asked again, where another sidecar may have asked.
        """
        if terms.policy.strategy is Strategy.NETWORK_ONLY:
            return False
        if entry is None:
            return True
        if not self._cache.is_shared or terms.directives is not NO_DIRECTIVES:
            return False
        view = look(entry, terms.policy, now)
        return (
            view.strategy is Strategy.CACHE_FIRST
            and view.state is not State.FRESH
            and self._source.circuit_open_for() is None
        )

    async def _recall(self, key: K, terms: Terms) -> Entry[V] | None:
        """Take into memory what is kept behind it, as far as a policy still has a use for it."""
        began_in = self._writes.lane(key.owner)
        epoch = self._writes.ticket(key.owner) or 0
        recalled = await self._cache.recall(key)
        if recalled is None or self._writes.lane(key.owner) != began_in:
            return self.peek(key)
        if isinstance(recalled, Unsettled):
            self._writes.began_elsewhere(key.owner, recalled.write, settles_in=recalled.settles_in)
            return None
        known = self.peek(key)
        if known is not None and known.confirmed_at >= recalled.confirmed_at:
            return known
        if recalled.epoch is not None:
            epoch = recalled.epoch
        entry: Entry[V] = Entry.of(recalled.kept, recalled.confirmed_at, recalled.spread, terms.policy, epoch)
        left = self._keep_for(terms.policy, entry) - (self._clock() - entry.confirmed_at)
        if left <= 0 or self._writes.is_void(key.owner, entry.epoch):
            return None
        await self._cache.set(key, entry, left)
        return entry

    def _keep_for(self, policy: Policy, entry: Entry[V]) -> float:
        return max(
            0.0 if each.strategy is Strategy.NETWORK_ONLY else _usable_for(each, entry)
            for each in self._keep_under(policy)
        )

    async def is_fresh(self, key: K, terms: Terms) -> bool:
        """Return whether what is kept, in memory or behind it, is fresh."""
        entry = self.peek(key)
        if self._cache.has_store and self._may_be_behind(entry, terms, self._clock()):
            entry = await self._recall(key, terms)
        return look(entry, terms.policy, self._clock()).state is State.FRESH

    def is_aging(self, key: K, policy: Policy) -> bool:
        """Return whether what is kept, if anything, is past half of its use."""
        view = look(self.peek(key), policy, self._clock())
        return view.age * 2 >= view.windows.usable_for

    async def refresh(self, key: K, terms: Terms) -> Landed[V] | UpstreamFailure:
        """Fetch whatever is kept, or share a fetch that is under way."""
        flight = self._join(key, terms, terms.deadline_at)
        try:
            return await wait(flight.task, terms.deadline_at + terms.margin / 2 - self._clock())
        except TimeoutError:
            return UpstreamFailure(FailureKind.DEADLINE, "the config service did not answer in time")

    def instead(
        self, key: K, terms: Terms, failure: UpstreamFailure, forward: Forward, *, collapsed: bool = False
    ) -> Obtained[V] | None:
        """Return what is kept instead of what failed, if the policy allows it now."""
        entry = self.peek(key)
        view = look(entry, terms.policy, self._clock())
        if entry is not None and after_failure(
            view.strategy, view.state, failure.kind, directives=terms.directives, staleness=view.staleness
        ):
            return Obtained(
                entry,
                Provenance(
                    forward=forward,
                    forward_status=failure.status,
                    collapsed=collapsed,
                    ttl=-view.staleness,
                    age=view.age,
                    detail="network-timeout" if failure.kind is FailureKind.DEADLINE else "stale-if-error",
                    usable_for=view.windows.usable_for - view.age,
                ),
            )
        return None

    async def _forward(self, key: K, terms: Terms, before: View, *, brief: bool) -> Obtained[V]:
        """Ask the upstream; return what it says, or what the policy allows instead."""
        forward = _why_forwarded(terms, before)
        began_after = terms.began_at if terms.directives.no_cache else None
        last_moment = terms.deadline_at + terms.margin / 2  # the fetch's own end, and so its cause, comes first
        patience = terms.policy.network_timeout
        if not self._source.is_proven():
            patience = min(patience, BOOT_PATIENCE)
        patience_until = min(last_moment, self._clock() + patience) if brief else last_moment
        collapsed = False
        own: object = None
        while True:
            flight = self._join(key, terms, terms.deadline_at, began_after=began_after)
            if not flight.collapsed:
                own = flight.task
            elif flight.task is not own and not collapsed:
                collapsed = True
                self._observe(Coalesced(terms.label))
            try:
                landed = await wait(flight.task, patience_until - self._clock())
            except TimeoutError:
                landed = UpstreamFailure(FailureKind.DEADLINE, "the config service did not answer in time")
            if isinstance(landed, Landed):
                age = max(0.0, self._clock() - landed.entry.confirmed_at)
                return Obtained(
                    landed.entry, Provenance(forward=forward, stored=landed.stored, collapsed=collapsed, age=age)
                )
            if landed.kind in DIVERTING:
                raise Diverted(landed, forward)
            kept = self.instead(key, terms, landed, forward, collapsed=collapsed)
            if kept is not None:
                return kept
            if landed.rule.status == 504 and self._clock() < terms.deadline_at and (brief or flight.collapsed):
                # Time ran out, but not ours: either what was to be served instead has meanwhile grown too old, or the
                # deadline that ended the flight was its first waiter's.
                brief = False
                patience_until = last_moment
                continue
            provenance = Provenance(
                forward=forward,
                forward_status=landed.status,
                collapsed=collapsed,
                detail=landed.kind.value.replace("_", "-"),
            )
            raise unavailable(landed, provenance)

    def _join(
        self, key: K, terms: Terms, deadline_at: float, *, began_after: float | None = None
    ) -> Joined[Landed[V] | UpstreamFailure]:
        lane = self._writes.lane(key.owner)  # never a fetch from before a write of the owner
        return self._flights.join((key, lane), partial(self._fetch, key, terms, deadline_at), began_after=began_after)

    async def _fetch(self, key: K, terms: Terms, deadline_at: float) -> Landed[V] | UpstreamFailure:
        """Fetch for all who wait, keep what is good, evict what is contradicted."""
        with self._tracer.span(f"fetch {self._source.endpoint}") as span:
            begun = self.begin(key)
            try:
                brought: Confirmed[V] | UpstreamFailure = await self._source.fetch(
                    key, begun.known, deadline_at, terms.credential.authorization
                )
            except UpstreamFailure as failure:
                brought = failure
            landed = await self.land(key, begun, brought, terms.policy, terms.label)
            if span is not None:
                if isinstance(landed, UpstreamFailure):
                    span.fail(landed.kind.value)
                else:
                    span.set({"prompt_sidecar.stored": landed.stored})
            return landed

    def begin(self, key: K) -> Begun[V]:
        """Note, before the upstream is asked, what must be known when it has answered."""
        known = self.peek(key)
        epoch = self._writes.ticket(key.owner)
        return Begun(self._clock(), epoch, self._cache.ticket(key), known.document if known else None)

    async def land(
        self, key: K, begun: Begun[V], brought: Confirmed[V] | UpstreamFailure, policy: Policy, label: str | None
    ) -> Landed[V] | UpstreamFailure:
        """Keep what is good, evict what is contradicted."""
        if not isinstance(brought, UpstreamFailure) and hollowed(brought.document, begun.known):
            brought = UpstreamFailure(
                FailureKind.BAD_DOCUMENT, "the config service answered without any of the settings that it had before"
            )
        if isinstance(brought, UpstreamFailure):
            kept = self._cache.peek(key)
            if brought.rule.evicts and (kept is None or kept.confirmed_at <= begun.at):
                await self._cache.delete(key)  # also where memory has nothing: something may be behind it
                if kept is not None:
                    self._observe(Evicted(label))
            self._observe(FetchFailed(label, brought.kind, brought.detail, self._source.endpoint))
            return brought
        epoch = begun.epoch
        entry = Entry.of(brought.document, brought.confirmed_at, self._rng.uniform(-1.0, 1.0), policy, epoch or 0)
        keep_for = self._keep_for(policy, entry)
        stored = (
            keep_for > 0
            and (key.owner or 0) <= MOST_ID
            and self._may_keep(entry.document)
            and self._writes.may_land(key.owner, epoch)
            and may_replace(entry, self.peek(key))
        )
        if stored:
            await self._cache.set(key, entry, keep_for)
            if self._writes.is_settled(key.owner):
                self._cache.persist(key, entry, keep_for, begun.ticket)
        return Landed(entry, stored)


def _usable_for(policy: Policy, entry: Entry[V]) -> float:
    return windows(policy, entry.document.stated_ttl, entry.spread).usable_for


def _hit(view: View, action: Action, *, circuit_open: bool) -> Provenance:
    detail = None
    if view.state is not State.FRESH:
        if action is Action.SERVE_AND_REVALIDATE:
            detail = "stale-while-revalidate"
        elif circuit_open:
            detail = "stale-if-error"
        else:
            detail = "max-stale" if view.state is State.USABLE else "stale-while-revalidate"
    usable_for = view.windows.usable_for - view.age
    return Provenance(hit=True, ttl=-view.staleness, age=view.age, detail=detail, usable_for=usable_for)


def _why_forwarded(terms: Terms, view: View) -> Forward:
    """Name the reason for going forward (RFC 9211 §2.2)."""
    if view.strategy is Strategy.NETWORK_ONLY:
        return Forward.BYPASS
    if terms.directives.no_cache:
        return Forward.REQUEST
    if view.state is State.ABSENT:
        return Forward.MISS
    return Forward.BYPASS if view.state is State.FRESH else Forward.STALE


def overload() -> UpstreamFailure:
    """Return the failure of what may not wait."""
    return UpstreamFailure(FailureKind.OVERLOAD, "too many requests wait for the config service already")


def unavailable(failure: UpstreamFailure, provenance: Provenance = Provenance()) -> PromptError:  # noqa: B008 — frozen
    """Turn a failure that nothing may stand in for into the request's error."""
    status = failure.rule.status
    if status is None:
        return PromptError(
            failure.status or 502,
            failure.detail,
            reason=failure.kind.value,
            answer=failure.answer,
            provenance=provenance,
        )
    return PromptError(
        status,
        f"No prompt: {failure.detail}, and the policy allows no stale data.",
        reason=failure.kind.value,
        retry_after=max(1.0, failure.retry_after or 1.0) if status == 503 else None,
        upstream_answer=failure.answer,
        provenance=provenance,
    )
