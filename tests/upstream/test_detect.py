"""Whether the service has the `prompt-data` endpoint: a 405 or a 404 of its own tells, anything else says nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sidecar.upstream.client import Response, UpstreamClient
from sidecar.upstream.detect import EndpointProbe
from tests.harness import Exchange, Play, RawUpstream, forever, head_of, raw_upstream
from tests.proxying import full_address

MAX_RESPONSE = 1 << 16
NOT_FOUND = b'{"detail":"Not Found"}'
HTML = b"<html><body>404 Not Found</body></html>"


@asynccontextmanager
async def probe_of(url: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[EndpointProbe]:
    client = UpstreamClient(url, connect_timeout=5.0, max_response=MAX_RESPONSE)
    try:
        yield EndpointProbe(client, timeout_seconds=timeout_seconds)
    finally:
        await client.close()


@asynccontextmanager
async def probing(plays: Play, *, timeout_seconds: float = 10.0) -> AsyncIterator[tuple[EndpointProbe, RawUpstream]]:
    async with (
        raw_upstream(plays) as upstream,
        probe_of(upstream.url, timeout_seconds=timeout_seconds) as probe,
    ):
        yield probe, upstream


def answers(status: int, body: bytes = b"", **headers: str) -> Play:
    """Play: this answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(body, status=status, headers=named)

    return plays


@pytest.mark.parametrize(
    ("status", "body", "exists"),
    [
        pytest.param(405, b'{"detail":"Method Not Allowed"}', True, id="FastAPI's 405"),
        pytest.param(405, b"", True, id="an empty 405"),
        pytest.param(405, HTML, True, id="a 405 in HTML"),
        pytest.param(404, NOT_FOUND, False, id="FastAPI's 404"),
        pytest.param(404, b'{"detail":"no such path"}', False, id="a 404 in other words"),
        pytest.param(404, b"{}", False, id="a 404 that says nothing, in JSON"),
        pytest.param(404, b" \n" + NOT_FOUND + b"\n", False, id="a 404 with blanks"),
        pytest.param(404, HTML, None, id="a 404 in HTML"),
        pytest.param(404, b"", None, id="an empty 404"),
        pytest.param(404, b"null", None, id="a 404 that is null"),
        pytest.param(404, b"[]", None, id="a 404 that is a list"),
        pytest.param(404, b'"Not Found"', None, id="a 404 that is a text"),
        pytest.param(404, b"[" * 20_000, None, id="a 404 of deep nesting"),
        pytest.param(404, b"\xff\xfe\x00", None, id="a 404 that is not text"),
        pytest.param(404, b" " * (MAX_RESPONSE + 1) + NOT_FOUND, None, id="a 404 without end"),
        pytest.param(200, b"{}", None, id="200"),
        pytest.param(200, HTML, None, id="200 in HTML"),
        pytest.param(204, b"", None, id="204"),
        pytest.param(301, b"", None, id="a redirect"),
        pytest.param(307, b"", None, id="a redirect to the slash form"),
        pytest.param(400, NOT_FOUND, None, id="400"),
        pytest.param(401, NOT_FOUND, None, id="401"),
        pytest.param(403, NOT_FOUND, None, id="403"),
        pytest.param(410, NOT_FOUND, None, id="410"),
        pytest.param(422, NOT_FOUND, None, id="422"),
        pytest.param(429, NOT_FOUND, None, id="429"),
        pytest.param(500, NOT_FOUND, None, id="500"),
        pytest.param(501, b"", None, id="501"),
        pytest.param(502, HTML, None, id="502"),
        pytest.param(503, NOT_FOUND, None, id="503"),
    ],
)
async def test_an_answer_tells_or_says_nothing(status: int, body: bytes, exists: bool | None) -> None:
    async with probing(answers(status, body, Location="/api/v1/prompt-data/")) as (probe, upstream):
        assert await probe() is exists
        assert len(upstream.requests) == 1


async def test_it_asks_for_nobodys_prompt_and_changes_nothing() -> None:
    async with probing(answers(405)) as (probe, upstream):
        await probe()
        head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"GET /api/v1/prompt-data HTTP/1.1\r\n")
    assert body == b""
    assert b"content-length" not in head.lower()


async def test_it_may_be_asked_again_and_finds_what_is_there_then() -> None:
    statuses = iter((404, 405, 503, 404))

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(NOT_FOUND, status=next(statuses))

    async with probing(plays) as (probe, _):
        assert [await probe() for _ in range(4)] == [False, True, None, False]


# What is no answer


async def test_a_refused_connection_says_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        async with probe_of(f"http://127.0.0.1:{taken.getsockname()[1]}") as probe:
            assert await probe() is None


async def test_a_name_without_an_address_says_nothing() -> None:
    async with probe_of("http://no-such-service.invalid:8002") as probe:
        assert await probe() is None


async def test_a_connection_that_does_not_come_about_says_nothing() -> None:
    with full_address() as url:
        async with probe_of(url, timeout_seconds=0.02) as probe:
            assert await probe() is None


async def cut_off(exchange: Exchange) -> None:
    """Play: break the connection at once."""
    exchange.reset()


async def ended(exchange: Exchange) -> None:
    """Play: end the connection without a word."""
    exchange.writer.close()


async def half(exchange: Exchange) -> None:
    """Play: half of the 404 that would tell."""
    await exchange.write(head_of(404, len(NOT_FOUND)) + NOT_FOUND[:5])
    exchange.writer.close()


async def no_http(exchange: Exchange) -> None:
    """Play: another protocol."""
    await exchange.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    exchange.writer.close()


@pytest.mark.parametrize("plays", [cut_off, ended, half, no_http], ids=["reset", "end", "half", "no HTTP"])
async def test_a_connection_that_breaks_says_nothing(plays: Play) -> None:
    async with probing(plays) as (probe, _):
        assert await probe() is None


async def silent(_: Exchange) -> None:
    """Play: nothing."""
    await forever()


async def begun(exchange: Exchange) -> None:
    """Play: begin the 404 that would tell, and never end it."""
    await exchange.write(head_of(404, len(NOT_FOUND)) + NOT_FOUND[:-1])
    await forever()


@pytest.mark.parametrize("plays", [silent, begun], ids=["silence", "half and silence"])
async def test_an_answer_that_does_not_come_in_time_says_nothing(plays: Play) -> None:
    async with probing(plays, timeout_seconds=0.02) as (probe, _):
        assert await probe() is None


@pytest.mark.looptime
async def test_it_is_waited_for_as_long_as_is_allowed_and_no_longer() -> None:
    class Slow:
        """A client whose answer takes longer than anybody waits."""

        async def get(self, _: str) -> Response:
            await asyncio.sleep(60)
            raise AssertionError("nobody waits for it")

    probe = EndpointProbe(cast(UpstreamClient, Slow()), timeout_seconds=1.5)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await probe() is None
    assert loop.time() - began == pytest.approx(1.5, abs=1e-3)


@pytest.mark.looptime
async def test_who_leaves_while_it_looks_leaves_at_once() -> None:
    class Held:
        """A client that never answers."""

        async def get(self, _: str) -> Any:
            await asyncio.Event().wait()

    looking = asyncio.ensure_future(EndpointProbe(cast(UpstreamClient, Held()), timeout_seconds=60)())
    await asyncio.sleep(1)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
