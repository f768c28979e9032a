"""The status page: files as they are, with headers under which a browser loads nothing else and runs nothing inline."""

from importlib.resources import files

from aiohttp import web

from sidecar.server.listener import Handler

FOLDER = files("sidecar.server") / "status_page"
INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> dict[str, Handler]:
    """Return what answers the page's paths: `/`, and `/page/FILE` for what it is made of."""
    return {
        "/" if file.name == INDEX else f"/page/{file.name}": _file(file.read_bytes(), file.name.rpartition(".")[2])
        for file in FOLDER.iterdir()
        if file.name.rpartition(".")[2] in TYPES
    }


def _file(body: bytes, ending: str) -> Handler:
    headers = {"Content-Type": TYPES[ending], **HEADERS}

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers=headers)

    return handler
