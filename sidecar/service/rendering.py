"""A document and a request's own content → a prompt, or the names of what is missing."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.errors import PromptError
from sidecar.core.events import FreshHit, NotRendered, Outcome, RenderedEmpty, RequestOutcome
from sidecar.core.model import Document, Rendered
from sidecar.core.prompt import RenderFailed, Undefined, UndefinedNames
from sidecar.service.ports import Clock, Observer


class ConfirmedNodes:
    """The nodes that the upstream confirmed, as far as telemetry may name them."""

    def __init__(self, max_nodes: int) -> None:
        self._nodes: dict[str, str] = {}
        self._max_nodes = max_nodes

    def confirm(self, node: str) -> None:
        """Note a node for which the upstream had a document."""
        if len(self._nodes) < self._max_nodes:
            self._nodes[node] = node

    def label(self, node: str) -> str | None:
        """Return the node's name if it is confirmed (and the set was not full by then), else None."""
        return self._nodes.get(node)


def fill_in(document: Document, context: Mapping[str, Any]) -> tuple[str, dict[str, str], frozenset[str]]:
    """Return the prompt, the placeholders used, and the names that became nothing; raises `RenderFailed`."""
    prompt = document.template.render(document.static, context)
    used: dict[str, str] = {**document.used, **context}
    for name, value in context.items():
        if type(value) is not str:
            used[name] = msgspec.json.encode(value).decode()
    empty: frozenset[str] = frozenset()
    if document.template.options.undefined is Undefined.EMPTY:
        empty = document.template.names - used.keys()
        if empty:
            used.update(dict.fromkeys(empty, ""))
    return prompt, used, empty


class Renderer:
    """Render, and tell how each request for a prompt that got this far has ended."""

    def __init__(self, *, clock: Clock, observer: Observer, nodes: ConfirmedNodes) -> None:
        self._clock = clock
        self._observe = observer
        self._nodes = nodes

    def render(
        self,
        document: Document,
        node: str,
        context: Mapping[str, Any],
        provenance: Provenance,
        *,
        began_at: float,
        now: float,
    ) -> Rendered:
        """Return the prompt; raises `PromptError` 422 where something is missing or cannot be rendered.

        `began_at`: when the request came; `now`: the present instant.
        """
        for name in document.required:
            if context.get(name) is None:
                missing = tuple(sorted(name for name in document.required if context.get(name) is None))
                raise self._refusal(node, "required", began_at, missing=missing)
        try:
            prompt, used, empty = fill_in(document, context)
        except UndefinedNames as failure:
            raise self._refusal(node, failure.reason, began_at, missing=failure.missing) from failure
        except RenderFailed as failure:
            raise self._refusal(node, failure.reason, began_at, because=str(failure)) from failure
        if empty:
            self._observe(RenderedEmpty(self._nodes.label(node), tuple(sorted(empty))))
        self.tell(node, provenance, began_at=began_at, render_at=now)
        return Rendered(prompt, used, provenance)

    def tell(self, node: str, provenance: Provenance, *, began_at: float, render_at: float | None = None) -> None:
        """Tell of a prompt that was made; `render_at`: the instant before it was, if it was made here."""
        done_at = self._clock()
        ttl = provenance.ttl
        if ttl is not None:
            outcome = Outcome.FRESH if ttl > 0 else Outcome.STALE
        elif provenance.hit:
            outcome = Outcome.FRESH  # from templates alone
        else:
            outcome = Outcome.BYPASS if provenance.forward is Forward.BYPASS else Outcome.MISS
        event = FreshHit if provenance.hit and outcome is Outcome.FRESH else RequestOutcome
        self._observe(
            event(
                self._nodes.label(node),
                outcome,
                done_at - began_at,
                None if render_at is None else done_at - render_at,
                provenance.age,
                provenance.detail,
                200,
                None if provenance.usable_for is None else done_at + provenance.usable_for,
            )
        )

    def _refusal(
        self, node: str, reason: str, began_at: float, *, missing: tuple[str, ...] = (), because: str = ""
    ) -> PromptError:
        self._observe(NotRendered(self._nodes.label(node), reason))
        seconds = self._clock() - began_at
        self._observe(RequestOutcome(self._nodes.label(node), Outcome.ERROR, seconds, 0.0, None, reason, 422))
        if missing:
            detail = f"The template needs what the request's context does not give: {', '.join(missing)}."
        else:
            detail = f"The prompt cannot be rendered with this content: {because}."
        return PromptError(422, detail, reason=reason, missing=missing, provenance=Provenance(detail="render"))
