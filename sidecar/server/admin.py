"""Admin calls on the ops listener: on loopback, or with a token (contract §5)."""

import hmac
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from sidecar.server.body import BodyError, read_body
from sidecar.server.listener import Handler
from sidecar.server.responses import problem

MAX_BODY = 64 * 1024  # bytes
BODY_SECONDS = 5.0
PARITY = "/admin/parity"


class _Reset(msgspec.Struct, forbid_unknown_fields=True):
    """Which node is taken into service again; all that were taken back, where none is named."""

    reset: str | None


def admin_routes(
    reset_parity: Callable[[str | None], list[str]], *, is_loopback: bool, token_file: Path | None
) -> dict[tuple[str, str], Handler]:
    """Return the admin calls by method and path."""

    async def parity(request: web.BaseRequest) -> web.Response:
        try:
            body = await read_body(request, max_bytes=MAX_BODY, timeout_seconds=BODY_SECONDS)
            asked = msgspec.json.decode(body, type=_Reset)
        except BodyError as error:
            return problem(error.status, str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return problem(422, 'The body must be {"reset": NODE}, or {"reset": null} for all nodes.')
        return web.Response(
            body=msgspec.json.encode({"reset": reset_parity(asked.reset)}), content_type="application/json"
        )

    def guarded(handler: Handler) -> Handler:
        async def allowed(request: web.BaseRequest) -> web.StreamResponse:
            refusal = _refusal(request, is_loopback=is_loopback, token_file=token_file)
            return refusal or await handler(request)

        return allowed

    return {("POST", PARITY): guarded(parity)}


def _refusal(request: web.BaseRequest, *, is_loopback: bool, token_file: Path | None) -> web.Response | None:
    if token_file is None:
        if is_loopback:
            return None
        return problem(403, "Admin calls need ops.admin_token_file where ops.listen is not a loopback address.")
    try:
        token = token_file.read_text("utf-8").strip().encode()
    except (OSError, UnicodeDecodeError):
        return problem(503, "The file of ops.admin_token_file cannot be read.")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
    if not token or not hmac.compare_digest(given, token):
        return problem(401, "An admin call needs the token.", headers={"WWW-Authenticate": "Bearer"})
    return None
