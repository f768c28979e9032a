"""Answers: a prompt, a problem (RFC 9457), or the upstream's own word."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil, floor
from typing import Any

import msgspec
from aiohttp import web

from sidecar.core.cache_status import Provenance, cache_status
from sidecar.core.errors import PromptError
from sidecar.core.model import Rendered

_encoder = msgspec.json.Encoder()


def prompt_body(rendered: Rendered) -> bytes:
    """Encode `{"prompt", "used_placeholders"}`; a value that is no string stands there as its JSON text."""
    used: Mapping[str, Any] = rendered.used_placeholders
    for value in used.values():
        if type(value) is not str:
            used = {name: v if isinstance(v, str) else _encoder.encode(v).decode() for name, v in used.items()}
            break
    return _encoder.encode({"prompt": rendered.prompt, "used_placeholders": used})


def prompt_response(rendered: Rendered) -> web.Response:
    """Answer with a prompt, and say how it was made."""
    return web.Response(
        body=prompt_body(rendered),
        headers={"Content-Type": "application/json", **provenance_headers(rendered.provenance)},
    )


def provenance_headers(provenance: Provenance) -> dict[str, str]:
    """Return Cache-Status (RFC 9211) and Age (RFC 9111 §5.1)."""
    return {"Cache-Status": cache_status(provenance), "Age": str(max(0, floor(provenance.age)))}


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: object) -> web.Response:
    """Answer with `application/problem+json` (RFC 9457)."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return web.Response(
        status=status,
        body=_encoder.encode(body),
        headers={"Content-Type": "application/problem+json", **(headers or {})},
    )


def error_response(error: PromptError) -> web.Response:
    """Answer with a request's error: the upstream's own answer where it gave one, else a problem."""
    headers = {"Cache-Status": cache_status(error.provenance)}
    if error.answer is not None:
        return web.Response(
            status=error.answer.status,
            body=error.answer.body,
            headers={"Content-Type": error.answer.content_type, **headers},
        )
    if error.retry_after is not None:
        headers["Retry-After"] = str(ceil(error.retry_after))
    members = {"missing": list(error.missing)} if error.missing else {}
    return problem(error.status, error.detail, headers=headers, **members)
