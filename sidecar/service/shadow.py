"""Shadow: compare the service's own answer with ours, off the request path; take a node back where they differ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sidecar.core.errors import PromptError, UpstreamFailure
from sidecar.core.events import ParityChecked, RolledBack
from sidecar.core.model import Document
from sidecar.core.parity import Difference, MismatchWindow, compare
from sidecar.core.prompt import RenderFailed
from sidecar.service.background import Background
from sidecar.service.generations import Documents, Wanted
from sidecar.service.ports import Clock, Generated, Observer, PromptService
from sidecar.service.rendering import fill_in
from sidecar.service.resources import Diverted, Terms
from sidecar.service.trace import detached

RECHECK_SECONDS = 10.0
"""A node that was taken back is looked at this often at least, while it is asked for: its template may have changed."""
NOT_RENDERED = Difference("error", 0, 0, 0)
"""One side answers with a prompt, the other with an error."""


class ShadowRule(NamedTuple):
    """How much is compared, and how many differences are too many."""

    sample_rate: float  # 0 to 1
    max_in_flight: int
    max_mismatches: int
    window: float  # seconds


class Answered(NamedTuple):
    """A request that was answered: what for, on what terms, and where our static parts come from."""

    wanted: Wanted
    terms: Terms
    documents: Documents


class _SetAside(NamedTuple):
    template: str  # the digest that differed
    checked_at: float


class Shadow:
    """Compares some of what is answered, either way round, and keeps the list of nodes that were taken back."""

    def __init__(
        self,
        service: PromptService,
        *,
        label: Callable[[str], str | None],
        background: Background,
        clock: Clock,
        observer: Observer,
        max_nodes: int,
    ) -> None:
        self._service = service
        self._label = label
        self._background = background
        self._clock = clock
        self._observe = observer
        self._max_nodes = max_nodes
        self._windows: dict[str, tuple[ShadowRule, MismatchWindow]] = {}
        self._set_aside: dict[str, _SetAside] = {}
        self._in_flight = 0
        self.changed: Callable[[], None] = lambda: None

    @property
    def set_aside(self) -> Mapping[str, str]:
        """The nodes that were taken back, each with the digest of the template that differed."""
        return {node: each.template for node, each in self._set_aside.items()}

    def holds_back(self, node: str) -> bool:
        """Return whether the node was taken back."""
        return node in self._set_aside

    def reset(self, node: str | None = None) -> list[str]:
        """Take a node, or all, into service again because a person says so; return which."""
        nodes = [each for each in self._set_aside if node in {None, each}]
        for each in nodes:
            self._restore(each, "reset")
        return nodes

    def must_check(self, node: str) -> bool:
        """Return whether a node that was taken back is due to be looked at again."""
        aside = self._set_aside.get(node)
        if aside is None or self._clock() < aside.checked_at + RECHECK_SECONDS:
            return False
        self._set_aside[node] = aside._replace(checked_at=self._clock())
        return True

    def consider(
        self, answered: Answered, rule: ShadowRule, *, ours: Document | None = None, theirs: Generated | None = None
    ) -> None:
        """Compare behind an answer: the document that it was made from, or what the service rendered, is given.

        First to stop under load: nothing is compared while the circuit is not closed, the bulkhead is half full or
        enough comparisons are under way.
        """
        node = answered.wanted.node_name
        if self._in_flight >= rule.max_in_flight or not self._service.has_room():
            self._observe(ParityChecked(self._label(node), "skipped"))
            return
        self._in_flight += 1
        with detached():
            self._background.spawn(self._check(answered, rule, ours, theirs), name="shadow")

    async def _check(
        self, answered: Answered, rule: ShadowRule, ours: Document | None, theirs: Generated | None
    ) -> None:
        try:
            result, difference, document = await self._compared(answered, ours, theirs)
        except (UpstreamFailure, PromptError, TimeoutError):
            result, difference, document = "failed", None, None
        finally:
            self._in_flight -= 1
        node = answered.wanted.node_name
        digest = document.template.digest if document else None
        event = ParityChecked(self._label(node), result, digest[:12] if digest else None)
        if difference is not None:
            event = event._replace(**difference._asdict())
        self._observe(event)
        aside = self._set_aside.get(node)
        if digest is not None and aside is not None and aside.template != digest:
            self._restore(node, "template changed")
        if result == "mismatch" and digest is not None:
            self._count(node, digest, rule)

    async def _compared(
        self, answered: Answered, ours: Document | None, theirs: Generated | None
    ) -> tuple[str, Difference | None, Document | None]:
        """Compare; what differs is looked at again with the newest of both, for a setting may just have changed."""
        wanted, terms, documents = answered
        terms = terms._replace(began_at=self._clock())
        document = ours
        if document is None:
            document = await self._made_here(wanted, terms, documents)
        if document is None:
            return "failed", None, None
        if theirs is None:
            theirs = await self._ask(wanted, terms)
        if _difference(document, wanted, theirs) is None:
            return "match", None, document
        newest = await documents.renew(wanted, terms)
        if newest is None:
            return "failed", None, document
        difference = _difference(newest, wanted, await self._ask(wanted, terms))
        return ("outdated" if difference is None else "mismatch"), difference, newest

    async def _made_here(self, wanted: Wanted, terms: Terms, documents: Documents) -> Document | None:
        """Return the document that an answer from here would be made of; of a node taken back the newest one."""
        if self.holds_back(wanted.node_name):
            return await documents.renew(wanted, terms)  # its template may have changed, whatever is still fresh here
        try:
            return (await documents.document(wanted, terms)).document
        except Diverted:
            return None

    async def _ask(self, wanted: Wanted, terms: Terms) -> Generated | None:
        """Return what the service renders, None where it refuses; raises `UpstreamFailure` where it does not answer."""
        try:
            return await self._service.generate(
                wanted.user_id,
                wanted.node_name,
                wanted.context or {},
                terms.deadline_at,
                shadow=True,
                authorization=terms.credential.authorization,
            )
        except UpstreamFailure as failure:
            if failure.rule.status is None:
                return None
            raise

    def _count(self, node: str, digest: str, rule: ShadowRule) -> None:
        kept_rule, window = self._windows.get(node, (None, None))
        if window is None or kept_rule != rule:
            if len(self._windows) >= self._max_nodes:
                self._windows.pop(next(iter(self._windows)))
            window = MismatchWindow(rule.max_mismatches, rule.window)
            self._windows[node] = (rule, window)
        if window.add(self._clock()) and node not in self._set_aside:
            self._set_aside[node] = _SetAside(digest, self._clock())
            self._observe(RolledBack(node, back=True, reason="parity"))
            self.changed()

    def _restore(self, node: str, reason: str) -> None:
        del self._set_aside[node]
        self._windows.pop(node, None)
        self._observe(RolledBack(node, back=False, reason=reason))
        self.changed()


def _difference(document: Document, wanted: Wanted, theirs: Generated | None) -> Difference | None:
    context: Mapping[str, Any] = wanted.context or {}
    ours = None
    if all(context.get(name) is not None for name in document.required):
        try:
            prompt, used, _ = fill_in(document, context)
            ours = (prompt, used)
        except RenderFailed:
            pass
    if ours is None or theirs is None:
        return None if ours is theirs else NOT_RENDERED
    return compare(ours, (theirs.prompt, theirs.used_placeholders))
