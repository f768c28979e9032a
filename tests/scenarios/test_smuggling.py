"""Requests that two parsers could read in two ways: refused, the connection ended, and nothing of them passed on."""

import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import Exchange, RawUpstream, Sidecar, quick_settings, raw_upstream, sidecar_with

LINE = "POST /api/v1/users/1/reset HTTP/1.1\r\nHost: localhost\r\n"
HIDDEN = "GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""What an attacker wants the next parser to take for a request of its own."""


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer({})

    async with raw_upstream(plays) as made:
        yield made


@pytest.fixture
async def sidecar(upstream: RawUpstream) -> AsyncIterator[Sidecar]:
    async with sidecar_with(quick_settings(upstream.url)) as made:
        yield made


AMBIGUOUS = {
    "length, then chunks": f"{LINE}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "chunks, then length": f"{LINE}Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two lengths": f"{LINE}Content-Length: 0\r\nContent-Length: {len(HIDDEN)}\r\n\r\n{HIDDEN}",
    "the same length twice": f"{LINE}Content-Length: 0\r\nContent-Length: 0\r\n\r\n{HIDDEN}",
    "lengths in a list": f"{LINE}Content-Length: 0, 5\r\n\r\n{HIDDEN}",
    "a signed length": f"{LINE}Content-Length: +0\r\n\r\n{HIDDEN}",
    "a length in hexadecimal": f"{LINE}Content-Length: 0x0\r\n\r\n{HIDDEN}",
    "a length with a blank within": f"{LINE}Content-Length: 0 0\r\n\r\n{HIDDEN}",
    "a length beyond any": f"{LINE}Content-Length: {'9' * 40}\r\n\r\n{HIDDEN}",
    "chunked twice": f"{LINE}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two codings": f"{LINE}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{HIDDEN}",
    "an unknown coding": f"{LINE}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a coding after chunked": f"{LINE}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a blank before the colon": f"{LINE}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a blank before the name": f"{LINE} Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a folded coding": f"{LINE}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a folded length": f"{LINE}Content-Length: 0\r\n 5\r\n\r\n{HIDDEN}",
    "bare line feeds": f"{LINE}Content-Length: 0\r\n\r\n".replace("\r\n", "\n"),
    "a bare line feed within": f"{LINE}X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a bare carriage return": f"{LINE}X: y\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a value": f"{LINE}X: y\0z\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a name": f"{LINE}X\0: y\r\nContent-Length: 0\r\n\r\n",
    "a header without a name": f"{LINE}: y\r\nContent-Length: 0\r\n\r\n",
    "a signed chunk size": f"{LINE}Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a prefix": f"{LINE}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond any": f"{LINE}Transfer-Encoding: chunked\r\n\r\n{'F' * 17}\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": f"{LINE}Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk ended by a line feed": f"{LINE}Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "a line feed in a chunk extension": f"{LINE}Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": f"{LINE}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}".replace(
        "HTTP/1.1", "HTTP/1.0", 1
    ),
    "two hosts": f"{LINE}Host: localhost\r\nContent-Length: 0\r\n\r\n",
    "no host": "POST /api/v1/users/1/reset HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "a tab for a blank": f"{LINE}Content-Length: 0\r\n\r\n".replace(" HTTP", "\tHTTP"),
    "a version that is none": f"{LINE}Content-Length: 0\r\n\r\n".replace("HTTP/1.1", "HTTP/1.1.1"),
    "HTTP/2's preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_of_it_passed_on(
    name: str, sidecar: Sidecar, upstream: RawUpstream
) -> None:
    answered = await sidecar.raw(AMBIGUOUS[name].encode("latin-1"))  # all that comes until the connection ends
    statuses = [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answered)]
    assert len(statuses) == 1
    assert statuses[0] in {400, 431, 501, 505}
    assert b"application/problem+json" in answered
    assert not any(b"hidden" in each for each in upstream.requests)
    assert not any(each.startswith(b"POST") and b"\r\n\r\n" in each for each in upstream.requests)


async def test_a_chunk_extension_and_a_trailer_are_not_passed_on(sidecar: Sidecar, upstream: RawUpstream) -> None:
    data = f"{LINE}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Trailer: t\r\n\r\n"
    assert b" 200 " in await sidecar.raw(data.encode(), head_only=True)
    assert not any(b"a=b" in each or b"X-Trailer" in each for each in upstream.requests)


PIECES = st.sampled_from(
    [
        *(
            "\r\n",
            "\n",
            "\r",
            " ",
            "\t",
            "\0",
            ":",
            ",",
            ";",
            "0",
            "5",
            "hello",
            "é",
            "\x7f",
            "HTTP/1.1",
            "GET /hidden ",
        ),
        *("Content-Length: ", "Transfer-Encoding: ", "chunked", "identity", "Host: ", "localhost", "Connection: "),
        *("close", "keep-alive", "Upgrade: ", "Expect: 100-continue", "POST /api/v1/users/1/reset HTTP/1.1\r\n"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(PIECES, min_size=1, max_size=25).map("".join))
async def test_whatever_is_sent_nothing_crashes_and_no_more_requests_go_up_than_were_answered(
    data: str, sidecar: Sidecar, upstream: RawUpstream
) -> None:
    before = len(upstream.requests)
    answered = await sidecar.raw(LINE.encode() + data.encode("latin-1", "replace") + b"\r\n\r\n", end=True)
    statuses = [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answered)]
    assert 500 not in statuses
    assert len(upstream.requests) - before <= max(1, len(statuses))
