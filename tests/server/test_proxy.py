"""The proxy between raw sockets: what passes and how, what is refused, how failures look, what the watch is told."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import patch

import pytest

from sidecar.core.events import Crashed, Proxied
from sidecar.server.passage import Passage
from sidecar.service.forwarding import Write, WriteEnd
from sidecar.upstream.forward import Forwarder
from tests.proxying import (
    EMPTY,
    OK,
    Peer,
    Play,
    Upstream,
    answers,
    broken,
    echo,
    full_address,
    pause,
    proxied,
    rest_of,
    silence,
)
from tests.wire import PATIENCE, Answer, get, post, until, wire

CHUNKED = "Transfer-Encoding: chunked"


async def passed(data: bytes) -> tuple[str, dict[str, list[str]]]:
    """Send a request through, and return the request line and the headers that the upstream saw."""
    async with proxied(echo) as setting, wire(setting.port) as client:
        answer = await client.ask(data)
        assert answer.status == 200
        line, *fields = answer.body.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers: dict[str, list[str]] = {}
        for name, _, value in (each.partition(": ") for each in fields):
            headers.setdefault(name.lower(), []).append(value)
        return line, headers


async def answer_from(play: Play, data: bytes = get("/x"), **limits: Any) -> tuple[Answer, str]:
    """Send a request to an upstream that plays so; return the answer and what was told of it."""
    async with proxied(play, **limits) as setting, wire(setting.port) as client:
        await client.send(data)
        answer = await client.answer(to_head=data.startswith(b"HEAD"))
        return answer, (await setting.outcome())[1]


# Requests


@pytest.mark.parametrize(
    "target",
    ["/", "/?", "//double//", "/a/../b", "/a/./b/..", "/%2e%2E/%2f%2F", "/a+b;c=d,e", "/%C3%A9%zz?%c3=%A9&=&&a",
     "/a?b=/../c", "/a?x=http://y/?z", "/a#b", '/{}|^`\\"<>', "/a:b@c"],
)  # fmt: skip
async def test_the_target_arrives_byte_for_byte(target: str) -> None:
    line, _ = await passed(get(target))
    assert line == f"GET {target} HTTP/1.1"


async def test_the_paths_of_a_base_url_come_before_the_target() -> None:
    async with (
        Upstream(echo).running() as upstream,
        proxied(echo, url=f"{upstream.url}/base") as setting,
        wire(setting.port) as client,
    ):
        assert (await client.ask(get("/../x?y"))).body.startswith(b"GET /base/../x?y HTTP/1.1\r\n")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"])
async def test_methods_pass_as_they_are(method: str) -> None:
    line, _ = await passed(get("/x", method=method))
    assert line == f"{method} /x HTTP/1.1"


async def test_options_passes_about_the_whole_server() -> None:
    line, _ = await passed(get("*", method="OPTIONS"))
    assert line == "OPTIONS * HTTP/1.1"


async def test_an_absolute_form_passes_as_a_path_with_its_own_host() -> None:
    line, headers = await passed(get("http://config:8002//a/../b?c"))
    assert line == "GET //a/../b?c HTTP/1.1"
    assert headers["host"] == ["config:8002"]


async def test_the_host_stays_what_the_client_calls_us() -> None:
    _, headers = await passed(get("/x"))
    assert headers["host"] == ["localhost:9102"]


async def test_nothing_is_added_but_the_peers_address() -> None:
    _, headers = await passed(get("/x", "X-One: 1", "Accept-Encoding: br"))
    assert headers == {
        "host": ["localhost:9102"],
        "x-one": ["1"],
        "accept-encoding": ["br"],
        "x-forwarded-for": ["127.0.0.1"],
    }


async def test_a_write_adds_only_that_its_connection_is_its_own() -> None:
    _, headers = await passed(get("/x", "Content-Length: 0", method="DELETE"))
    assert headers == {
        "host": ["localhost:9102"],
        "content-length": ["0"],
        "x-forwarded-for": ["127.0.0.1"],
        "connection": ["close"],
    }


async def test_headers_for_one_hop_do_not_pass() -> None:
    hop = ["Connection: X-Mine", "X-Mine: 1", "Keep-Alive: timeout=5", "TE: trailers", "Trailer: X", "Upgrade: h2c"]
    proxy = ["Proxy-Authorization: Basic x", "Proxy-Connection: keep-alive"]
    _, headers = await passed(get("/x", *hop, *proxy, "X-Yours: 2"))
    assert sorted(headers) == ["host", "x-forwarded-for", "x-yours"]


async def test_who_forwarded_before_stays_before_the_peer() -> None:
    _, headers = await passed(get("/x", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"))
    assert headers["x-forwarded-for"] == ["1.2.3.4, 127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["https"]


async def test_repeated_and_non_ascii_headers_stay() -> None:
    _, headers = await passed(get("/x", "X: 1", "X: 2", "Cookie: a=b; c", "X: caf\u00e9", "Authorization: Bearer x"))
    assert headers["x"] == ["1", "2", "caf\u00e9"]
    assert headers["cookie"] == ["a=b; c"]
    assert headers["authorization"] == ["Bearer x"]


async def test_a_client_of_http_1_0_needs_no_host() -> None:
    async with proxied(echo) as setting, wire(setting.port) as client:
        answer = await client.ask(b"GET /x HTTP/1.0\r\n\r\n")
        assert f"Host: 127.0.0.1:{setting.upstream.port}\r\n".encode() in answer.body
        assert await client.ended()


# Bodies up


async def test_a_body_of_stated_length_keeps_it() -> None:
    async def play(peer: Peer) -> None:
        assert b"Content-Length: 5\r\n" in (head := await peer.head())
        assert b"Transfer-Encoding" not in head
        body = await peer.reader.readexactly(5)
        await peer.say(OK + b"Content-Length: 5\r\n\r\n" + body)

    answer, _ = await answer_from(play, post(b"\x1f\x8b\x00\xff!", "Content-Encoding: gzip", path="/x"))
    assert answer.body == b"\x1f\x8b\x00\xff!"


async def test_a_chunked_body_goes_on_chunked_as_it_comes() -> None:
    seen = asyncio.Event()

    async def play(peer: Peer) -> None:
        assert b"Transfer-Encoding: chunked\r\n" in await peer.head()
        assert await peer.reader.readexactly(8) == b"3\r\nabc\r\n"
        seen.set()
        assert await peer.chunks() == b"defg"
        await peer.say(EMPTY)

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x", CHUNKED, method="PUT") + b"3\r\nabc\r\n")
        await asyncio.wait_for(seen.wait(), PATIENCE)
        assert (await client.ask(b"4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n")).status == 200
        setting.upstream.play = echo
        assert (await client.ask(get("/next"))).body.startswith(b"GET /next ")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_any_method_may_have_a_body(method: str) -> None:
    bodies = []

    async def play(peer: Peer) -> None:
        await peer.head()
        bodies.append(await peer.reader.readexactly(4))
        await peer.say(EMPTY)

    data = get("/x", "Content-Length: 4", method=method) + b"body"
    answer, _ = await answer_from(play, data)
    assert answer.status == 200
    assert bodies == [b"body"]


async def test_the_upstreams_leave_to_send_a_body_reaches_the_client() -> None:
    leave = asyncio.Event()

    async def play(peer: Peer) -> None:
        assert b"Expect: 100-continue\r\n" in await peer.head()
        await leave.wait()
        await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await peer.reader.readexactly(4) == b"body"
        await peer.say(EMPTY)

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
        leave.set()
        assert await client.line() == b"HTTP/1.1 100 Continue\r\n"
        assert await client.line() == b"\r\n"
        answer = await client.ask(b"body")
        assert answer.status == 200
        assert answer.header("Connection") is None


async def test_an_early_refusal_passes_without_the_body() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
        assert await peer.gone() == b""

    async with proxied(play) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
        assert (answer.status, answer.body) == (417, b"no")
        assert answer.header("Connection") == "close"
        assert await client.ended()
        assert await setting.outcome() == ("PUT", "4xx")
        assert setting.watch.ends == [WriteEnd.ANSWERED]


async def test_leave_that_comes_with_the_answer_does_not_get_into_it() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nn")
        await pause(0.05)
        await peer.say(b"o")

    async with proxied(play) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
        assert (answer.status, answer.body) == (403, b"no")


async def test_the_head_goes_out_before_the_body_is_here() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    answer, result = await answer_from(play, get("/x", "Content-Length: 4", method="PUT"))
    assert (answer.status, result) == (401, "4xx")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get("/x", "Expect: 100-continue", "Content-Length: 0", method="PUT"), id="no body"),
        pytest.param(post(b"body", "Expect: 100-continue", path="/x", version="1.0"), id="HTTP/1.0"),
    ],
)
async def test_an_expectation_that_means_nothing_is_dropped(data: bytes) -> None:
    async def play(peer: Peer) -> None:
        assert b"Expect" not in await peer.head()
        await peer.say(EMPTY)

    answer, _ = await answer_from(play, data)
    assert answer.status == 200


async def test_an_answer_may_come_while_the_body_is_still_on_its_way() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        assert await peer.reader.readexactly(8) == b"3\r\nabc\r\n"
        await peer.say(OK + b"Content-Length: 6\r\n\r\nabc")
        assert await peer.chunks() == b"def"
        await peer.say(b"def")

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x", CHUNKED, method="POST") + b"3\r\nabc\r\n")
        while await client.line() != b"\r\n":
            pass
        assert await client._reader.readexactly(3) == b"abc"
        await client.send(b"3\r\ndef\r\n0\r\n\r\n")
        assert await rest_of(client) == b"def"


# Requests that are refused


HEAD = "POST /x HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (HEAD + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (HEAD + "Content-Length: 3, 3\r\n\r\nabc", 400),
        (HEAD + "Content-Length: +3\r\n\r\nabc", 400),
        (HEAD + "Content-Length: -3\r\n\r\nabc", 400),
        (HEAD + "Content-Length: 0x3\r\n\r\nabc", 400),
        (HEAD + "Content-Length:\r\n\r\n", 400),
        (HEAD + "Content-Length : 3\r\n\r\nabc", 400),
        (HEAD + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: identity\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + "X: a\r\n b\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "X: a\rb\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "X: a\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "X: a\x00b\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "X Y: a\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + ": a\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "X: caf\xe9\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "Host: y\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc", 400),
        ("GET ftp://config/x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET http://u:p@config/x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET config:8002 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET x/y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /caf\xe9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT config:8002 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ],
)  # fmt: skip
async def test_what_two_parsers_may_read_in_two_ways_goes_no_further(data: str, status: int) -> None:
    async with proxied(echo) as setting, wire(setting.port) as client:
        answer = await client.ask(data.encode("latin-1") + get("/smuggled"))
        assert answer.status == status
        assert answer.problem()
        assert b"/smuggled" not in await rest_of(client)
        assert setting.upstream.connections == 0
        assert setting.watch.writes == []


@pytest.mark.parametrize("data", ["GET /x HTTP/2.0\r\nHost: x\r\n\r\n", "GET /x\r\n\r\n"])
async def test_another_version_of_http_goes_no_further(data: str) -> None:
    async with proxied(echo) as setting, wire(setting.port) as client:
        assert (await client.ask(data.encode())).status == 505
        assert await client.ended()
        assert await setting.outcome() == ("GET", "refused")
        assert setting.upstream.connections == 0


async def test_a_chunk_that_is_none_ends_the_request_at_the_upstream() -> None:
    got = []

    async def play(peer: Peer) -> None:
        await peer.head()
        got.append(await peer.gone())

    async with proxied(play, response_timeout=0.2) as setting, wire(setting.port) as client:
        await client.send(get("/x", CHUNKED, method="PUT") + b"3\r\nabc\r\n")
        await until(lambda: setting.upstream.connections == 1)
        await client.send(b"zz\r\n")
        answer = await client.answer()
        assert answer.status in {400, 408}
        await rest_of(client)
        assert setting.watch.ends == [WriteEnd.LOST]
    assert got == [b"3\r\nabc\r\n"]


# Answers


async def test_an_answer_passes_with_its_own_headers_and_no_others() -> None:
    play = answers(
        b"body", "Date: Mon, 01 Jan 2024 00:00:00 GMT", "Server: uvicorn", "X: caf\xe9", status="203 Caf\xe9"
    )
    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x"))
        head = await client._reader.readuntil(b"\r\n\r\n")
        assert head == (
            b"HTTP/1.1 203 Caf\xe9\r\nContent-Length: 4\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
            b"Server: uvicorn\r\nX: caf\xe9\r\n\r\n"
        )
        assert await client._reader.readexactly(4) == b"body"


async def test_a_date_is_added_where_there_is_none() -> None:
    answer, _ = await answer_from(answers(b"body"))
    assert answer.names == ["Content-Length", "Date"]


async def test_headers_of_an_answer_for_one_hop_do_not_pass() -> None:
    hop = [
        "Connection: close, X-Mine",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2",
    ]
    answer, _ = await answer_from(answers(b"", *hop, "X-Yours: 2"))
    assert answer.names == ["Content-Length", "X-Yours", "Date"]


async def test_cookies_keep_their_order_and_number_and_are_not_kept() -> None:
    cookies = ["a=1; Path=/", "b=2", "a=1; Path=/"]
    async with proxied(answers(b"", *(f"Set-Cookie: {cookie}" for cookie in cookies))) as setting:
        async with wire(setting.port) as client:
            answer = await client.ask(get("/x"))
            assert [value for name, value in answer.headers if name == "Set-Cookie"] == cookies
            setting.upstream.play = echo
        async with wire(setting.port) as client:
            assert b"cookie" not in (await client.ask(get("/x", "Content-Length: 0"))).body.lower()


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "301 Moved", "307 Temporary", "404 Not Found", "422 No",
                                    "429 Too Many", "500 Oops", "503 Not Now"])  # fmt: skip
async def test_any_answer_passes_unchanged(status: str) -> None:
    play = answers(b"\x1f\x8b\xff", "Content-Encoding: gzip", "Location: http://localhost:9102/y/", status=status)
    answer, result = await answer_from(play)
    assert answer.status_line == f"HTTP/1.1 {status}"
    assert answer.body == b"\x1f\x8b\xff"
    assert answer.header("Location") == "http://localhost:9102/y/"
    assert result == f"{status[0]}xx"


async def test_an_answer_to_head_keeps_its_length_and_has_no_body() -> None:
    async def play(peer: Peer) -> None:
        for _ in range(2):
            await peer.head()
            await peer.say(OK + b"Content-Length: 1234\r\n\r\n")

    async with proxied(play) as setting, wire(setting.port) as client:
        for _ in range(2):
            await client.send(get("/x", method="HEAD"))
            answer = await client.answer(to_head=True)
            assert answer.header("Content-Length") == "1234"
            assert answer.header("Transfer-Encoding") is None
        assert setting.upstream.connections == 1


async def test_an_answer_to_head_without_a_length_gets_none() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n")

    answer, _ = await answer_from(play, get("/x", method="HEAD"))
    assert answer.names == ["Date"]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", ["Date"]),
        (b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", ["X", "Date"]),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n", ["Content-Length", "ETag", "Date"]),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", ["Date"]),
    ],
)
async def test_some_answers_end_with_their_head(head: bytes, names: list[str]) -> None:
    async def play(peer: Peer) -> None:
        for _ in range(2):
            await peer.head()
            await peer.say(head)

    async with proxied(play) as setting, wire(setting.port) as client:
        for _ in range(2):
            await client.send(get("/x"))
            assert (await client.answer(to_head=True)).names == names


async def test_informational_answers_are_not_the_answer() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", EMPTY)

    answer, _ = await answer_from(play)
    assert answer.status_line == "HTTP/1.1 200 OK"


CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
TO_THE_END = OK + b"\r\nabcdefg"


@pytest.mark.parametrize("said", [CHUNKS, TO_THE_END])
async def test_a_body_without_a_length_is_chunked(said: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(said)

    async with proxied(play) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x"))
        assert answer.header("Transfer-Encoding") == "chunked"
        assert answer.header("Connection") is None
        assert await Peer(client._reader, client._writer).chunks() == b"abcdefg"
        assert (await client.ask(get("/x"))).status == 200


@pytest.mark.parametrize("said", [CHUNKS, TO_THE_END])
async def test_a_client_of_http_1_0_gets_a_body_without_a_length_to_the_connections_end(said: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(said)

    async with proxied(play) as setting, wire(setting.port) as client:
        answer = await client.ask(b"GET /x HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        assert answer.header("Transfer-Encoding") is None
        assert answer.header("Connection") == "close"
        assert await rest_of(client) == b"abcdefg"


async def test_a_client_of_http_1_0_may_keep_its_connection() -> None:
    async with proxied(answers(b"body")) as setting, wire(setting.port) as client:
        for _ in range(2):
            answer = await client.ask(b"GET /x HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
            assert answer.header("Connection") == "keep-alive"
            assert answer.body == b"body"


async def test_a_client_that_wants_its_connection_closed_is_obeyed() -> None:
    async with proxied(answers(b"body")) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x", "Connection: close"))
        assert answer.header("Connection") == "close"
        assert await client.ended()


async def test_each_piece_of_an_answer_passes_at_once() -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await go.wait()
        await peer.say(b"3\r\nabc\r\n")
        await peer.reader.read()

    async with proxied(play) as setting, wire(setting.port) as client:
        assert (await client.ask(get("/x"))).status == 200
        go.set()
        assert [await client.line(), await client.line()] == [b"3\r\n", b"abc\r\n"]


# Failures


@pytest.mark.parametrize("method", ["GET", "PUT", "PROPFIND"])
@pytest.mark.parametrize(
    ("play", "status", "result"),
    [
        (broken(), 503, "reset"),
        (broken(reset=True), 503, "reset"),
        (broken(OK + b"Content-Le"), 503, "reset"),
        (broken(b"this is not HTTP\r\n\r\n"), 502, "garbage"),
        (broken(OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 502, "garbage"),
        (broken(OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 502, "garbage"),
        (broken(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 502, "garbage"),
        (broken(OK + b"N M: x\r\nContent-Length: 0\r\n\r\n"), 502, "garbage"),
        (broken(OK + b"N: x\x01\r\nContent-Length: 0\r\n\r\n"), 502, "garbage"),
        (broken(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), 502, "garbage"),
        (broken(b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"), 502, "garbage"),
    ],
)
async def test_an_upstream_that_does_not_answer_is_a_problem_and_asked_once(
    play: Play, status: int, result: str, method: str
) -> None:
    async with proxied(play) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x", "Content-Length: 0", method=method))
        assert answer.status == status
        assert answer.header("Retry-After") == ("1" if status == 503 else None)
        assert answer.problem()
        assert (await setting.outcome())[1] == result
        assert setting.upstream.connections == 1
        assert setting.watch.ends == ([] if method == "GET" else [WriteEnd.LOST])
        setting.upstream.play = answers()
        assert (await client.ask(get("/x"))).status == 200  # the client's connection is none the worse


async def test_nobody_at_the_upstreams_address_is_503_and_nothing_was_sent(unused_tcp_port: int) -> None:
    async with proxied(echo, url=f"http://127.0.0.1:{unused_tcp_port}") as setting, wire(setting.port) as client:
        answer = await client.ask(post(b"body", path="/x"))
        assert answer.status == 503
        assert answer.header("Retry-After") == "1"
        assert answer.problem()["detail"] == "The config service cannot be reached."
        assert await setting.outcome() == ("POST", "connect_error")
        assert setting.watch.ends == [WriteEnd.NOT_SENT]


async def test_no_connection_in_time_is_504_and_nothing_was_sent() -> None:
    with full_address() as url:
        async with proxied(echo, url=url, connect_timeout=0.1) as setting, wire(setting.port) as client:
            answer = await client.ask(get("/x", method="DELETE"))
            assert answer.status == 504
            assert answer.problem()["detail"] == "No connection to the config service could be made in time."
            assert await setting.outcome() == ("DELETE", "connect_timeout")
            assert setting.watch.ends == [WriteEnd.NOT_SENT]


async def test_no_head_in_time_is_504() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Le")
        await peer.gone()
        left.set()

    async with proxied(play, response_timeout=0.1) as setting, wire(setting.port) as client:
        answer = await client.ask(get("/x", method="POST"))
        assert answer.status == 504
        assert answer.problem()["detail"] == "The config service did not answer in time."
        assert await setting.outcome() == ("POST", "read_timeout")
        assert setting.watch.ends == [WriteEnd.LOST]
        await asyncio.wait_for(left.wait(), PATIENCE)


async def test_a_client_whose_body_stops_coming_is_told_408() -> None:
    async with proxied(echo, response_timeout=0.1) as setting, wire(setting.port) as client:
        setting.upstream.play = silence
        answer = await client.ask(get("/x", "Content-Length: 10", method="PUT") + b"part")
        assert answer.status == 408
        assert answer.header("Connection") == "close"
        assert await setting.outcome() == ("PUT", "client_timeout")
        assert setting.watch.ends == [WriteEnd.LOST]
        assert await client.ended()


async def test_an_upstream_that_takes_no_more_of_a_body_is_504() -> None:
    async with proxied(silence, response_timeout=0.2) as setting, wire(setting.port) as client:
        sending = asyncio.ensure_future(client.send(get("/x", "Content-Length: 99999999", method="PUT") + b"x" * 2**24))
        assert (await client.answer()).status == 504
        assert await setting.outcome() == ("PUT", "read_timeout")
        sending.cancel()


async def test_patience_begins_anew_with_each_piece_of_a_body() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        assert await peer.reader.readexactly(8) == b"x" * 8
        await peer.say(OK + b"Content-Length: 8\r\n\r\n")
        for piece in b"abcdefgh":
            await pause(0.05)
            await peer.say(bytes([piece]))

    async with proxied(play, response_timeout=0.2, idle_timeout=0.2) as setting, wire(setting.port) as client:
        await client.send(get("/x", "Content-Length: 8", method="PUT"))
        for _ in range(8):
            await pause(0.05)
            await client.send(b"x")
        assert (await client.answer()).body == b"abcdefgh"


# What the watch is told, and what is told of each request


async def leaves(peer: Peer) -> None:
    """Play: wait until the other side leaves."""
    await peer.gone()


async def test_a_write_is_told_before_anything_is_sent() -> None:
    async with proxied(echo) as setting, wire(setting.port) as client:
        connections = []
        began = setting.watch.began

        def watched(method: str, target: str) -> Write:
            connections.append(setting.upstream.connections)
            return began(method, target)

        with patch.object(setting.watch, "began", watched):
            await client.ask(get("http://config//a/../b?c", "Content-Length: 0", method="PROPFIND"))
        assert connections == [0]
        assert setting.watch.writes == [("PROPFIND", "//a/../b?c")]
        assert setting.watch.ends == [WriteEnd.ANSWERED]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
async def test_a_safe_request_is_no_write(method: str) -> None:
    async with proxied(answers()) as setting, wire(setting.port) as client:
        await client.send(get("/x", method=method))
        assert (await client.answer(to_head=True)).status == 200
        assert setting.watch.writes == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize(("status", "end"), [(404, WriteEnd.ANSWERED), (500, WriteEnd.LOST), (504, WriteEnd.LOST)])
async def test_an_answer_is_told_before_the_client_has_any_of_it(method: str, status: int, end: WriteEnd) -> None:
    async with proxied(answers(b"no", status=f"{status} Oops")) as setting, wire(setting.port) as client:
        received: list[bytes] = []

        class Told:
            async def prepare(self) -> None:
                """Have nothing to do."""

            def __call__(self, how: WriteEnd) -> None:
                assert how is end  # a gateway's 504 says nothing of what the service still does
                received.append(bytes(client._reader._buffer))  # type: ignore[attr-defined]

        with patch.object(setting.watch, "began", lambda *_: Told()):
            assert (await client.ask(get("/x", "Content-Length: 0", method=method))).status == status
        assert received == [b""]


async def test_a_watch_may_not_care() -> None:
    async with proxied(answers()) as setting, wire(setting.port) as client:
        with patch.object(setting.watch, "began", lambda *_: None):
            assert (await client.ask(post(b"", path="/x"))).status == 200


async def test_a_client_that_leaves_before_the_answer_ends_the_call_and_the_write_is_lost() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.gone()
        left.set()

    for data, method in ((post(b"body", path="/x"), "POST"), (get("/x"), "GET"), (get("/x", method="PUT"), "PUT")):
        left.clear()
        async with proxied(play) as setting, wire(setting.port) as client:
            await client.send(data)
            await until(lambda: setting.upstream.connections == 1)
            client.abort()
            assert await setting.outcome() == (method, "client_gone")
            assert setting.watch.ends == ([] if method == "GET" else [WriteEnd.LOST])
            await asyncio.wait_for(left.wait(), PATIENCE)


async def test_a_client_that_leaves_in_the_middle_of_its_body_never_makes_it_look_whole() -> None:
    got = asyncio.get_running_loop().create_future()

    async def play(peer: Peer) -> None:
        await peer.head()
        got.set_result(await peer.gone())

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(get("/x", CHUNKED, method="PUT") + b"3\r\nabc\r\n")
        await until(lambda: setting.upstream.connections == 1)
        client.abort()
        assert await asyncio.wait_for(got, PATIENCE) in {b"3\r\nabc\r\n", b""}
        assert await setting.outcome() == ("PUT", "client_gone")
        assert setting.watch.ends == [WriteEnd.LOST]


async def test_a_client_that_leaves_in_the_middle_of_the_answer_ends_the_call() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 9999\r\n\r\nabc")
        await peer.gone()
        left.set()

    async with proxied(play) as setting, wire(setting.port) as client:
        await client.send(post(b"", path="/x"))
        while await client.line() != b"\r\n":
            pass
        client.abort()
        await asyncio.wait_for(left.wait(), PATIENCE)
        assert await setting.outcome() == ("POST", "client_gone")
        assert setting.watch.ends == [WriteEnd.ANSWERED]


async def test_a_request_that_the_shutdown_ends_is_lost() -> None:
    async with proxied(leaves) as setting, wire(setting.port) as client:
        await client.send(post(b"body", path="/x"))
        await until(lambda: setting.upstream.connections == 1)
        await setting.server.shutdown(0.05)
        assert await setting.outcome() == ("POST", "client_gone")
        assert setting.watch.ends == [WriteEnd.LOST]
        assert await client.ended()


async def test_a_write_of_a_crash_is_lost() -> None:
    async with proxied(echo) as setting, wire(setting.port) as client:
        with patch.object(Passage, "run", side_effect=RuntimeError("oops")):
            assert (await client.ask(post(b"", path="/x"))).status == 500
        assert setting.watch.ends == [WriteEnd.ANSWERED]
        with patch.object(Forwarder, "open", side_effect=RuntimeError("oops")):
            async with wire(setting.port) as other:
                assert (await other.ask(post(b"", path="/x"))).status == 500
        assert setting.watch.ends == [WriteEnd.ANSWERED, WriteEnd.LOST]
        assert [event.result for event in setting.events if isinstance(event, Proxied)] == ["crashed", "crashed"]
        assert len([event for event in setting.events if isinstance(event, Crashed)]) == 2


async def test_a_request_without_a_watch_passes() -> None:
    async with proxied(echo, watch=None) as setting, wire(setting.port) as client:
        assert (await client.ask(post(b"", path="/x"))).status == 200


# Not too many at once


async def test_beyond_its_limit_the_proxy_sheds_load_and_recovers() -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await go.wait()
        await peer.say(EMPTY)

    async with proxied(play, max_in_flight=2, queue_timeout=0.1) as setting, AsyncExitStack() as clients:
        first, second, third = [await clients.enter_async_context(wire(setting.port)) for _ in range(3)]
        await first.send(get("/x"))
        await second.send(get("/x"))
        await until(lambda: setting.upstream.connections == 2)
        shed = await third.ask(post(b"", path="/x"))
        assert (shed.status, shed.header("Retry-After")) == (503, "1")
        assert shed.problem()["detail"] == "Too many requests are at the config service already."
        assert await setting.outcome() == ("POST", "overload")
        assert setting.watch.writes == []
        go.set()
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]
        assert (await third.ask(get("/x"))).status == 200


async def test_where_enough_wait_for_a_place_already_one_more_is_refused_at_once() -> None:
    async with (
        proxied(leaves, max_in_flight=1, max_queue=1, queue_timeout=60.0) as setting,
        AsyncExitStack() as clients,
    ):
        first, second, third = [await clients.enter_async_context(wire(setting.port)) for _ in range(3)]
        await first.send(get("/x"))
        await until(lambda: setting.upstream.connections == 1)
        await second.send(get("/x"))
        assert (await third.ask(get("/x"))).status == 503
        setting.upstream.play = echo
        first.abort()
        assert (await second.answer()).status == 200
        assert (await third.ask(get("/x"))).status == 200


async def test_one_that_waits_goes_on_when_another_ends_or_leaves() -> None:
    async with proxied(leaves, max_in_flight=1) as setting, AsyncExitStack() as clients:
        first, second = [await clients.enter_async_context(wire(setting.port)) for _ in range(2)]
        await first.send(get("/x"))
        await until(lambda: setting.upstream.connections == 1)
        setting.upstream.play = echo
        await second.send(get("/x"))
        first.abort()
        assert (await second.answer()).status == 200
