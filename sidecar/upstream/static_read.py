"""Reads of the config service that change nothing and are asked for again and again (settings: `routes`)."""

import msgspec

from sidecar.core.hop_by_hop import end_to_end
from sidecar.core.model import RouteKey, StaticAnswer
from sidecar.upstream.answers import not_json
from sidecar.upstream.client import UpstreamClient

ACCEPTED = frozenset({200, 301, 307, 308})
"""What is kept: an answer, or the way to it (today's service redirects to the slash form)."""
_HARMLESS_VARY = frozenset({"accept-encoding", "origin"})  # we send neither a choice of encodings nor an origin


DECODED = frozenset({"gzip", "deflate", "br", "zstd"})
"""Codings that aiohttp undoes, though we ask for none."""


class StaticReadSource:
    """One GET of a static read, unguarded."""

    endpoint = "static-read"

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client

    async def fetch(self, key: RouteKey, known: StaticAnswer | None, authorization: str | None = None) -> StaticAnswer:
        """Bring the answer; raises `UpstreamFailure`, also for a page of whoever answers in the service's place."""
        response = await self._client.get(
            key.target, headers={"Host": key.host}, accepted=ACCEPTED, authorization=authorization
        )
        # aiohttp's names are of a kind of str of its own, which no record can hold.
        headers = [(str(name), value) for name, value in end_to_end(response.headers.items()) if _is_kept(name, value)]
        answer = StaticAnswer(response.status, tuple(headers), response.body)
        if known is not None and not _is_of_the_service(answer):
            raise not_json()
        return answer


def _is_of_the_service(answer: StaticAnswer) -> bool:
    """Return whether an answer is a redirect or JSON: the config service says nothing else."""
    if answer.status != 200:
        return True
    try:
        msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def may_keep(answer: StaticAnswer) -> bool:
    """Return whether an answer may serve others, as RFC 9111 §3 has it: not private, and not one of several."""
    if not _is_of_the_service(answer):
        return False
    for name, value in answer.headers:
        words = {word.strip().lower().partition("=")[0] for word in value.split(",")}
        match name.lower():
            case "set-cookie":
                return False
            case "cache-control" if words & {"no-store", "private"}:
                return False
            case "vary" if words - _HARMLESS_VARY:
                return False
    return True


def _is_kept(name: str, value: str) -> bool:
    if name.lower() == "content-encoding":
        return value.strip().lower() not in DECODED
    return name.lower() not in {"date", "content-length", "age", "cache-status"}
