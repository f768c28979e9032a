"""The ops listener: liveness, readiness, metrics (contract §5)."""

from collections.abc import Callable

from aiohttp import web

from sidecar.server.listener import Routes
from sidecar.server.responses import problem


def ops_routes(*, ready: Callable[[], bool], metrics: Callable[[str | None], tuple[bytes, str]]) -> Routes:
    """Return the ops listener's routes.

    `metrics`: the Accept header → body and content type. Liveness says only that the process answers; readiness that
    requests can be served, whatever the upstream does: an outage is what we are here for.
    """

    async def livez(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n") if ready() else problem(503, "The sidecar is starting or draining.")

    async def scrape(request: web.BaseRequest) -> web.Response:
        body, content_type = metrics(request.headers.get("Accept"))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return Routes(
        {
            (method, path): handler
            for path, handler in (("/livez", livez), ("/readyz", readyz), ("/metrics", scrape))
            for method in ("GET", "HEAD")
        }
    )
