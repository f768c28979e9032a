"""The door of a listener: a browser that a foreign page makes ask is sent away, everyone else goes through."""

from collections.abc import Awaitable, Iterable
from functools import lru_cache

from aiohttp import hdrs, web
from multidict import istr

from sidecar.core.doors import is_cross_site, is_own_host
from sidecar.core.events import Refused
from sidecar.core.hop_by_hop import SAFE_METHODS
from sidecar.server.listener import Handler
from sidecar.server.responses import problem
from sidecar.service.ports import Observer

_SEC_FETCH_SITE = istr("Sec-Fetch-Site")


class Door:
    """A handler before another one.

    `names`: host names under which this listener may be asked for, beside `localhost` and any address; a page of theirs
    may ask for anything.
    """

    def __init__(self, handler: Handler, *, names: Iterable[str], observer: Observer) -> None:
        self._handler = handler
        self._observe = observer
        self._names = own = frozenset(name.lower().removesuffix(".") for name in names)
        # Nearly every request says the same; no more than a few are kept of what strangers say.
        self._is_own = lru_cache(maxsize=64)(lambda authority: is_own_host(authority, own))

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Hand a request on, or refuse it; no coroutine of its own, as all requests come through here."""
        headers = request.headers
        authority = headers.get(hdrs.HOST) if request.raw_path.startswith("/") else _authority(request)
        if authority is not None and not self._is_own(authority):
            return self._refuse(request, 421, "host", _NOT_OURS)
        origin = headers.get(hdrs.ORIGIN)
        # A browser says an Origin with a GET only where the page could read the answer, if the service lets it (CORS).
        if origin is not None or request.method not in SAFE_METHODS:
            site = headers.get(_SEC_FETCH_SITE)
            from_a_browser = origin is not None or site is not None
            if from_a_browser and is_cross_site(origin, site, authority or "", self._names):
                return self._refuse(request, 403, "cross_site", _FOREIGN)
        return self._handler(request)

    async def _refuse(self, request: web.BaseRequest, status: int, reason: str, detail: str) -> web.StreamResponse:
        self._observe(Refused(reason))
        response = problem(status, detail)
        if not request.content.is_eof():
            response.force_close()  # its body is not read
        return response


_NOT_OURS = "This Host is none of the sidecar's; allowed: localhost, any IP address, and the names in allowed_hosts."
_FOREIGN = "A page of another site may read and change nothing here, unless allowed_hosts names its host."


def _authority(request: web.BaseRequest) -> str | None:
    """Return the host of an absolute form, which counts more than the header (RFC 9112 §3.2.2)."""
    _, found, rest = request.raw_path.partition("://")
    return rest.partition("/")[0].partition("?")[0] if found else request.headers.get(hdrs.HOST)
