"""The HTTP client before real sockets: each way in which a call can fail, by its name."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.upstream.client import IDLE_SECONDS, MAX_RETRY_AFTER, UpstreamClient, encode, retry_after_seconds
from tests.harness import Exchange, RawUpstream, forever, raw_upstream

MAX_RESPONSE = 1 << 20
PATH = "/api/v1/prompt-data"
OK = b"HTTP/1.1 200 OK\r\n"
K = FailureKind

Plays = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def client_of(url: str, *, connect_timeout: float = 5.0) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(url, connect_timeout=connect_timeout, max_response=MAX_RESPONSE)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def upstream_that(plays: Plays) -> AsyncIterator[tuple[UpstreamClient, RawUpstream]]:
    """Run an upstream that plays so for each request, and a client of it."""
    async with raw_upstream(plays) as upstream, client_of(upstream.url) as client:
        yield client, upstream


def writes(*pieces: bytes) -> Plays:
    """Play: write these bytes, one piece after another, and close the connection."""

    async def plays(exchange: Exchange) -> None:
        await exchange.write(*pieces)
        exchange.writer.close()

    return plays


def answers(body: bytes = b"", *, status: int = 200, **headers: str) -> Plays:
    """Play: a whole answer; the connection stays. An underscore in a header's name stands for a hyphen."""
    given = {"Content_Length": str(len(body)), **headers}
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())

    async def plays(exchange: Exchange) -> None:
        await exchange.write(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode() + body)

    return plays


def resets_after(*pieces: bytes) -> Plays:
    """Play: write these bytes, and reset the connection."""

    async def plays(exchange: Exchange) -> None:
        await exchange.write(*pieces)
        raw: socket.socket = exchange.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.reset()

    return plays


async def failure_of(client: UpstreamClient, *, if_none_match: str | None = None) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        await client.post(PATH, b"{}", if_none_match=if_none_match)
    return caught.value


# The request


async def test_json_is_posted_to_the_path_below_the_base_url() -> None:
    async with raw_upstream(answers()) as upstream, client_of(f"{upstream.url}/config/") as client:
        await client.post(PATH, b'{"user_id":1}')
        head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert request_line == "POST /config/api/v1/prompt-data HTTP/1.1"
    assert headers == {
        "host": upstream.url.removeprefix("http://"),
        "content-type": "application/json",
        "content-length": "13",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "prompt-sidecar",
    }
    assert body == b'{"user_id":1}'


async def test_a_known_etag_is_sent_as_it_came() -> None:
    async with upstream_that(answers()) as (client, upstream):
        await client.post(PATH, b"{}", if_none_match='W/"v1"')
        assert b'\r\nIf-None-Match: W/"v1"\r\n' in upstream.requests[0]


@pytest.mark.parametrize("node", ["explain", "ответ", "a lone surrogate \ud800"])
def test_a_body_is_compact_json_whatever_the_node_is_called(node: str) -> None:
    body = encode({"user_id": 1, "node_name": node})
    assert json.loads(body) == {"user_id": 1, "node_name": node}
    assert b": " not in body
    assert b", " not in body


async def test_proxies_and_credentials_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with upstream_that(answers()) as (client, upstream):
        assert (await client.post(PATH, b"{}")).status == 200
        assert b"authorization" not in upstream.requests[0].lower()


async def test_no_cookie_is_kept() -> None:
    async with (
        raw_upstream(answers(Set_Cookie="session=1; Path=/")) as upstream,
        client_of(upstream.url.replace("127.0.0.1", "localhost")) as client,  # an address would have no cookies
    ):
        await client.post(PATH, b"{}")
        await client.post(PATH, b"{}")
        assert b"cookie" not in upstream.requests[1].lower()


# Connections


async def connections_of(*plays: Plays) -> int:
    """Play one answer after another to one client, and count its connections."""
    pending, peers = [*plays], set()

    async def one(exchange: Exchange) -> None:
        peers.add(exchange.writer.get_extra_info("peername"))
        await pending.pop(0)(exchange)

    async with upstream_that(one) as (client, _):
        while pending:
            with suppress(UpstreamFailure):
                await client.post(PATH, b"{}", if_none_match='"1"')
    return len(peers)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(answers(b"x" * 100_000), id="200"),
        pytest.param(answers(status=304), id="304"),
        pytest.param(answers(b'{"detail":"no"}', status=404), id="404"),
        pytest.param(answers(status=503), id="503"),
        pytest.param(answers(status=301, Location="/elsewhere"), id="301"),
    ],
)
async def test_a_connection_is_used_again_after_a_whole_answer(first: Plays) -> None:
    assert await connections_of(first, answers()) == 1


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(answers(Connection="close"), id="the upstream says so"),
        pytest.param(answers(b"x" * (2 * MAX_RESPONSE)), id="more is coming than we want"),
        pytest.param(writes(b"nonsense"), id="not HTTP"),
    ],
)
async def test_a_connection_is_not_used_again_where_more_may_be_on_it(first: Plays) -> None:
    assert await connections_of(first, answers()) == 2


def test_an_idle_connection_is_closed_before_the_config_service_closes_it() -> None:
    assert IDLE_SECONDS < 5


async def test_who_leaves_early_closes_the_connection() -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        began.set()
        assert await reader.read() == b""
        left.set()
        writer.close()

    server = await asyncio.start_server(hangs, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client_of(f"http://127.0.0.1:{port}") as client:
        call = asyncio.ensure_future(client.post(PATH, b"{}"))
        await began.wait()
        call.cancel()
        await asyncio.wait_for(left.wait(), 20)
        assert call.cancelled()


# No connection


@pytest.fixture
def refused_url() -> Iterator[str]:
    """Return a URL at which a port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def full_url() -> Iterator[str]:
    """Return a URL at which somebody listens whose queue is full: the kernel drops what else comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


async def test_a_refused_connection_is_a_connect_error(refused_url: str) -> None:
    async with client_of(refused_url) as client:
        assert (await failure_of(client)).kind is K.CONNECT_ERROR


async def test_a_host_without_an_address_is_a_connect_error() -> None:
    async with client_of("http://does-not-exist.invalid") as client:
        assert (await failure_of(client)).kind is K.CONNECT_ERROR


async def test_a_connection_that_does_not_come_about_in_time_is_a_connect_timeout(full_url: str) -> None:
    async with client_of(full_url, connect_timeout=0.05) as client:
        assert (await failure_of(client)).kind is K.CONNECT_TIMEOUT


# No whole answer


@pytest.mark.parametrize(
    "plays",
    [
        pytest.param(writes(), id="closed before the answer"),
        pytest.param(writes(b"HTTP/1.1 200 OK\r\nContent-Le"), id="closed in the head"),
        pytest.param(writes(OK + b"Content-Length: 100\r\n\r\n", b'{"template":'), id="closed in the body"),
        pytest.param(writes(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), id="closed between chunks"),
        pytest.param(resets_after(), id="reset before the answer"),
        pytest.param(resets_after(b"HTTP/1.1 20"), id="reset in the head"),
        pytest.param(resets_after(OK + b"Content-Length: 100\r\n\r\n", b'{"template":'), id="reset in the body"),
        pytest.param(writes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n{"), id="a 404 closed in its body"),
    ],
)
async def test_a_connection_that_breaks_before_the_answer_is_whole_is_a_reset(plays: Plays) -> None:
    async with upstream_that(plays) as (client, _):
        assert (await failure_of(client)).kind is K.RESET


# No answer at all


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"<html><body>502 Bad Gateway</body></html>", id="HTML without a head"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="another protocol"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", id="TLS"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="a status that is no number"),
        pytest.param(OK + b"nonsense\r\n\r\n", id="a header without a colon"),
        pytest.param(OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n", id="a header of 100 KB"),
        pytest.param(OK + b"X: x\r\n" * 100_000 + b"\r\n", id="100,000 headers"),
        pytest.param(OK + b"Content-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", id="two lengths"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="a chunk of no length"),
        pytest.param(OK + b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n0123456789", id="gzip that is none"),
        pytest.param(OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\n0", id="an encoding nobody asked for"),
    ],
)
async def test_what_is_not_http_is_garbage(raw: bytes) -> None:
    async with upstream_that(writes(raw)) as (client, _):
        assert (await failure_of(client)).kind is K.GARBAGE


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 300, 304, 399, 600, 999])
async def test_a_status_that_nobody_asked_for_is_garbage(status: int) -> None:
    async with upstream_that(answers(status=status)) as (client, _):
        failure = await failure_of(client)
        assert (failure.kind, failure.status) == (K.GARBAGE, status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_garbage_and_not_followed(status: int) -> None:
    async with upstream_that(answers(status=status, Location="/elsewhere")) as (client, upstream):
        failure = await failure_of(client)
        assert (failure.kind, failure.status, len(upstream.requests)) == (K.GARBAGE, status, 1)


async def test_an_endless_answer_is_a_bad_document_and_not_read_to_its_end() -> None:
    written = 0

    async def endless(exchange: Exchange) -> None:
        nonlocal written
        await exchange.write(OK + b"Content-Type: application/json\r\n\r\n")
        while True:
            await exchange.write(b" " * 65536)
            written += 65536

    async with upstream_that(endless) as (client, _):
        failure = await asyncio.wait_for(failure_of(client), 10)
    assert (failure.kind, failure.status) == (K.BAD_DOCUMENT, 200)
    assert "upstream.max_response (1048576 bytes)" in failure.detail
    assert written < 32 * MAX_RESPONSE  # what the kernel's buffers on both sides took


async def test_an_answer_that_is_small_until_it_is_decompressed_is_a_bad_document() -> None:
    bomb = gzip.compress(b" " * (64 * MAX_RESPONSE))
    assert len(bomb) < MAX_RESPONSE
    async with upstream_that(answers(bomb, Content_Encoding="gzip")) as (client, _):
        failure = await failure_of(client)
    assert (failure.kind, "upstream.max_response" in failure.detail) == (K.BAD_DOCUMENT, True)


async def test_the_size_is_that_of_the_body_to_the_byte() -> None:
    async with upstream_that(answers(b"x" * MAX_RESPONSE)) as (client, _):
        assert len((await client.post(PATH, b"{}")).body) == MAX_RESPONSE
    async with upstream_that(answers(b"x" * (MAX_RESPONSE + 1))) as (client, _):
        assert (await failure_of(client)).kind is K.BAD_DOCUMENT


# An answer


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(OK + b"Content-Length: 2\r\nETag: v1\r\n\r\n{}", id="with its length"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\netag: v1\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", id="in chunks"
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\nETAG: v1\r\n\r\n{}", id="HTTP/1.0, ended by its close"),
        pytest.param(
            b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\nEtag: v1\r\n\r\n{}",
            id="after an interim answer",
        ),
    ],
)
async def test_a_200_is_returned_whole_with_its_headers_in_any_case(raw: bytes) -> None:
    async with upstream_that(writes(raw)) as (client, _):
        response = await client.post(PATH, b"{}")
    assert (response.status, response.body, response.headers.get("ETag")) == (200, b"{}", "v1")


async def test_an_answer_in_many_small_pieces_is_put_together() -> None:
    pieces = [b"%d," % n for n in range(2000)]
    length = sum(map(len, pieces))
    async with upstream_that(writes(OK + b"Content-Length: %d\r\n\r\n" % length, *pieces)) as (client, _):
        assert (await client.post(PATH, b"{}")).body == b"".join(pieces)


async def test_a_compressed_answer_is_read_though_nobody_asked_for_it() -> None:
    async with upstream_that(answers(gzip.compress(b'{"a":1}'), Content_Encoding="gzip")) as (client, _):
        assert (await client.post(PATH, b"{}")).body == b'{"a":1}'


async def test_a_304_is_returned_where_it_was_asked_for() -> None:
    async with upstream_that(answers(status=304)) as (client, _):
        response = await client.post(PATH, b"{}", if_none_match='"1"')
        assert (response.status, response.body) == (304, b"")


async def test_a_304_that_nobody_asked_for_is_garbage() -> None:
    async with upstream_that(answers(status=304)) as (client, _):
        assert (await failure_of(client)).kind is K.GARBAGE


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, K.GONE) for status in (400, 404, 410, 422)],
        *[(status, K.REFUSED) for status in (401, 403, 405, 409, 413)],
    ],
)
async def test_a_4xx_is_passed_on_with_its_body_and_type(status: int, kind: FailureKind) -> None:
    plays = answers(b'{"detail":"User not found"}', status=status, Content_Type="application/problem+json")
    async with upstream_that(plays) as (client, _):
        failure = await failure_of(client)
    assert (failure.kind, failure.status) == (kind, status)
    assert failure.answer == Answer(status, b'{"detail":"User not found"}', "application/problem+json")


async def test_a_4xx_without_a_type_is_passed_on_as_bytes() -> None:
    async with upstream_that(writes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")) as (client, _):
        assert (await failure_of(client)).answer == Answer(404, b"no", "application/octet-stream")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, K.TOO_MANY_REQUESTS), *[(status, K.SERVER_ERROR) for status in (500, 502, 503, 504, 599)]],
)
async def test_a_429_or_5xx_is_no_answer_and_its_retry_after_is_kept(status: int, kind: FailureKind) -> None:
    async with upstream_that(answers(status=status, Retry_After="7")) as (client, _):
        failure = await failure_of(client)
    nothing = Answer(status, b"", "application/octet-stream")
    assert (failure.kind, failure.status, failure.retry_after, failure.answer) == (kind, status, 7, nothing)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        (" 5 ", 5),
        ("999999999", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("soon", None),
        ("nan", None),
        ("٣", None),
        ("²", None),
        ("\udcff", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_whole_seconds_or_nothing(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


async def test_a_retry_after_of_nonsense_is_as_none() -> None:
    async with upstream_that(writes(b"HTTP/1.1 503 No\r\nRetry-After: \xff\xfe\r\nContent-Length: 0\r\n\r\n")) as (
        client,
        _,
    ):
        failure = await failure_of(client)
    assert (failure.kind, failure.retry_after) == (K.SERVER_ERROR, None)


async def test_a_hanging_upstream_is_left_to_the_callers_own_patience() -> None:
    async def hangs(_: Exchange) -> None:
        await forever()

    async with upstream_that(hangs) as (client, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post(PATH, b"{}"), 0.05)


async def test_no_failure_tells_what_the_upstream_sent() -> None:
    secret = b"canary-7f3a"
    for raw in (
        secret,
        OK + secret + b"\r\n\r\n",
        b"HTTP/1.1 500 " + secret + b"\r\nContent-Length: 11\r\n\r\n" + secret,
    ):
        async with upstream_that(writes(raw)) as (client, _):
            assert secret.decode() not in str(await failure_of(client))
