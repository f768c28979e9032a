"""`POST /api/v1/generate-prompt`, exactly as the first generation answers it (contract §3)."""

from aiohttp import web

from sidecar.core.cache_status import Provenance
from sidecar.core.decision import NO_DIRECTIVES
from sidecar.core.errors import PromptError
from sidecar.core.events import Outcome, RequestOutcome
from sidecar.server.body import BodyError, read_body
from sidecar.server.requests import BadRequestError, is_json, parse_cache_control, parse_prompt_request
from sidecar.server.responses import PromptResponse, error_response
from sidecar.service.ports import Clock, Observer
from sidecar.service.prompts import PromptManager

PATH = "/api/v1/generate-prompt"


class GeneratePrompt:
    """Read a request, have it answered, say how."""

    def __init__(
        self, manager: PromptManager, *, observer: Observer, clock: Clock, max_body: int, deadline: float
    ) -> None:
        self._manager = manager
        self._observe = observer
        self._clock = clock
        self._max_body = max_body
        self._deadline = deadline

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, inside the deadline that begins here."""
        began_at = self._clock()
        headers = request.headers
        try:
            content_type = headers.get("Content-Type")
            if (content_type != "application/json" and not is_json(content_type)) or "Content-Encoding" in headers:
                raise BodyError(
                    415, "The body must be JSON (Content-Type: application/json), without Content-Encoding."
                )
            body = await read_body(request, max_bytes=self._max_body, timeout_seconds=self._deadline)
            asked = parse_prompt_request(body)
        except (BodyError, BadRequestError) as error:
            return self._refuse(error, began_at)
        cache_control = headers.get("Cache-Control")
        try:
            rendered = await self._manager.get_rendered_prompt(
                asked.user_id,
                asked.node_name,
                asked.context,
                directives=NO_DIRECTIVES if cache_control is None else parse_cache_control(cache_control),
                began_at=began_at,
            )
        except PromptError as error:
            return error_response(error)
        return PromptResponse(rendered)

    def _refuse(self, error: BodyError | BadRequestError, began_at: float) -> web.Response:
        if isinstance(error, BodyError):
            status, detail, reason = error.status, str(error), "body"
        else:
            status, detail, reason = 422, f"The request breaks the schema: {error}.", "schema"
        seconds = self._clock() - began_at
        self._observe(RequestOutcome(None, Outcome.ERROR, seconds, 0.0, None, reason, status))
        response = error_response(PromptError(status, detail, reason=reason, provenance=Provenance(detail="request")))
        if isinstance(error, BodyError):
            response.force_close()  # the rest of the body is not read
        return response
