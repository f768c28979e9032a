"""One ClientSession; every way in which a call can fail becomes one of our failures here."""

import io
import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure, kind_of_status
from sidecar.service.trace import NO_TRACER, Tracer, request_id, trace_headers
from sidecar.upstream.access import Access
from sidecar.upstream.tls import trouble

IDLE_SECONDS = 3.0
"""How long an idle connection is kept: the config service closes its own after 5 s, and we must be first."""
LARGE_BODY = 1024 * 1024
"""Bytes; aiohttp takes a larger body in pieces only."""
MAX_RETRY_AFTER = 3600.0
"""Seconds; a Retry-After beyond it is a typo or a date from another calendar."""


class SoundRequest(aiohttp.ClientRequest):
    """A request that trusts no kept connection on which something came unasked.

    aiohttp would take what another answer left behind (a 408, say) for this one's, and each later answer for another's.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Begin the request, unless what comes next on the connection may not be its answer."""
        if conn.protocol is None or conn.protocol.should_close:
            raise aiohttp.ServerDisconnectedError("something came unasked")
        return await super().send(conn)


class BaseAddress:
    """Where the config service is: what request targets are appended to."""

    def __init__(self, base_url: str) -> None:
        base = URL(base_url, encoded=True)
        self._scheme, self._authority, self._prefix = base.scheme, base.raw_authority, base.raw_path.rstrip("/")

    def at(self, target: str) -> URL:
        """Return a URL with this target, whatever it holds: as an encoded path, query and all, it is not read."""
        path = target if target == "*" else self._prefix + target
        return URL.build(scheme=self._scheme, authority=self._authority, path=path, encoded=True)


def failure_of(error: aiohttp.ClientError | OSError, refusal: str | None = None) -> UpstreamFailure:
    """Return the failure that an error of aiohttp's is.

    `refusal`: why the upstream broke the newest connection off, where it said so; TLS 1.3 does after the handshake.
    """
    match error:
        case aiohttp.ConnectionTimeoutError():
            kind, detail = FailureKind.CONNECT_TIMEOUT, "no connection to the config service could be made in time"
        case aiohttp.ClientSSLError():
            kind, detail = FailureKind.TLS_ERROR, trouble(error.os_error)
        case aiohttp.ClientConnectorError(os_error=ConnectionResetError()):
            kind = FailureKind.CONNECT_ERROR
            detail = "the config service broke the TLS handshake off: it wants another certificate, or is going away"
        case aiohttp.ClientConnectorError():
            kind, detail = FailureKind.CONNECT_ERROR, "no connection to the config service"
        case aiohttp.ClientResponseError():
            kind, detail = FailureKind.GARBAGE, "the config service answered with broken HTTP"
        case _ if isinstance(error.__cause__, ContentEncodingError):
            kind = FailureKind.GARBAGE
            detail = "the config service's answer is compressed, and cannot be decompressed"
        case _:
            kind = FailureKind.RESET
            detail = refusal or "the connection to the config service broke before its answer was whole"
    return UpstreamFailure(kind, detail)


class Response(NamedTuple):
    """A whole answer, of a status that was asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UpstreamClient:
    """Calls to the config service: bounded answers, no redirects, no cookies, no proxies from the environment."""

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float,
        max_response: int,
        access: Access | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._base = BaseAddress(base_url)
        self._access = access or Access()
        self._tracer = tracer
        self._max_response = max_response
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),  # the bulkhead is the limit
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            request_class=SoundRequest,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "prompt-sidecar"},
        )

    def adopt(self, *, max_response: int) -> None:
        """Take answers of another size (bytes) from now on."""
        self._max_response = max_response

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(
        self, path: str, body: bytes, *, if_none_match: str | None = None, authorization: str | None = None
    ) -> Response:
        """Post JSON and return a 200, or a 304 if `if_none_match` was given; raises `UpstreamFailure` for all else.

        `authorization`: whose call it is; None: the sidecar's own.
        """
        headers = {"Content-Type": "application/json"}
        if if_none_match is not None:
            headers["If-None-Match"] = if_none_match
        accepted = {200} if if_none_match is None else {200, 304}
        return await self.call("POST", path, headers=headers, body=body, accepted=accepted, authorization=authorization)

    async def get(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        accepted: Collection[int] = (200,),
        authorization: str | None = None,
    ) -> Response:
        """Get a path, which is sent as it is; raises `UpstreamFailure` for any status but those accepted."""
        return await self.call(
            "GET", path, headers=headers or {}, body=None, accepted=accepted, authorization=authorization
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        accepted: Collection[int],
        authorization: str | None = None,
    ) -> Response:
        """Make one call; raises `UpstreamFailure` for any status but those accepted, and for what is no answer."""
        data = io.BytesIO(body) if body is not None and len(body) > LARGE_BODY else body
        if (known_as := request_id()) is not None:  # of who began a fetch that others share
            headers = {**headers, "X-Request-Id": known_as}
        is_own = authorization is None
        if is_own:
            authorization = self._access.authorization
        if authorization is not None:
            headers = {**headers, "Authorization": authorization}
        try:
            async with self._session.request(
                method,
                self._base.at(path),
                data=data,
                headers={**headers, **trace_headers()},
                allow_redirects=False,
                **self._access.connection,
            ) as response:
                self._tracer.note({"http.response.status_code": response.status})
                if response.status == 304 and 304 in accepted:
                    return Response(304, response.headers, b"")
                content = await self._read(response)
        except (
            aiohttp.ClientResponseError,
            aiohttp.ClientConnectionError,
            aiohttp.ClientPayloadError,
            OSError,
        ) as error:
            raise failure_of(error, self._access.handshake_error) from error
        if response.status in accepted:
            return Response(response.status, response.headers, content)
        if is_own and response.status == 401:
            self._access.refused()
        raise _failure(response, content)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        connection = response.connection  # None: all of it is here
        lost = connection.protocol.closed if connection is not None and connection.protocol is not None else None
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > self._max_response:
                response.close()
                raise UpstreamFailure(
                    FailureKind.BAD_DOCUMENT,
                    f"the config service's answer is larger than upstream.max_response ({self._max_response} bytes)",
                    status=response.status,
                )
        # A body that ends with the connection ends well only where the connection does; aiohttp takes both for the end.
        has_end = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        if not has_end and lost is not None and lost.done() and lost.exception() is not None:
            raise aiohttp.ClientPayloadError("the answer broke off")
        return bytes(content)


def _failure(response: aiohttp.ClientResponse, content: bytes) -> UpstreamFailure:
    content_type = response.headers.get("Content-Type", "application/octet-stream")
    return answered(response.status, content, content_type, retry_after=response.headers.get("Retry-After"))


def answered(status: int, content: bytes, content_type: str, *, retry_after: str | None = None) -> UpstreamFailure:
    """Return the failure that an answer of this status is."""
    return UpstreamFailure(
        kind_of_status(status),
        f"the config service answered {status}",
        status=status,
        retry_after=retry_after_seconds(retry_after),
        answer=Answer(status, content, content_type) if status >= 400 else None,
    )


def retry_after_seconds(value: str | None) -> float | None:
    """Read Retry-After (RFC 9110 §10.2.3); the date form is not used between services and is ignored."""
    if value is None or not value.strip().isascii() or not value.strip().isdigit():
        return None
    return min(float(value), MAX_RETRY_AFTER)


def encode(body: Mapping[str, object]) -> bytes:
    """Encode a request body."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")
