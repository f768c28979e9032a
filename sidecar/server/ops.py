"""The ops listener: liveness, readiness, metrics, status and its page (contract §5)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from sidecar.core.status import schema
from sidecar.server.listener import Handler, Routes
from sidecar.server.page import page_routes
from sidecar.server.responses import problem

UNSEEN = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of what is true now only."""
SCRAPE_SECONDS = 10.0
"""How long a scraper may take to read: Prometheus's own limit, by default."""


def ops_routes(
    *,
    ready: Callable[[], bool],
    gate: Callable[[], str | None] = lambda: None,
    metrics: Callable[[str | None], Awaitable[tuple[bytes, str]]],
    status: Callable[[], object] = dict,
    admin: Mapping[tuple[str, str], Handler] | None = None,
) -> Routes:
    """Return the ops listener's routes.

    `gate`: why it is not ready though requests can be served; `metrics`: the Accept header → body and content type;
    `status`: what `/status` says; `admin`: further calls.
    Liveness says only that the process answers; readiness that requests can be served, whatever the upstream does: an
    outage is what we are here for.
    """

    async def livez(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.BaseRequest) -> web.Response:
        if not ready():
            return problem(503, "The sidecar is starting or draining.")
        closed = gate()
        return web.Response(text="ok\n") if closed is None else problem(503, closed)

    async def scrape(request: web.BaseRequest) -> web.Response:
        body, content_type = await metrics(request.headers.get("Accept"))
        response = web.Response(body=body, headers={"Content-Type": content_type})
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # who does not read holds a copy of everything, and the drain
        return response

    async def show(_: web.BaseRequest) -> web.Response:
        return _json(status())

    async def explain(_: web.BaseRequest) -> web.Response:
        return _json(schema())

    table: dict[tuple[str, str], Handler] = dict(admin or {})
    table |= {
        (method, path): handler
        for path, handler in (
            ("/livez", livez),
            ("/readyz", readyz),
            ("/metrics", scrape),
            ("/status", show),
            ("/status.schema.json", explain),
            *page_routes().items(),
        )
        for method in ("GET", "HEAD")
    }
    return Routes(table)


def _json(value: object) -> web.Response:
    """Lay an answer out for people and machines."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    return web.Response(body=body, content_type="application/json", headers=UNSEEN)
