"""The `prompt-data` generation: template and settings together, by user and node (contract §2)."""

from dataclasses import replace

import msgspec

from sidecar.core.errors import UpstreamFailure
from sidecar.core.model import Document, PromptKey
from sidecar.core.prompt import CompiledTemplate, RenderOptions, TemplateRejected, Undefined
from sidecar.upstream.answers import Exists, bad, decoded, endpoint_gone, may_be_no_endpoint, refused
from sidecar.upstream.client import UpstreamClient, encode
from sidecar.upstream.templates import Templates

PATH = "/api/v1/prompt-data"
GENERATION_OPTIONS = RenderOptions(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=Undefined.STRICT)
"""How the service renders where a document does not say: as it renders today, but nothing missing goes unseen."""


class _Render(msgspec.Struct):
    autoescape: bool | None = None
    trim_blocks: bool | None = None
    lstrip_blocks: bool | None = None
    undefined: Undefined | None = None


class _Payload(msgspec.Struct):
    """What is read of the answer; who it is for need not be said, but must be right where it is."""

    template: str
    user_placeholders: dict[str, str]
    required_dynamic_placeholders: list[str]
    cache_ttl: float | None
    render: _Render | None = None
    user_id: int | str | None = None
    node_name: str | None = None


_decoder = msgspec.json.Decoder(_Payload)


class PromptDataSource:
    """One call of `POST /api/v1/prompt-data`, unguarded."""

    endpoint = "prompt-data"

    def __init__(
        self,
        client: UpstreamClient,
        templates: Templates,
        *,
        autoescape: bool | None,
        undefined: Undefined | None,
        exists: Exists | None = None,
    ) -> None:
        """`exists`: asked where an answer may mean that not the node but the endpoint is missing."""
        self._client = client
        self._exists = exists
        self._templates = templates
        self._autoescape = autoescape
        self._undefined = undefined

    async def fetch(self, key: PromptKey, known: Document | None, authorization: str | None = None) -> Document:
        """Bring the document, or confirm the known one by its ETag; raises `UpstreamFailure`."""
        try:
            response = await self._client.post(
                PATH,
                encode({"user_id": key.user_id, "node_name": key.node_name}),
                if_none_match=known.etag if known else None,
                authorization=authorization,
            )
        except UpstreamFailure as failure:
            if self._exists is not None and may_be_no_endpoint(failure) and not await self._exists():
                raise endpoint_gone(failure, PATH) from failure
            raise
        if response.status == 304:
            assert known is not None
            return known
        return self.document(key, response.body, response.headers.get("ETag"))

    def document(self, key: PromptKey, body: bytes, etag: str | None) -> Document:
        """Read a document; raises `UpstreamFailure`."""
        payload = decoded(_decoder, body)
        if payload.user_id is not None and str(payload.user_id) != str(key.user_id):
            raise bad("the document of another user")
        if payload.node_name is not None and payload.node_name != key.node_name:
            raise bad("the document of another node")
        if not payload.template.strip():
            raise bad("an empty template")
        if payload.cache_ttl is not None and payload.cache_ttl < 0:
            raise bad("a negative cache_ttl")
        try:
            template = self._compile(payload.template, payload.render)
        except TemplateRejected as error:
            raise refused(error) from error
        return Document.of(
            template,
            payload.user_placeholders,
            required=frozenset(payload.required_dynamic_placeholders),
            stated_ttl=payload.cache_ttl,
            etag=etag,
        )

    def _compile(self, source: str, render: _Render | None) -> CompiledTemplate:
        """Compile with the document's options, the settings' word over the document's, the generation's under it."""
        stated = msgspec.structs.asdict(render) if render else {}
        ours = {"autoescape": self._autoescape, "undefined": self._undefined}
        said = {name: value for name, value in (*stated.items(), *ours.items()) if value is not None}
        return self._templates.get(source, replace(GENERATION_OPTIONS, **said))
