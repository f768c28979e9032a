"""Static reads: asked byte for byte, kept as they came, and only what may serve others."""

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure
from sidecar.core.model import RouteKey, StaticAnswer
from sidecar.upstream.client import UpstreamClient
from sidecar.upstream.static_read import ACCEPTED, StaticReadSource, may_keep
from tests.harness import Exchange, Play, RawUpstream, head_of, raw_upstream

MAX_RESPONSE = 1 << 16
KEY = RouteKey("bot.example:8002", "/api/v1/profiles/")
JSON = b'[{"id":"1","name":"\xd0\xbe"}]'
KNOWN = StaticAnswer(200, (), b"[]")
K = FailureKind


@asynccontextmanager
async def before(plays: Play, *, path: str = "") -> AsyncIterator[tuple[StaticReadSource, RawUpstream]]:
    async with raw_upstream(plays) as upstream:
        client = UpstreamClient(upstream.url + path, connect_timeout=5.0, max_response=MAX_RESPONSE)
        try:
            yield StaticReadSource(client), upstream
        finally:
            await client.close()


def answering(body: bytes = JSON, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Play:
    """Play: this answer."""

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(body, status=status, headers=headers)

    return plays


def told(upstream: RawUpstream, name: str) -> list[str]:
    """Return the values of a header of the last request, as they were sent."""
    lines = [line.partition(": ") for line in upstream.requests[-1].decode("latin-1").split("\r\n")[1:]]
    return [value for each, _, value in lines if each.lower() == name]


async def refusal_of(plays: Play, known: StaticAnswer | None = None) -> UpstreamFailure:
    async with before(plays) as (source, _):
        with pytest.raises(UpstreamFailure) as caught:
            await source.fetch(KEY, known)
        return caught.value


# The request


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/profiles",
        "/api/v1/profiles/",
        "/api/v1/profiles?category=style&category=",
        "/api/v1/profiles?a=%2f%2F&b=%D0%BE&c=%zz&d=%",
        "/api/v1/profiles?a=b+c&d=e;f&&=",
        "/api/v1/profiles?next=http://x/y?z=1",
        "/api/v1/profiles?a='\"<>[]{}|\\^`",
        "/api/v1/profiles?..=/../",
        "/api/v1/profiles/a;b=c,d!$&'()*+@:~-._",
        "/api/v1/users/007/placeholders",
    ],
)
async def test_a_target_is_asked_for_byte_for_byte(target: str) -> None:
    async with before(answering()) as (source, upstream):
        await source.fetch(RouteKey("host", target), None)
        assert upstream.requests[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_a_service_below_a_path_is_asked_there() -> None:
    async with before(answering(), path="/config") as (source, upstream):
        await source.fetch(KEY, None)
        assert upstream.requests[0].startswith(b"GET /config/api/v1/profiles/ HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["bot.example:8002", "127.0.0.1:8002", "[::1]:8002", "LEARNFLOW", "a b"])
async def test_the_host_is_the_clients_for_redirects_are_made_from_it(host: str) -> None:
    async with before(answering()) as (source, upstream):
        await source.fetch(RouteKey(host, "/api/v1/profiles"), None)
        assert told(upstream, "host") == [host]


async def test_nothing_else_of_any_client_is_said_and_nothing_is_asked_on_a_condition() -> None:
    async with before(answering(headers={"ETag": '"1"'})) as (source, upstream):
        known = await source.fetch(KEY, None)
        await source.fetch(KEY, known)
        for name in ("if-none-match", "authorization", "cookie", "x-forwarded-for", "content-length"):
            assert told(upstream, name) == []
        assert told(upstream, "accept-encoding") == ["identity"]


# The answer


@pytest.mark.parametrize(
    "body", [JSON, b"[]", b"null", b'"text"', b" {} \n", b"[" * 500 + b"]" * 500], ids=lambda body: body.decode()[:9]
)
async def test_an_answer_is_kept_as_it_came(body: bytes) -> None:
    async with before(answering(body, headers={"X-Any": "a, b", "ETag": 'W/"1"'})) as (source, _):
        found = await source.fetch(KEY, None)
    assert (found.status, found.body) == (200, body)
    assert {name.lower(): value for name, value in found.headers} == {
        "content-type": "application/json",
        "x-any": "a, b",
        "etag": 'W/"1"',
    }
    assert found.stated_ttl is None
    assert may_keep(found)


@pytest.mark.parametrize("status", sorted(ACCEPTED - {200}))
@pytest.mark.parametrize("body", [b"", b"<html>moved</html>"], ids=["no body", "HTML"])
async def test_a_redirect_is_kept_with_where_it_leads_and_not_followed(status: int, body: bytes) -> None:
    location = {"Location": "http://bot.example:8002/api/v1/profiles/?a=%2F"}
    async with before(answering(body, status=status, headers=location)) as (source, upstream):
        found = await source.fetch(KEY, KNOWN)
        assert len(upstream.requests) == 1
    assert (found.status, found.body) == (status, body)
    assert dict(found.headers)["Location"] == location["Location"]
    assert may_keep(found)


async def test_headers_of_one_hop_and_of_the_moment_are_left_out_and_others_kept_in_their_order() -> None:
    said = (
        b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer: uvicorn\r\nX-One: 1\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nAge: 7\r\nCache-Status: other; hit\r\n"
        b"X-One: 2\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
    )

    async def plays(exchange: Exchange) -> None:
        await exchange.write(said)

    async with before(plays) as (source, _):
        found = await source.fetch(KEY, None)
    assert found.headers == (
        ("Server", "uvicorn"),
        ("X-One", "1"),
        ("X-One", "2"),
        ("Content-Type", "application/json"),
    )


async def test_a_body_in_chunks_is_kept_whole() -> None:
    async def plays(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        await exchange.write(head, b"1\r\n[\r\n", b"1\r\n]\r\n", b"0\r\n\r\n")

    async with before(plays) as (source, _):
        found = await source.fetch(KEY, None)
    assert (found.body, found.headers) == (b"[]", (("Content-Type", "application/json"),))


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_what_came_compressed_though_nobody_asked_for_it_is_not_said_to_be_so_any_more(
    coding: str, compress: Callable[[bytes], bytes]
) -> None:
    async with before(answering(compress(JSON), headers={"Content-Encoding": coding})) as (source, _):
        found = await source.fetch(KEY, None)
    assert found.body == JSON
    assert "Content-Encoding" not in dict(found.headers)


@pytest.mark.parametrize(
    ("body", "is_known", "fails"),
    [
        pytest.param(b"<html>sorry</html>", True, True, id="a page in the place of a known answer"),
        pytest.param(b"", True, True, id="nothing in the place of a known answer"),
        pytest.param(JSON[:-1], True, True, id="half in the place of a known answer"),
        pytest.param(b"[" * 100_000, True, True, id="deep nesting in the place of a known answer"),
        pytest.param(b"<html>hello</html>", False, False, id="a page where nothing is known"),
        pytest.param(b"", False, False, id="nothing where nothing is known"),
    ],
)
async def test_a_page_never_takes_an_answers_place_and_is_passed_on_where_there_was_none(
    body: bytes, is_known: bool, fails: bool
) -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.write(head_of(200, len(body)) + body)

    async with before(plays) as (source, _):
        if fails:
            with pytest.raises(UpstreamFailure) as caught:
                await source.fetch(KEY, KNOWN if is_known else None)
            assert caught.value.kind in {K.GARBAGE, K.BAD_DOCUMENT}
        else:
            found = await source.fetch(KEY, None)
            assert found.body == body
            assert not may_keep(found)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (201, K.GARBAGE),
        (204, K.GARBAGE),
        (206, K.GARBAGE),
        (302, K.GARBAGE),
        (303, K.GARBAGE),
        (304, K.GARBAGE),
        (400, K.GONE),
        (401, K.REFUSED),
        (403, K.REFUSED),
        (404, K.GONE),
        (410, K.GONE),
        (422, K.GONE),
        (429, K.TOO_MANY_REQUESTS),
        (500, K.SERVER_ERROR),
        (503, K.SERVER_ERROR),
    ],
)
async def test_any_other_status_is_a_failure(status: int, kind: FailureKind) -> None:
    body = b"" if status in {204, 304} else b'{"detail":"no"}'
    failure = await refusal_of(answering(body, status=status))
    assert (failure.kind, failure.status) == (kind, status)
    if status >= 400:
        assert failure.answer == Answer(status, body, "application/json")


async def test_an_answer_too_large_is_a_bad_document() -> None:
    assert (await refusal_of(answering(b" " * (MAX_RESPONSE + 1)))).kind is K.BAD_DOCUMENT


# Who may be given it


@pytest.mark.parametrize(
    ("headers", "keep"),
    [
        pytest.param({}, True, id="nothing said"),
        pytest.param({"Content-Type": "text/plain"}, True, id="another type, and JSON all the same"),
        pytest.param({"Cache-Control": "max-age=60"}, True, id="max-age"),
        pytest.param({"Cache-Control": "public, max-age=0"}, True, id="public"),
        pytest.param({"Cache-Control": "no-store"}, False, id="no-store"),
        pytest.param({"cache-control": "NO-STORE"}, False, id="no-store in another case"),
        pytest.param({"Cache-Control": "max-age=60,  private"}, False, id="private"),
        pytest.param({"Cache-Control": 'private="x-user"'}, False, id="private for a field"),
        pytest.param({"Cache-Control": "max-age=1,no-store,public"}, False, id="no-store among others"),
        pytest.param({"Cache-Control": ""}, True, id="an empty Cache-Control"),
        pytest.param({"Cache-Control": "not-private"}, True, id="a word that only holds it"),
        pytest.param({"Set-Cookie": "session=1"}, False, id="Set-Cookie"),
        pytest.param({"SET-COOKIE": ""}, False, id="an empty Set-Cookie in another case"),
        pytest.param({"Vary": "Accept-Encoding"}, True, id="Vary: Accept-Encoding"),
        pytest.param({"Vary": "origin, ACCEPT-ENCODING"}, True, id="Vary: what is never sent"),
        pytest.param({"Vary": "*"}, False, id="Vary: *"),
        pytest.param({"Vary": "Accept-Encoding, *"}, False, id="Vary: * among others"),
        pytest.param({"Vary": "Accept"}, False, id="Vary: Accept"),
        pytest.param({"Vary": "Authorization"}, False, id="Vary: Authorization"),
        pytest.param({"Vary": "Cookie, Origin"}, False, id="Vary: Cookie"),
        pytest.param({"Vary": "Host"}, False, id="Vary: Host"),
        pytest.param({"ETag": '"1"', "Last-Modified": "x", "Expires": "0"}, True, id="validators"),
    ],
)
@pytest.mark.parametrize("status", [200, 307])
def test_what_is_for_one_only_or_one_of_several_is_not_kept(status: int, headers: dict[str, str], keep: bool) -> None:
    assert may_keep(StaticAnswer(status, tuple(headers.items()), b"[]")) is keep


def test_each_of_several_headers_of_a_name_counts() -> None:
    twice = (("Cache-Control", "public"), ("X", "1"), ("Cache-Control", "private"))
    assert not may_keep(StaticAnswer(200, twice, b"[]"))
    assert not may_keep(StaticAnswer(200, twice[::-1], b"[]"))
    assert may_keep(StaticAnswer(200, (("Vary", "Origin"), ("Vary", "Accept-Encoding")), b"[]"))


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"{", b"\xff", b'"\xff"', b"NaN", b"[" * 100_000], ids=lambda body: repr(body[:9])
)
def test_what_the_service_does_not_say_is_not_kept(body: bytes) -> None:
    assert not may_keep(StaticAnswer(200, (), body))
    assert may_keep(StaticAnswer(307, (), body))
