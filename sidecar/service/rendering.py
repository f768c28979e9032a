"""An entry and a request's own content → a prompt, or the names of what is missing."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.errors import PromptError
from sidecar.core.events import NotRendered, Outcome, RenderedEmpty, RequestOutcome
from sidecar.core.model import Entry, Rendered
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


class Renderer:
    """Render, and tell how each request for a prompt that got this far has ended."""

    def __init__(self, *, clock: Clock, observer: Observer, nodes: ConfirmedNodes) -> None:
        self._clock = clock
        self._observe = observer
        self._nodes = nodes

    def render(
        self, entry: Entry, node: str, context: Mapping[str, Any], provenance: Provenance, began_at: float
    ) -> Rendered:
        """Return the prompt; raises `PromptError` 422 where something is missing or cannot be rendered."""
        rendering_at = self._clock()
        document = entry.document
        if document.required:
            missing = [name for name in document.required if context.get(name) is None]
            if missing:
                raise self._refusal(node, "required", began_at, missing=tuple(sorted(missing)))
        try:
            prompt = document.template.render(document.static, context)
        except UndefinedNames as failure:
            raise self._refusal(node, failure.reason, began_at, missing=failure.missing) from failure
        except RenderFailed as failure:
            raise self._refusal(node, failure.reason, began_at, because=str(failure)) from failure
        used: dict[str, str] = {**document.used, **context}
        for name, value in context.items():
            if type(value) is not str:
                used[name] = msgspec.json.encode(value).decode()
        if document.template.options.undefined is Undefined.EMPTY:
            empty = document.template.names - used.keys()
            if empty:
                self._observe(RenderedEmpty(self._nodes.label(node), tuple(sorted(empty))))
                used.update(dict.fromkeys(empty, ""))
        now = self._clock()
        self._observe(
            RequestOutcome(
                self._nodes.label(node),
                _outcome(provenance),
                now - began_at,
                now - rendering_at,
                provenance.age,
                provenance.detail,
                200,
            )
        )
        return Rendered(prompt, used, provenance)

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


def _outcome(p: Provenance) -> Outcome:
    if p.ttl is not None:
        return Outcome.FRESH if p.ttl > 0 else Outcome.STALE
    return Outcome.BYPASS if p.forward is Forward.BYPASS else Outcome.MISS
