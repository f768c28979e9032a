"""PromptManager: one request's path through rollout, generation, policy and rendering; the library's public face."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.credential import NOBODY, Credential
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import Answer, FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import NotAdmitted, Outcome, RequestOutcome, Shed
from sidecar.core.model import Document, Entry, Rendered
from sidecar.core.policy import Policy
from sidecar.core.retry import Rng
from sidecar.core.rollout import RolloutRule, includes
from sidecar.service.background import Background
from sidecar.service.detection import Selection
from sidecar.service.generations import Documents, Generation, Ready, Wanted
from sidecar.service.ports import Cache, Clock, Generated, Observer, PromptService
from sidecar.service.rendering import ConfirmedNodes, Renderer
from sidecar.service.resources import Diverted, Terms, overload, unavailable
from sidecar.service.shadow import Answered, Shadow, ShadowRule
from sidecar.service.trace import detached
from sidecar.service.waiting import Waiting
from sidecar.service.writes import Writes

NOT_ADMITTED_SECONDS = 60.0
"""How long a node whose template is not admitted goes to the service without being looked at again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a reload may change; a request keeps those that it began with."""

    policy_for: Callable[[str], Policy]
    deadline: float
    rollout: RolloutRule
    local_on_failure: bool
    """Whether a request outside the rollout is answered from here when the service does not answer it."""
    shadow: ShadowRule


class Call(NamedTuple):
    """One request while it is being answered."""

    wanted: Wanted
    terms: Terms
    rules: Rules

    @property
    def node(self) -> str:
        """The node that is asked for."""
        return self.wanted.node_name

    @property
    def context(self) -> Mapping[str, Any]:
        """The request's own content."""
        return self.wanted.context or {}


class PromptManager:
    """Answer with prompts rendered here, from static parts that the upstream served and the policy allows."""

    def __init__(
        self,
        *,
        selection: Selection,
        documents: Mapping[Generation, Documents],
        service: PromptService,
        cache: Cache,
        writes: Writes,
        nodes: ConfirmedNodes,
        shadow: Shadow,
        rules: Rules,
        clock: Clock,
        rng: Rng,
        background: Background,
        observer: Observer,
        waiting: Waiting,
        max_nodes: int,
    ) -> None:
        self._selection = selection
        self._documents = documents
        self._service = service
        self._cache = cache
        self._writes = writes
        self._clock = clock
        self._rng = rng
        self._background = background
        self._observe = observer
        self._waiting = waiting
        self._nodes = nodes
        self._shadow = shadow
        self._max_nodes = max_nodes
        self._renderer = Renderer(clock=clock, observer=observer, nodes=nodes)
        self._not_admitted: dict[str, tuple[float, str]] = {}
        self._rules = rules
        self._straight = False
        selection.on_change(self._look_again)
        shadow.changed = self._look_again
        self._look_again()

    @property
    def rules(self) -> Rules:
        """What is in force for the requests that begin now."""
        return self._rules

    def adopt(self, rules: Rules) -> None:
        """Put other rules in force, for the requests that begin from now on."""
        self._rules = rules
        self._look_again()

    @property
    def not_admitted(self) -> Mapping[str, str]:
        """The nodes that are left to the service because their template is not admitted, with the reason."""
        now = self._clock()
        return {node: detail for node, (until, detail) in self._not_admitted.items() if until > now}

    def policy_for(self, node_name: str) -> Policy:
        """Return the policy that is in force for a node."""
        return self._rules.policy_for(node_name)

    async def documents_in_use(self) -> Documents | None:
        """Return where documents come from, None where the service renders by itself, or is not known yet."""
        if self._selection.current is None:
            await self._selection.settle(self._rules.deadline)
        return self._known_documents()

    def _look_again(self) -> None:
        """Note whether a request may be answered from the cache without a look at anything else: most may."""
        self._straight = (
            self._selection.current is Generation.PROMPT_DATA
            and self._rules.rollout.everyone
            and not self._shadow.set_aside
            and self._rules.shadow.sample_rate <= 0
        )

    async def get_rendered_prompt(
        self,
        user_id: int,
        node_name: str,
        dynamic_context: Mapping[str, Any],
        *,
        directives: Directives = NO_DIRECTIVES,
        began_at: float | None = None,
        rules: Rules | None = None,
        weight: int = 0,
        credential: Credential = NOBODY,
    ) -> Rendered:
        """Return the prompt of a user for a node, rendered with this request's own content.

        `began_at`: the clock's instant at which the request came; the deadline counts from there. `rules`: those that
        were in force then. `weight`: bytes that it holds while it waits. `credential`: in whose name the upstream is
        asked; nobody gets what was kept of another.
        Raises `PromptError`. Source: contract §3, §4.
        """
        now = self._clock()
        if began_at is None:
            began_at = now
        rules = self._rules if rules is None else rules
        policy = rules.policy_for(node_name)
        if self._straight and rules is self._rules:
            entry: Entry[Document] | None = self._cache.peek((user_id, node_name, credential.tag))
            if (
                entry is not None
                and now < entry.hit_until
                and entry.policy is policy
                and directives is NO_DIRECTIVES
                and not self._writes.is_void(user_id, entry.epoch)
            ):  # most requests: nothing to decide
                return self._renderer.render(
                    entry.document,
                    node_name,
                    dynamic_context,
                    Provenance(hit=True, ttl=entry.hit_until - now, age=now - entry.confirmed_at),
                    began_at=began_at,
                    now=now,
                )
        room = self._waiting.has_room
        terms = Terms(policy, directives, began_at, rules.deadline, self._nodes.label(node_name), room, credential)
        call = Call(Wanted(user_id, node_name, dynamic_context), terms, rules)
        why = self._bypassed(call)
        with self._waiting.one(weight):
            return await (self._locally(call) if why is None else self._pass_on(call, why))

    async def renders_here(self, timeout_seconds: float) -> bool:
        """Return whether static parts can be had of the generation in use; look first where nothing is known of it."""
        await self._selection.settle(timeout_seconds)
        return self._known_documents() is not None

    async def get_prompt_data(
        self,
        user_id: int,
        node_name: str,
        *,
        directives: Directives = NO_DIRECTIVES,
        began_at: float | None = None,
        rules: Rules | None = None,
        credential: Credential = NOBODY,
    ) -> Ready | Answer:
        """Return a node's static parts for one who renders by himself, or the service's own word on them.

        `began_at`, `rules`: as for a prompt. Raises `PromptError`. Source: contract §3.
        """
        began_at = self._clock() if began_at is None else began_at
        rules = self._rules if rules is None else rules
        policy, label = rules.policy_for(node_name), self._nodes.label(node_name)
        terms = Terms(policy, directives, began_at, rules.deadline, label, self._waiting.has_room, credential)
        call = Call(Wanted(user_id, node_name, None), terms, rules)
        with self._waiting.one(0):
            return await self._parts(call)

    async def _parts(self, call: Call) -> Ready | Answer:
        documents = await self._documents_in_use(call)
        if documents is None:
            none = UpstreamFailure(FailureKind.ENDPOINT_GONE, "the config service has no static parts")
            raise self._told(call, unavailable(none))
        try:
            ready = await documents.document(call.wanted, call.terms)
        except PromptError as error:
            raise self._told(call, error) from error
        except Diverted as diverted:
            if diverted.failure.kind is FailureKind.NOT_ADMITTED:
                return await self._their_parts(call, documents)
            if self._selection.current is not documents.generation:
                return await self._parts(call)
            ready = self._kept_parts(call, documents, diverted.failure, diverted.forward)
        self._renderer.tell(call.node, ready.provenance, began_at=call.terms.began_at)
        return ready

    async def _their_parts(self, call: Call, documents: Documents) -> Ready | Answer:
        """Pass on the parts that are not admitted here: who renders them himself may think otherwise."""
        try:
            answer = await self._service.prompt_data(
                call.wanted.user_id, call.node, call.terms.deadline_at, call.terms.credential.authorization
            )
        except UpstreamFailure as failure:
            ready = self._kept_parts(call, documents, failure, Forward.BYPASS)
            self._renderer.tell(call.node, ready.provenance, began_at=call.terms.began_at)
            return ready
        provenance = Provenance(forward=Forward.BYPASS, detail="not-admitted")
        self._renderer.tell(call.node, provenance, began_at=call.terms.began_at)
        return answer

    def _kept_parts(self, call: Call, documents: Documents, failure: UpstreamFailure, forward: Forward) -> Ready:
        """Return what is kept instead of what failed, if the policy allows it."""
        ready = documents.instead(call.wanted, call.terms, failure, forward)
        if ready is None:
            detail = failure.kind.value.replace("_", "-")
            provenance = Provenance(forward=forward, forward_status=failure.status, detail=detail)
            raise self._told(call, unavailable(failure, provenance)) from failure
        return ready

    def _bypassed(self, call: Call) -> str | None:
        """Return why a request is left to the service's own rendering, or None."""
        if not call.rules.rollout.everyone and not includes(call.rules.rollout, call.wanted.user_id, call.node):
            return "rollout"
        if self._shadow.holds_back(call.node):
            return "parity"
        refused = self._not_admitted.get(call.node)
        if refused is not None and self._clock() < refused[0]:
            return "not-admitted"
        return None

    async def _documents_in_use(self, call: Call) -> Documents | None:
        """Return where documents come from, None where the service renders (or nothing is known of it)."""
        if self._selection.current is None and call.terms.may_wait:
            await self._selection.settle(call.terms.deadline_at - self._clock())
        return self._known_documents()

    def _known_documents(self) -> Documents | None:
        return None if self._selection.current is None else self._documents.get(self._selection.current)

    async def _locally(self, call: Call) -> Rendered:
        """Answer from static parts: those at hand, or those that the upstream serves now."""
        documents = await self._documents_in_use(call)
        if documents is None:
            return await self._pass_on(call, "passthrough" if self._selection.current else "undetected")
        try:
            ready = await documents.document(call.wanted, call.terms)
        except PromptError as error:
            raise self._told(call, error) from error
        except Diverted as diverted:
            return await self._divert(call, documents, diverted)
        return self._serve(call, documents, ready)

    async def _divert(self, call: Call, documents: Documents, diverted: Diverted) -> Rendered:
        """Go the other way: the service's own rendering, or the generation that was found in its place."""
        if diverted.failure.kind is FailureKind.NOT_ADMITTED:
            return await self._not_rendered_here(call, documents, diverted)
        if self._selection.current is not documents.generation:
            return await self._locally(call)
        return await self._without_endpoint(call, documents, diverted)

    async def _without_endpoint(self, call: Call, documents: Documents, diverted: Diverted) -> Rendered:
        """Try what every generation has, if the endpoint is gone and nothing tells which generation is here now."""
        try:
            return await self._by_the_service(call, "endpoint-gone")
        except UpstreamFailure as failure:
            if not failure.rule.stale and failure.status not in {404, 405}:  # the service's own word on what was asked
                provenance = Provenance(forward=diverted.forward, forward_status=failure.status, detail="endpoint-gone")
                raise self._told(call, unavailable(failure, provenance)) from failure
            return self._instead(call, documents, diverted.failure, diverted.forward)

    async def _not_rendered_here(self, call: Call, documents: Documents, diverted: Diverted) -> Rendered:
        """Leave a template that is not admitted to the service; if that does not answer, to what the policy allows."""
        self._set_apart(call.node, diverted.failure.detail)
        try:
            return await self._by_the_service(call, "not-admitted")
        except UpstreamFailure as failure:
            self._recheck(call.node)
            if not failure.rule.stale:
                provenance = Provenance(forward=diverted.forward, forward_status=failure.status, detail="not-admitted")
                raise self._told(call, unavailable(failure, provenance)) from failure
            says_more = diverted.failure if failure.rule.status == 502 else failure
            return self._instead(call, documents, says_more, diverted.forward)

    def _set_apart(self, node: str, detail: str) -> None:
        known = self._not_admitted.pop(node, None)
        if known is None or known[1] != detail:
            self._nodes.confirm(node)
            self._observe(NotAdmitted(node, detail))
        if len(self._not_admitted) >= self._max_nodes:
            self._not_admitted.pop(next(iter(self._not_admitted)))
        self._not_admitted[node] = (self._clock() + NOT_ADMITTED_SECONDS, detail)

    def _recheck(self, node: str) -> None:
        """Have the next request look again at a node that was set apart; what was warned of stays known."""
        known = self._not_admitted.get(node)
        if known is not None:
            self._not_admitted[node] = (self._clock(), known[1])

    def _instead(self, call: Call, documents: Documents, failure: UpstreamFailure, forward: Forward) -> Rendered:
        """Serve what is kept instead of what failed, if the policy allows it."""
        ready = self._kept_parts(call, documents, failure, forward)
        return self._serve(call, documents, ready, shadow=False)

    async def _pass_on(self, call: Call, why: str) -> Rendered:
        """Have the service render, or do what is to be done when it does not."""
        try:
            return await self._by_the_service(call, why)
        except UpstreamFailure as failure:
            if failure.rule.stale and why == "not-admitted":
                self._recheck(call.node)
                return await self._locally(call)  # by now its template may be another
            documents = self._known_documents()
            if failure.rule.stale and why == "rollout" and call.rules.local_on_failure and documents is not None:
                return self._instead(call, documents, failure, Forward.BYPASS)
            provenance = Provenance(forward=Forward.BYPASS, forward_status=failure.status, detail=why)
            raise self._told(call, unavailable(failure, provenance)) from failure

    async def _by_the_service(self, call: Call, why: str) -> Rendered:
        """Have the service render; nothing of the answer is kept. Raises `UpstreamFailure`."""
        wanted, terms = call.wanted, call.terms
        if not terms.may_wait:
            raise overload()
        if terms.directives.only_if_cached:
            detail = "Nothing is cached of what the service renders itself, and the request says only-if-cached."
            provenance = Provenance(detail="only-if-cached")
            raise self._told(call, PromptError(504, detail, reason="not_cached", provenance=provenance))
        generated = await self._service.generate(
            wanted.user_id,
            wanted.node_name,
            call.context,
            terms.deadline_at,
            authorization=terms.credential.authorization,
        )
        self._nodes.confirm(wanted.node_name)
        self._after_bypass(call, why, generated)
        provenance = Provenance(forward=Forward.BYPASS, detail=why)
        self._renderer.tell(call.node, provenance, began_at=terms.began_at)
        return Rendered(generated.prompt, generated.used_placeholders, provenance)

    def _serve(self, call: Call, documents: Documents, ready: Ready, *, shadow: bool = True) -> Rendered:
        terms = call.terms
        rendered = self._renderer.render(
            ready.document, call.node, call.context, ready.provenance, began_at=terms.began_at, now=self._clock()
        )
        if shadow and self._sampled(call):
            self._shadow.consider(Answered(call.wanted, terms, documents), call.rules.shadow, ours=ready.document)
        return rendered

    def _sampled(self, call: Call) -> bool:
        """Return whether this one is compared: by chance, and only where the service takes the context at all."""
        rate = call.rules.shadow.sample_rate
        return rate > 0 and self._rng.uniform(0.0, 1.0) < rate and all(type(v) is str for v in call.context.values())

    def _after_bypass(self, call: Call, why: str, generated: Generated) -> None:
        """Compare what the service rendered with what we would have; keep the static parts at hand for an outage."""
        documents = self._known_documents()
        if documents is None or why not in {"rollout", "parity"}:
            return
        if self._sampled(call) or self._shadow.must_check(call.node):
            answered = Answered(call.wanted, call.terms, documents)
            self._shadow.consider(answered, call.rules.shadow, theirs=generated)
        elif call.rules.local_on_failure and documents.is_aging(call.wanted, call.terms) and self._service.has_room():
            terms = call.terms._replace(began_at=self._clock())
            with detached():
                self._background.spawn(documents.renew(call.wanted, terms), name="keep-warm")

    def _told(self, call: Call, error: PromptError) -> PromptError:
        """Tell of a request that ends without a prompt."""
        if error.reason == FailureKind.OVERLOAD.value:
            self._observe(Shed("waiting"))
        seconds = self._clock() - call.terms.began_at
        node = self._nodes.label(call.node)
        self._observe(RequestOutcome(node, Outcome.ERROR, seconds, 0.0, None, error.reason, error.status))
        return error
