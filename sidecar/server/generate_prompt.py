"""`POST /api/v1/generate-prompt`, exactly as the first generation answers it (contract §3)."""

from collections.abc import Callable

from aiohttp import hdrs, web

from sidecar.core.cache_status import Provenance
from sidecar.core.credential import NOBODY, Credential, Credentials
from sidecar.core.decision import NO_DIRECTIVES
from sidecar.core.errors import PromptError
from sidecar.core.events import Outcome, RequestOutcome
from sidecar.core.today import UNREADABLE_BODY
from sidecar.server.body import BodyError, BodyRoom, read_body
from sidecar.server.requests import (
    BadRequestError,
    PromptRequest,
    UnreadableBodyError,
    is_json,
    parse_cache_control,
    parse_prompt_request,
)
from sidecar.server.responses import PromptResponse, error_response
from sidecar.service.ports import Clock, Observer
from sidecar.service.prompts import PromptManager

PATH = "/api/v1/generate-prompt"


class Reader:
    """Read a request for a prompt or its parts, and refuse what is none."""

    def __init__(
        self,
        *,
        observer: Observer,
        clock: Clock,
        max_body: int,
        max_bodies: int,
        deadline: float,
        as_today: Callable[[], bool],
        credentials: Credentials | None = None,
    ) -> None:
        """`max_body`, `max_bodies`: bytes, of one, and of all that are being read.

        `as_today`: whether a body of another type, or none that is text, is refused as today's service does it;
        `credentials`: makes what a request's Authorization is known by; None: nobody reads it.
        """
        self._credentials = credentials
        self._observe = observer
        self._clock = clock
        self._max_body = max_body
        self._room = BodyRoom(max_bodies, observer)
        self._deadline = deadline
        self._as_today = as_today

    async def read(self, request: web.BaseRequest, began_at: float) -> tuple[PromptRequest, int] | web.Response:
        """Return what is asked, and how many bytes that took, or the refusal."""
        headers = request.headers
        try:
            content_type, is_encoded = headers.get(hdrs.CONTENT_TYPE), hdrs.CONTENT_ENCODING in headers
            if is_encoded or (content_type != "application/json" and not is_json(content_type)):
                status = 422 if self._as_today() and not is_encoded else 415
                raise BodyError(
                    status, "The body must be JSON (Content-Type: application/json), without Content-Encoding."
                )
            body = await read_body(request, max_bytes=self._max_body, timeout_seconds=self._deadline, room=self._room)
            return parse_prompt_request(body), len(body)
        except BodyError as error:
            reason = "overload" if error.status == 503 else "body"
            response = self._refuse(error.status, str(error), reason, began_at)
            response.force_close()  # the rest of the body is not read
            return response
        except UnreadableBodyError as error:
            if self._as_today():
                return self._refuse(400, UNREADABLE_BODY, "schema", began_at)
            return self._refuse(422, f"The request breaks the schema: {error}.", "schema", began_at)
        except BadRequestError as error:
            return self._refuse(422, f"The request breaks the schema: {error}.", "schema", began_at)

    def credential(self, request: web.BaseRequest, began_at: float) -> Credential | web.Response:
        """Return in whose name is asked, or the refusal where that is not clear."""
        if self._credentials is None:
            return NOBODY
        given = request.headers.getall("Authorization", [])
        if len(given) > 1 or not all(each.isascii() and each.isprintable() for each in given):
            return self._refuse(400, "The request must have one Authorization at most, of ASCII.", "schema", began_at)
        return self._credentials.of(given[0] if given else None)

    def _refuse(self, status: int, detail: str, reason: str, began_at: float) -> web.Response:
        seconds = self._clock() - began_at
        self._observe(RequestOutcome(None, Outcome.ERROR, seconds, 0.0, None, reason, status))
        retry_after = 1.0 if status == 503 else None
        provenance = Provenance(detail="request")
        return error_response(
            PromptError(status, detail, reason=reason, provenance=provenance, retry_after=retry_after)
        )


class GeneratePrompt:
    """Read a request, have it answered, say how."""

    def __init__(self, manager: PromptManager, reader: Reader, *, clock: Clock) -> None:
        self._manager = manager
        self._reader = reader
        self._clock = clock

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, inside the deadline that begins here."""
        began_at, rules = self._clock(), self._manager.rules
        read = await self._reader.read(request, began_at)
        if not isinstance(read, tuple):
            return read
        asked, weight = read
        credential = self._reader.credential(request, began_at)
        if not isinstance(credential, Credential):
            return credential
        cache_control = request.headers.get(hdrs.CACHE_CONTROL)
        try:
            rendered = await self._manager.get_rendered_prompt(
                asked.user_id,
                asked.node_name,
                asked.context,
                directives=NO_DIRECTIVES if cache_control is None else parse_cache_control(cache_control),
                began_at=began_at,
                rules=rules,
                weight=weight,
                credential=credential,
            )
        except PromptError as error:
            return error_response(error)
        return PromptResponse(rendered)
