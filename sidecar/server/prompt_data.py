"""`POST /api/v1/prompt-data`, for a LearnFlow that renders by itself (contract §3)."""

import asyncio
import hashlib
from typing import Any

import msgspec
from aiohttp import web

from sidecar.core.cache_status import Forward, Provenance, cache_status
from sidecar.core.errors import Answer, PromptError
from sidecar.server.generate_prompt import Reader
from sidecar.server.listener import Handler
from sidecar.server.requests import parse_cache_control
from sidecar.server.responses import age_seconds, error_response, problem
from sidecar.service.generations import Ready
from sidecar.service.ports import Clock
from sidecar.service.prompts import PromptManager

PATH = "/api/v1/prompt-data"
_encoder = msgspec.json.Encoder()
_THEIRS = Provenance(forward=Forward.BYPASS, detail="not-admitted")


class PromptData:
    """Answer with template and settings, from the cache; where only the service has any, pass the request on."""

    def __init__(
        self, manager: PromptManager, reader: Reader, proxy: Handler, *, clock: Clock, deadline: float
    ) -> None:
        self._manager = manager
        self._reader = reader
        self._proxy = proxy
        self._clock = clock
        self._deadline = deadline

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, inside the deadline that begins here."""
        began_at, rules = self._clock(), self._manager.rules
        if not await self._manager.renders_here(self._deadline):
            return await self._passed_on(request, began_at)
        read = await self._reader.read(request, began_at)
        if isinstance(read, web.Response):
            return read
        asked, _ = read
        credential = self._reader.credential(request, began_at)
        if isinstance(credential, web.Response):
            return credential
        try:
            found = await self._manager.get_prompt_data(
                asked.user_id,
                asked.node_name,
                directives=parse_cache_control(request.headers.get("Cache-Control")),
                began_at=began_at,
                rules=rules,
                credential=credential,
            )
        except PromptError as error:
            if error.reason == "unknown_node":
                error.status = 404  # today's service says 400; this API says 404 (contract §2)
            return error_response(error)
        if isinstance(found, Answer):
            headers = {"Content-Type": found.content_type, "Cache-Status": cache_status(_THEIRS)}
            return web.Response(status=found.status, body=found.body, headers=headers)
        return _response(request, found)

    async def _passed_on(self, request: web.BaseRequest, began_at: float) -> web.StreamResponse:
        """Pass a request on, inside the same deadline as any other for a prompt's parts."""
        left = began_at + self._deadline * 0.95 - self._clock()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await self._proxy(request)
        except TimeoutError:
            if request.writer.output_size > 0:
                raise ConnectionError("an answer was begun already") from None
            response = problem(504, "The config service did not answer in time.")
            response.force_close()  # its body may not be read
            return response


def _response(request: web.BaseRequest, ready: Ready) -> web.Response:
    document, provenance = ready.document, ready.provenance
    options = document.template.options
    known: dict[str, Any] = {
        "template": document.template.source,
        "user_placeholders": document.settings,
        "required_dynamic_placeholders": sorted(ready.required),
        "render": {
            "autoescape": options.autoescape,
            "trim_blocks": options.trim_blocks,
            "lstrip_blocks": options.lstrip_blocks,
            "undefined": options.undefined.value,
        },
    }
    etag = f'"{hashlib.sha256(_encoder.encode(known)).hexdigest()[:32]}"'
    headers = {
        "Content-Type": "application/json",
        "Cache-Status": cache_status(provenance),
        "Age": str(age_seconds(provenance)),
        "ETag": etag,
    }
    if etag in {each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")}:
        return web.Response(status=304, headers=headers)
    # What is left of its life: kept for as long again, it would be used for longer than the policy allows.
    return web.Response(body=_encoder.encode({**known, "cache_ttl": int(ready.fresh_for)}), headers=headers)
