"""What the service itself renders or serves: nothing of it is kept (contract §2, `passthrough`)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.service.ports import Generated
from sidecar.upstream.answers import bad, decoded
from sidecar.upstream.client import UpstreamClient, encode
from sidecar.upstream.guarded import Guard
from sidecar.upstream.prompt_data import PATH as PROMPT_DATA
from sidecar.upstream.prompt_data import PromptDataSource

PATH = "/api/v1/generate-prompt"
ENDPOINT = "generate-prompt"


class _Payload(msgspec.Struct):
    prompt: str
    used_placeholders: dict[str, str]


_decoder = msgspec.json.Decoder(_Payload)


class GeneratePromptService:
    """Calls whose answers are passed on, guarded."""

    def __init__(self, client: UpstreamClient, guard: Guard) -> None:
        self._client = client
        self._guard = guard
        self.has_room = guard.has_room

    async def generate(
        self,
        user_id: int,
        node_name: str,
        context: Mapping[str, Any],
        deadline_at: float,
        *,
        shadow: bool = False,
        authorization: str | None = None,
    ) -> Generated:
        """Have the service render, before `deadline_at`; raises `UpstreamFailure`."""
        try:
            body = encode({"user_id": user_id, "node_name": node_name, "context": context})
        except RecursionError as error:
            raise UpstreamFailure(
                FailureKind.REFUSED, "the request's context is nested too deeply to be passed on", status=422
            ) from error
        attempt = partial(self._ask, body, authorization)
        return (await self._guard.call(ENDPOINT, attempt, deadline_at, once=shadow)).document

    async def prompt_data(
        self, user_id: int, node_name: str, deadline_at: float, authorization: str | None = None
    ) -> Answer:
        """Bring a node's static parts as they are, whatever we think of them; raises `UpstreamFailure`."""
        body = encode({"user_id": user_id, "node_name": node_name})
        attempt = partial(self._client.post, PROMPT_DATA, body, authorization=authorization)
        response = (await self._guard.call(PromptDataSource.endpoint, attempt, deadline_at)).document
        return Answer(response.status, response.body, response.headers.get("Content-Type", "application/json"))

    async def _ask(self, body: bytes, authorization: str | None) -> Generated:
        response = await self._client.post(PATH, body, authorization=authorization)
        payload = decoded(_decoder, response.body)
        if not payload.prompt:
            raise bad("an empty prompt")
        return Generated(payload.prompt, payload.used_placeholders)
