"""What an answer of the config service can be that is no document."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.prompt import TemplateRejected

T = TypeVar("T")
Exists = Callable[[], Awaitable[bool | None]]
"""Look whether the service has an endpoint; None: it does not say."""


def bad(what: str) -> UpstreamFailure:
    """Return the failure that a document of the wrong content is."""
    return UpstreamFailure(FailureKind.BAD_DOCUMENT, f"the config service answered with {what}")


def not_json() -> UpstreamFailure:
    """Return the failure that an answer is which cannot be read at all."""
    return UpstreamFailure(FailureKind.GARBAGE, "the config service answered with what is not JSON")


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read an answer of a known shape; raises `UpstreamFailure`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise bad(f"JSON of the wrong shape ({_unquoted(error)})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json() from error


def _unquoted(error: msgspec.ValidationError) -> str:
    """Return what is wrong and where, without the value: it may be a user's setting."""
    return re.sub(r"""(["']).*\1""", "…", str(error), flags=re.DOTALL)


def refused(error: TemplateRejected) -> UpstreamFailure:
    """Return the failure that a template is which cannot be used: broken, or beyond what is rendered here."""
    if error.is_broken:
        return bad(f"a template that does not compile ({error})")
    return UpstreamFailure(
        FailureKind.NOT_ADMITTED, f"the config service answered with a template that is not admitted ({error})"
    )


def may_be_no_endpoint(failure: UpstreamFailure) -> bool:
    """Return whether a refusal may mean the endpoint, and not what was asked of it (contract §2, `auto`).

    FastAPI answers an unknown path with 404 `{"detail": "Not Found"}`; what stands before the service, with whatever.
    """
    if failure.status == 405:
        return True
    if failure.status != 404 or failure.answer is None:
        return False
    try:
        detail = json.loads(failure.answer.body)["detail"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return True
    return bool(detail == "Not Found")


def endpoint_gone(failure: UpstreamFailure, path: str) -> UpstreamFailure:
    """Return the failure that a missing endpoint is."""
    return UpstreamFailure(
        FailureKind.ENDPOINT_GONE,
        f"what answers at the config service's address has no {path}",
        status=failure.status,
    )
