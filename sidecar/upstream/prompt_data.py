"""The `prompt-data` generation: template and settings together, by user and node (contract §2)."""

from dataclasses import replace

import msgspec

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.model import Document, PromptKey
from sidecar.core.prompt import CompiledTemplate, RenderOptions, TemplateRejected, Undefined
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
    template: str
    user_placeholders: dict[str, str]
    required_dynamic_placeholders: list[str]
    cache_ttl: float | None
    render: _Render | None = None


_decoder = msgspec.json.Decoder(_Payload)


class PromptDataSource:
    """One call of `POST /api/v1/prompt-data`, unguarded."""

    endpoint = "prompt-data"

    def __init__(
        self, client: UpstreamClient, templates: Templates, *, autoescape: bool | None, undefined: Undefined | None
    ) -> None:
        self._client = client
        self._templates = templates
        self._autoescape = autoescape
        self._undefined = undefined

    async def fetch(self, key: PromptKey, known: Document | None) -> Document:
        """Bring the document, or confirm the known one by its ETag; raises `UpstreamFailure`."""
        response = await self._client.post(
            PATH,
            encode({"user_id": key.user_id, "node_name": key.node_name}),
            if_none_match=known.etag if known else None,
        )
        if response.status == 304:
            assert known is not None
            return known
        return self._document(response.body, response.headers.get("ETag"))

    def _document(self, body: bytes, etag: str | None) -> Document:
        payload = _decode(body)
        if not payload.template.strip():
            raise _bad("an empty template")
        if payload.cache_ttl is not None and payload.cache_ttl < 0:
            raise _bad("a negative cache_ttl")
        try:
            template = self._compile(payload.template, payload.render)
        except TemplateRejected as error:
            raise _bad(f"a template that is not admitted ({error})") from error
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


def _decode(body: bytes) -> _Payload:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _bad(f"JSON of the wrong shape ({error})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamFailure(FailureKind.GARBAGE, "the config service answered with what is not JSON") from error


def _bad(what: str) -> UpstreamFailure:
    return UpstreamFailure(FailureKind.BAD_DOCUMENT, f"the config service answered with {what}")
