"""What is neither a prompt nor its parts: a static read, from the cache where it must be, or the reverse proxy."""

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from sidecar.core.cache_status import cache_status
from sidecar.core.errors import PromptError
from sidecar.core.model import RouteKey, StaticAnswer
from sidecar.core.policy import Policy
from sidecar.core.routes import RouteTable, written_user
from sidecar.server.listener import Handler
from sidecar.server.requests import parse_cache_control
from sidecar.server.responses import age_seconds, error_response
from sidecar.service.ports import Clock
from sidecar.service.resources import Obtained, Resources, Terms

_PERSONAL = (
    *("Range", "Origin", "Forwarded", "X-Forwarded-Proto", "X-Forwarded-Prefix"),
    *("If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range"),
)
"""A request that says one of these asks for an answer of its own."""
_WHO = re.compile(
    r"account|auth|cert|cookie|credential|identity|key|principal|secret|session|signature|tenant|token|user(?!-agent\Z)",
    re.IGNORECASE,
)
"""In the name of a header that says who asks (`Authorization`, `X-Api-Key`): what he may read, no other may."""


class Elsewhere:
    """Static reads by the table of routes, everything else by the proxy."""

    def __init__(
        self,
        routes: Callable[[], tuple[RouteTable[Policy], float]],
        reads: Resources[RouteKey, StaticAnswer],
        proxy: Handler,
        *,
        clock: Clock,
    ) -> None:
        """`routes`: the table in force, and the deadline (seconds)."""
        self._routes = routes
        self._reads = reads
        self._proxy = proxy
        self._clock = clock

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer one request."""
        if request.method == "GET" and not request.body_exists and request.raw_path.startswith("/"):
            table, deadline = self._routes()
            path = request.raw_path.partition("?")[0]
            found = table.find(path)
            if found is not None and _is_plain(request):
                return self._read(request, found[0], deadline, written_user(path))
        return self._proxy(request)

    async def _read(
        self, request: web.BaseRequest, policy: Policy, deadline: float, owner: int | None
    ) -> web.StreamResponse:
        directives = parse_cache_control(request.headers.get("Cache-Control"))
        terms = Terms(policy, directives, self._clock(), deadline)
        try:
            obtained = await self._reads.obtain(RouteKey(request.host, request.raw_path, owner), terms)
        except PromptError as error:
            if error.answer is None:
                error.answer = error.upstream_answer  # the client gets the service's own word, a 5xx included
            return error_response(error)
        return _response(obtained)


def _is_plain(request: web.BaseRequest) -> bool:
    """Return whether the answer to a request is that of everybody else's."""
    headers = request.headers
    return (
        headers.get("Host", "\xff").isascii()
        and not any(name in headers for name in _PERSONAL)
        and not any(_WHO.search(name) for name in headers)
    )


def _response(obtained: Obtained[StaticAnswer]) -> web.Response:
    answer, provenance = obtained.entry.document, obtained.provenance
    response = web.Response(status=answer.status, body=answer.body)
    response.headers.popall("Content-Type", None)
    for name, value in answer.headers:
        response.headers.add(name, value)
    response.headers["Cache-Status"] = cache_status(provenance)
    response.headers["Age"] = str(age_seconds(provenance))
    return response
