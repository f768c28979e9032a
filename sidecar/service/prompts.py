"""PromptManager: look up, decide, serve or fetch, render. One request's path, and the library's public face."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, assert_never

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.decision import NO_DIRECTIVES, Action, Directives, after_failure, decide
from sidecar.core.errors import FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import Coalesced, Evicted, FetchFailed, Outcome, RequestOutcome
from sidecar.core.freshness import State, Windows, state_of, strategy_for, windows
from sidecar.core.model import Entry, PromptKey, Rendered, hollowed, may_replace
from sidecar.core.policy import Policy, Strategy
from sidecar.core.retry import Rng
from sidecar.service.background import Background
from sidecar.service.ports import Clock, Observer, PromptCache, PromptSource
from sidecar.service.rendering import ConfirmedNodes, Renderer
from sidecar.service.single_flight import Joined, SingleFlight, wait

ANSWER_MARGIN = 0.1
"""Seconds before the deadline (a tenth of it at most) at which a fetch gives up, so that the answer leaves in time."""


class View(NamedTuple):
    """An entry as it looks at one instant, under its node's policy."""

    strategy: Strategy
    state: State
    age: float
    windows: Windows

    @property
    def staleness(self) -> float:
        """Seconds since freshness ended; negative while fresh."""
        return self.age - self.windows.fresh_for


_NOTHING = Windows(0.0, 0.0, 0.0)


def look(entry: Entry | None, policy: Policy, now: float) -> View:
    """Return how an entry looks at `now`."""
    if entry is None:
        return View(strategy_for(policy, None), State.ABSENT, 0.0, _NOTHING)
    stated = entry.document.stated_ttl
    w = windows(policy, stated, entry.spread)
    age = now - entry.confirmed_at
    return View(strategy_for(policy, stated), state_of(age, w), age, w)


@dataclass(frozen=True, slots=True)
class Landed:
    """What a fetch brought: an entry, and whether it was kept."""

    entry: Entry
    stored: bool


class Call(NamedTuple):
    """One request while it is being answered."""

    key: PromptKey
    context: Mapping[str, Any]
    directives: Directives
    policy: Policy
    began_at: float
    deadline: float

    @property
    def margin(self) -> float:
        """Seconds kept back from the deadline for rendering and writing."""
        return min(ANSWER_MARGIN, self.deadline / 10)

    @property
    def deadline_at(self) -> float:
        """The instant at which a fetch for this request must have ended."""
        return self.began_at + self.deadline - self.margin


class PromptManager:
    """Answer with prompts rendered here, from static parts that the upstream served and the policy allows."""

    def __init__(
        self,
        *,
        source: PromptSource,
        cache: PromptCache,
        policy_for: Callable[[str], Policy],
        deadline: float,
        clock: Clock,
        rng: Rng,
        background: Background,
        observer: Observer,
        max_nodes: int,
    ) -> None:
        self._source = source
        self._cache = cache
        self._policy_for = policy_for
        self._deadline = deadline
        self._clock = clock
        self._rng = rng
        self._observe = observer
        self._flights: SingleFlight[PromptKey, Landed | UpstreamFailure] = SingleFlight(background, clock)
        self._nodes = ConfirmedNodes(max_nodes)
        self._renderer = Renderer(clock=clock, observer=observer, nodes=self._nodes)

    async def get_rendered_prompt(
        self,
        user_id: int,
        node_name: str,
        dynamic_context: Mapping[str, Any],
        *,
        directives: Directives = NO_DIRECTIVES,
        began_at: float | None = None,
    ) -> Rendered:
        """Return the prompt of a user for a node, rendered with this request's own content.

        `began_at`: the clock's instant at which the request came; the deadline counts from there.
        Raises `PromptError`. Source: contract §3, §4.
        """
        now = self._clock()
        if began_at is None:
            began_at = now
        policy = self._policy_for(node_name)
        entry = self._cache.peek((user_id, node_name))
        if entry is not None and now < entry.hit_until and entry.policy is policy and directives is NO_DIRECTIVES:
            age = now - entry.confirmed_at  # most requests: nothing to decide
            provenance = Provenance(hit=True, ttl=entry.hit_until - now, age=age)
            return self._renderer.render(entry, node_name, dynamic_context, provenance, began_at=began_at, now=now)
        key = PromptKey(user_id, node_name)
        return await self._answer(Call(key, dynamic_context, directives, policy, began_at, self._deadline), entry, now)

    async def _answer(self, call: Call, entry: Entry | None, now: float) -> Rendered:
        """Decide by the stale table, and do it."""
        directives = call.directives
        view = look(entry, call.policy, now)
        open_for = self._source.circuit_open_for()
        circuit_open = open_for is not None
        action = decide(
            view.strategy,
            view.state,
            circuit_open=circuit_open,
            directives=directives,
            staleness=view.staleness,
        )
        match action:
            case Action.SERVE | Action.SERVE_AND_REVALIDATE:
                assert entry is not None
                if action is Action.SERVE_AND_REVALIDATE:
                    self._join(call, now + self._deadline)
                return self._serve(call, entry, _hit(view, action, circuit_open=circuit_open))
            case Action.FETCH | Action.FETCH_BRIEFLY:
                return await self._forward(call, view, brief=action is Action.FETCH_BRIEFLY)
            case Action.FAIL_CIRCUIT_OPEN:
                failure = UpstreamFailure(
                    FailureKind.CIRCUIT_OPEN,
                    "the circuit to the config service is open after repeated failures",
                    retry_after=open_for,
                )
                raise self._told(call, _unavailable(failure, Provenance(detail="circuit-open")))
            case Action.FAIL_NOT_CACHED:
                error = PromptError(
                    504,
                    "Nothing usable is cached, and the request says only-if-cached.",
                    reason="not_cached",
                    provenance=Provenance(detail="only-if-cached"),
                )
                raise self._told(call, error)
            case _:
                assert_never(action)

    def _told(self, call: Call, error: PromptError) -> PromptError:
        """Tell of a request that ends without a prompt."""
        seconds = self._clock() - call.began_at
        node = self._nodes.label(call.key.node_name)
        self._observe(RequestOutcome(node, Outcome.ERROR, seconds, 0.0, None, error.reason, error.status))
        return error

    async def _forward(self, call: Call, before: View, *, brief: bool) -> Rendered:
        """Ask the upstream; serve what it says, or what the policy allows instead."""
        forward = _why_forwarded(call, before)
        began_after = call.began_at if call.directives.no_cache else None
        last_moment = call.deadline_at + call.margin / 2  # the fetch's own end, and so its cause, comes first
        patience_until = min(last_moment, self._clock() + call.policy.network_timeout) if brief else last_moment
        collapsed = False
        own: object = None
        while True:
            flight = self._join(call, call.deadline_at, began_after=began_after)
            if not flight.collapsed:
                own = flight.task
            elif flight.task is not own and not collapsed:
                collapsed = True
                self._observe(Coalesced(self._nodes.label(call.key.node_name)))
            try:
                landed = await wait(flight.task, patience_until - self._clock())
            except TimeoutError:
                landed = UpstreamFailure(FailureKind.DEADLINE, "the config service did not answer in time")
            if isinstance(landed, Landed):
                age = max(0.0, self._clock() - landed.entry.confirmed_at)
                return self._serve(
                    call,
                    landed.entry,
                    Provenance(forward=forward, stored=landed.stored, collapsed=collapsed, age=age),
                )
            kept = self._instead(call, landed, forward, collapsed=collapsed)
            if kept is not None:
                return kept
            if landed.rule.status == 504 and self._clock() < call.deadline_at and (brief or flight.collapsed):
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
            raise self._told(call, _unavailable(landed, provenance))

    def _instead(self, call: Call, failure: UpstreamFailure, forward: Forward, *, collapsed: bool) -> Rendered | None:
        """Serve what is kept instead of what failed, if the policy allows it now."""
        entry = self._cache.peek(call.key)
        view = look(entry, call.policy, self._clock())
        if entry is not None and after_failure(
            view.strategy, view.state, failure.kind, directives=call.directives, staleness=view.staleness
        ):
            return self._serve(
                call,
                entry,
                Provenance(
                    forward=forward,
                    forward_status=failure.status,
                    collapsed=collapsed,
                    ttl=-view.staleness,
                    age=view.age,
                    detail="network-timeout" if failure.kind is FailureKind.DEADLINE else "stale-if-error",
                ),
            )
        return None

    def _serve(self, call: Call, entry: Entry, provenance: Provenance) -> Rendered:
        return self._renderer.render(
            entry, call.key.node_name, call.context, provenance, began_at=call.began_at, now=self._clock()
        )

    def _join(
        self, call: Call, deadline_at: float, *, began_after: float | None = None
    ) -> Joined[Landed | UpstreamFailure]:
        return self._flights.join(
            call.key, partial(self._fetch, call.key, call.policy, deadline_at), began_after=began_after
        )

    async def _fetch(self, key: PromptKey, policy: Policy, deadline_at: float) -> Landed | UpstreamFailure:
        """Fetch for all who wait, keep what is good, evict what is contradicted."""
        began_at = self._clock()
        known = self._cache.peek(key)
        old = known.document if known else None
        try:
            confirmed = await self._source.fetch(key, old, deadline_at)
            if hollowed(confirmed.document, old):
                raise UpstreamFailure(
                    FailureKind.BAD_DOCUMENT,
                    "the config service answered without any of the settings that it had before",
                )
        except UpstreamFailure as failure:
            kept = self._cache.peek(key)
            if failure.rule.evicts and kept is not None and kept.confirmed_at <= began_at:
                await self._cache.delete(key)
                self._observe(Evicted(self._nodes.label(key.node_name)))
            self._observe(FetchFailed(self._nodes.label(key.node_name), failure.kind, failure.detail))
            return failure
        self._nodes.confirm(key.node_name)
        entry = Entry.of(confirmed.document, confirmed.confirmed_at, self._rng.uniform(-1.0, 1.0), policy)
        keep_for = windows(policy, entry.document.stated_ttl, entry.spread).usable_for
        stored = (
            policy.strategy is not Strategy.NETWORK_ONLY and keep_for > 0 and may_replace(entry, self._cache.peek(key))
        )
        if stored:
            await self._cache.set(key, entry, keep_for)
        return Landed(entry, stored)


def _hit(view: View, action: Action, *, circuit_open: bool) -> Provenance:
    detail = None
    if view.state is not State.FRESH:
        if action is Action.SERVE_AND_REVALIDATE:
            detail = "stale-while-revalidate"
        elif circuit_open:
            detail = "stale-if-error"
        else:
            detail = "max-stale" if view.state is State.USABLE else "stale-while-revalidate"
    return Provenance(hit=True, ttl=-view.staleness, age=view.age, detail=detail)


def _why_forwarded(call: Call, view: View) -> Forward:
    """Name the reason for going forward (RFC 9211 §2.2)."""
    if view.strategy is Strategy.NETWORK_ONLY:
        return Forward.BYPASS
    if call.directives.no_cache:
        return Forward.REQUEST
    if view.state is State.ABSENT:
        return Forward.MISS
    return Forward.BYPASS if view.state is State.FRESH else Forward.STALE


def _unavailable(failure: UpstreamFailure, provenance: Provenance) -> PromptError:
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
        provenance=provenance,
    )
