"""A call to the upstream as a trace shows it, by OpenTelemetry's conventions for HTTP clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from yarl import URL

from sidecar.service.trace import NO_TRACER, Attributes, SpanKind, Tracer


class Call(NamedTuple):
    """What an endpoint is asked by; the template of its path, which never holds a user."""

    method: str
    template: str | None = None


CALLS = {
    "prompt-data": Call("POST", "/api/v1/prompt-data"),
    "prompt-data-batch": Call("POST", "/api/v1/prompt-data/batch"),
    "user-placeholders": Call("GET", "/api/v1/users/{user_id}/placeholders"),
    "generate-prompt": Call("POST", "/api/v1/generate-prompt"),
    "static-read": Call("GET"),
}
"""By the endpoint's name in telemetry."""


def server_attributes(base_url: str) -> Attributes:
    """Return where the upstream is."""
    url = URL(base_url)
    return {"server.address": url.host or "", "server.port": url.port or 0}


class AttemptSpans:
    """One span for each attempt."""

    def __init__(self, tracer: Tracer = NO_TRACER, server: Attributes | None = None) -> None:
        self._tracer = tracer
        self._server = server or {}

    @contextmanager
    def of(self, endpoint: str, resend_count: int) -> Iterator[None]:
        """Return what lasts as long as the attempt; `resend_count`: 0 for the first."""
        method, template = CALLS.get(endpoint, Call("HTTP"))
        name = method if template is None else f"{method} {template}"
        with self._tracer.span(name, kind=SpanKind.CLIENT) as span:
            if span is not None:
                span.set({"http.request.method": method, **self._server})
                if template is not None:
                    span.set({"url.template": template})
                if resend_count:
                    span.set({"http.request.resend_count": resend_count})
            yield
