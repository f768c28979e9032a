"""How a document is come by in each generation of the config service (contract §2)."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.errors import PromptError, UpstreamFailure
from sidecar.core.freshness import windows
from sidecar.core.model import Document, PromptKey, SettingsKey, UserSettings
from sidecar.core.prompt import CompiledTemplate
from sidecar.core.today import refused_values, template_not_found
from sidecar.service.ports import TemplateSet
from sidecar.service.resources import Diverted, Obtained, Resources, Terms

LARGEST_USER = 2**63 - 1
"""Today's service keeps users by a 64-bit number, and gives one beyond it no settings (recorded)."""
COMPOSED = 1024
"""Documents kept ready of template and settings that came apart; about 4 KB each."""
_NO_SETTINGS = Provenance(hit=True, detail="no-settings")


class Generation(StrEnum):
    """The generations, by the names of `upstream.api`."""

    PROMPT_DATA = "prompt-data"
    PLACEHOLDERS = "placeholders"
    PASSTHROUGH = "passthrough"


class Wanted(NamedTuple):
    """Whose prompt for which node; the request's own content, or None where only the static parts are asked for."""

    user_id: int
    node_name: str
    context: Mapping[str, Any] | None


class Ready(NamedTuple):
    """A document, and how it was come by."""

    document: Document
    provenance: Provenance
    required: frozenset[str]
    """What only a request can give."""
    fresh_for: float = 0.0
    """Seconds of freshness left."""


class Documents(Protocol):
    """Where a prompt's static parts come from, in one generation that renders here."""

    generation: Generation

    @property
    def resources(self) -> Resources[Any, Any]:
        """What is kept of them."""
        ...

    def key_for(self, user_id: int, node_name: str) -> Any:
        """Return what is kept for a user and a node (or, with an empty one, for all); None where nothing can be."""
        ...

    async def document(self, wanted: Wanted, terms: Terms) -> Ready:
        """Return the document; raises `PromptError`, or `Diverted`."""
        ...

    def instead(self, wanted: Wanted, terms: Terms, failure: UpstreamFailure, forward: Forward) -> Ready | None:
        """Return what is kept instead of what failed, if the policy allows it now."""
        ...

    async def renew(self, wanted: Wanted, terms: Terms) -> Document | None:
        """Return the document as the upstream has it now; None where it cannot be had."""
        ...

    def is_aging(self, wanted: Wanted, terms: Terms) -> bool:
        """Return whether what is kept, if anything, is past half of its use."""
        ...


class FromPromptData:
    """Template and settings together, by user and node."""

    generation = Generation.PROMPT_DATA

    def __init__(self, resources: Resources[PromptKey, Document], confirm: Callable[[str], None]) -> None:
        self.resources = resources
        self._confirm = confirm

    def key_for(self, user_id: int, node_name: str) -> PromptKey | None:
        """Return the document's key; there is none without a node."""
        return PromptKey(user_id, node_name) if node_name else None

    async def document(self, wanted: Wanted, terms: Terms) -> Ready:
        """Return the document; raises `PromptError`, or `Diverted`."""
        obtained = await self.resources.obtain(_document_key(wanted, terms), terms)
        self._confirm(wanted.node_name)
        return _ready(obtained, terms, obtained.entry.document, obtained.entry.document.required)

    def instead(self, wanted: Wanted, terms: Terms, failure: UpstreamFailure, forward: Forward) -> Ready | None:
        """Return what is kept instead of what failed, if the policy allows it now."""
        kept = self.resources.instead(_document_key(wanted, terms), terms, failure, forward)
        return None if kept is None else _ready(kept, terms, kept.entry.document, kept.entry.document.required)

    async def renew(self, wanted: Wanted, terms: Terms) -> Document | None:
        """Return the document as the upstream has it now; None where it cannot be had."""
        landed = await self.resources.refresh(_document_key(wanted, terms), terms)
        if isinstance(landed, UpstreamFailure):
            return None
        self._confirm(wanted.node_name)
        return landed.entry.document

    def is_aging(self, wanted: Wanted, terms: Terms) -> bool:
        """Return whether what is kept, if anything, is past half of its use."""
        return self.resources.is_aging(_document_key(wanted, terms), terms.policy)


class FromPlaceholders:
    """The settings of a user by one call for all nodes, the templates from the service's own file."""

    generation = Generation.PLACEHOLDERS

    def __init__(
        self, resources: Resources[SettingsKey, UserSettings], templates: TemplateSet, confirm: Callable[[str], None]
    ) -> None:
        self.resources = resources
        self._templates = templates
        self._confirm = confirm

    def key_for(self, user_id: int, node_name: str) -> SettingsKey | None:
        """Return the key of the user's settings, which serve all nodes that there is a template for."""
        try:
            known = not node_name or self._templates.find(node_name) is not None
        except UpstreamFailure:
            known = False  # the service renders it
        return SettingsKey(user_id) if known and user_id <= LARGEST_USER else None

    async def document(self, wanted: Wanted, terms: Terms) -> Ready:
        """Return the document; raises `PromptError`, or `Diverted`."""
        template = self._template(wanted.node_name)
        context = wanted.context
        if context is not None and (refused := refused_values(context)):
            raise PromptError(400, refused, reason="schema", provenance=Provenance(detail="request"))
        if _needs_nobody(wanted, template):
            return Ready(_compose(_NOBODY, template), _NO_SETTINGS, template.names)
        obtained = await self.resources.obtain(_settings_key(wanted, terms), terms)
        return _composed(obtained, terms, template)

    def instead(self, wanted: Wanted, terms: Terms, failure: UpstreamFailure, forward: Forward) -> Ready | None:
        """Return what is kept instead of what failed, if the policy allows it now."""
        try:
            template = self._template(wanted.node_name)
        except (PromptError, Diverted):
            return None
        if _needs_nobody(wanted, template):
            return Ready(_compose(_NOBODY, template), _NO_SETTINGS, template.names)
        kept = self.resources.instead(_settings_key(wanted, terms), terms, failure, forward)
        return None if kept is None else _composed(kept, terms, template)

    async def renew(self, wanted: Wanted, terms: Terms) -> Document | None:
        """Return the document as the upstream has it now; None where it cannot be had."""
        try:
            template = self._template(wanted.node_name)
        except (PromptError, Diverted):
            return None
        if _needs_nobody(wanted, template):
            return _compose(_NOBODY, template)
        landed = await self.resources.refresh(_settings_key(wanted, terms), terms)
        return None if isinstance(landed, UpstreamFailure) else _compose(landed.entry.document, template)

    def is_aging(self, wanted: Wanted, terms: Terms) -> bool:
        """Return whether what is kept, if anything, is past half of its use."""
        return self.resources.is_aging(_settings_key(wanted, terms), terms.policy)

    def _template(self, node_name: str) -> CompiledTemplate:
        try:
            template = self._templates.find(node_name)
        except UpstreamFailure as failure:
            raise Diverted(failure, Forward.BYPASS) from failure
        if template is None:
            raise PromptError(
                400, template_not_found(node_name), reason="unknown_node", provenance=Provenance(detail="request")
            )
        self._confirm(node_name)
        return template


_NOBODY = UserSettings({})


def _needs_nobody(wanted: Wanted, template: CompiledTemplate) -> bool:
    """Return whether the service reads no settings for this: the context has it all, or there can be no such user."""
    covered = wanted.context is not None and template.names <= wanted.context.keys()
    return covered or wanted.user_id > LARGEST_USER


def _document_key(wanted: Wanted, terms: Terms) -> PromptKey:
    return PromptKey(wanted.user_id, wanted.node_name, terms.credential.tag)


def _settings_key(wanted: Wanted, terms: Terms) -> SettingsKey:
    return SettingsKey(wanted.user_id, terms.credential.tag)


def _ready(obtained: Obtained[Any], terms: Terms, document: Document, required: frozenset[str]) -> Ready:
    entry, provenance = obtained
    ends_at = windows(terms.policy, entry.document.stated_ttl, entry.spread).fresh_for
    return Ready(document, provenance, required, max(0.0, ends_at - provenance.age))


def _composed(obtained: Obtained[UserSettings], terms: Terms, template: CompiledTemplate) -> Ready:
    settings = obtained.entry.document
    return _ready(obtained, terms, _compose(settings, template), template.names - settings.values.keys())


@lru_cache(maxsize=COMPOSED)
def _compose(settings: UserSettings, template: CompiledTemplate) -> Document:
    """Put together what came apart; the template's other variables are for the request to give, or stay empty."""
    return Document.of(template, settings.values, required=frozenset(), stated_ttl=None, etag=None)
