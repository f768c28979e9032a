"""What a client may send that it should not: its row of contract §3, or a clean close; and others are served."""

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidecar.settings import LimitSettings
from tests.harness import (
    PATH,
    QUICK_LIMIT,
    Client,
    Exchange,
    Sidecar,
    prompt_data,
    quick_settings,
    raw_upstream,
    sidecar_process,
    sidecar_with,
)

GOOD = {"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}
GOOD_PROMPT = "Explain tides in plain words."
MAX_BODY = 768 * 1024
LIMITS = LimitSettings(max_body=MAX_BODY, max_header=4096, max_headers=50)
DEEP = 100_000
MIB = 1024 * 1024


async def plays(exchange: Exchange) -> None:
    if exchange.node == "explain":
        await exchange.answer(prompt_data())
    elif exchange.node == "everything":
        await exchange.answer(prompt_data("{{ topic }}", render={"autoescape": False}))
    else:
        await exchange.answer({"detail": "Template not found"}, status=404)


@pytest.fixture
async def sidecar() -> AsyncIterator[Sidecar]:
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, limits=LIMITS)) as running,
    ):
        yield running


@asynccontextmanager
async def others_are_served(client: Client) -> AsyncIterator[None]:
    """Ask for good prompts all the while; each comes, and comes soon."""
    await client.ask()
    over = False

    async def ask() -> None:
        while not over:
            answered = await client.ask()
            assert answered.prompt == GOOD_PROMPT
            assert answered.seconds < QUICK_LIMIT

    asking = asyncio.ensure_future(ask())
    try:
        yield
    finally:
        over = True
        await asking


def encoded(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def request(body: bytes, *lines: str, length: int | None = None) -> bytes:
    """Return the bytes of a request that ends its connection."""
    fields = [
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(body) if length is None else length}",
        *lines,
    ]
    return (f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in fields) + "\r\n").encode() + body


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)  # 1.0 where the request's own version could not be read
    assert found is not None, answer[:200]
    return int(found[1])


BROKEN_BODIES = {
    "nothing": b"",
    "white space": b"  \r\n ",
    "no JSON": b"user_id=1&node_name=explain",
    "half of it": encoded()[:30],
    "more than one": encoded() * 2,
    "a comment": b"/* */" + encoded(),
    "an array": b"[1, 2]",
    "a text": b'"explain"',
    "a number": b"7",
    "null": b"null",
    "NUL": b"\x00" * 100,
    "not UTF-8": encoded().replace(b"tides", b"\xff\xfe\xfd"),
    "UTF-7": codecs.encode(encoded().decode(), "utf-7").replace(b"{", b"+AHs-"),
    "Latin-1": encoded().replace(b"tides", "ü".encode("latin-1")),
    "gzip without saying so": b"\x1f\x8b\x08\x00" + b"x" * 50,
    "arrays without end": b"[" * DEEP,
    "objects without end": b'{"a":' * DEEP,
    "deep, and closed": b"[" * DEEP + b"]" * DEEP,
    "a deep context": encoded().replace(b'"tides"', b"[" * DEEP + b"]" * DEEP),
    "no user": json.dumps({"node_name": "explain"}).encode(),
    "no node": json.dumps({"user_id": 1}).encode(),
    "an empty node": encoded(node_name=""),
    "a node that is a number": encoded(node_name=7),
    "a node with a lone surrogate": encoded(node_name="\ud800"),
    "a user that is zero": encoded(user_id=0),
    "a negative user": encoded(user_id=-5),
    "a user that is a fraction": encoded(user_id=1.5),
    "a user that is text": encoded(user_id="me"),
    "a user that is null": encoded(user_id=None),
    "a user without end": encoded().replace(b'"user_id": 1', b'"user_id": ' + b"9" * 10_000),
    "an infinite user": encoded().replace(b'"user_id": 1', b'"user_id": 1e999'),
    "a context that is a list": encoded(context=["topic"]),
    "a context that is text": encoded(context="topic"),
    "a context that is null": encoded(context=None),
    "a context with a lone surrogate": encoded(context={"topic": "\ud800"}),
}


@pytest.mark.parametrize("broken", BROKEN_BODIES)
async def test_a_body_that_breaks_the_schema_is_422_and_says_where(broken: str, sidecar: Sidecar) -> None:
    async with others_are_served(sidecar):
        answered = await sidecar.send(BROKEN_BODIES[broken])
        assert (answered.status, answered.is_problem) == (422, True), answered
        assert "The request breaks the schema: " in answered.document["detail"]
        assert answered.seconds < QUICK_LIMIT


@pytest.mark.parametrize("depth", [10, 100, 400, 900, 980, 1000, 1020, 1100, 1500, 5000, 50_000])
@pytest.mark.parametrize("node", ["explain", "everything"])
async def test_content_of_any_depth_is_rendered_or_refused(depth: int, node: str, sidecar: Sidecar) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        nested = opening * depth + b"1" + closing * depth
        for key in ("topic", "unused"):
            context = b'{"topic": "x", "%s": %s}' % (key.encode(), nested)
            body = b'{"user_id": 1, "node_name": "%s", "context": %s}' % (node.encode(), context)
            answered = await sidecar.send(body)
            assert answered.status in ({200} if depth <= 100 else {200, 422}), answered


@pytest.mark.parametrize(
    "value",
    [
        b"1" * 30,
        b"1" * 400,
        b"-" + b"1" * 400,
        b"1" * 5000,
        b"1e400",
        b"-1e400",
        b"1e-400",
        b"NaN",
        b"Infinity",
        b"0.1",
    ],
    ids=lambda value: value[:12].decode(),
)
async def test_a_number_of_any_size_is_rendered_or_refused(value: bytes, sidecar: Sidecar) -> None:
    for node in ("explain", "everything"):
        for context in (b'{"topic": %s}', b'{"topic": [%s]}', b'{"topic": "x", "unused": %s}'):
            body = b'{"user_id": 1, "node_name": "%s", "context": %s}' % (node.encode(), context % value)
            answered = await sidecar.send(body)
            assert answered.status in {200, 422}, answered


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
async def test_an_encoding_that_the_config_service_reads_is_read(encoding: str, sidecar: Sidecar) -> None:
    assert (await sidecar.send(json.dumps(GOOD).encode(encoding))).prompt == GOOD_PROMPT


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/jsonp"}, 415),
        ({"Content-Type": "%%%"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "nonsense"}, 415),
        ({"Content-Type": "application/json; charset=klingon"}, 200),
        ({"Content-Type": "application/problem+json"}, 200),
        ({"Accept": "image/png"}, 200),
        ({"Cache-Control": "max-stale=x, =, ,,no-such, max-stale=99999999999999999999"}, 200),
    ],
)
async def test_a_header_that_says_another_thing_gets_its_row(
    headers: dict[str, str], status: int, sidecar: Sidecar
) -> None:
    answered = await sidecar.send(encoded(), headers)
    assert answered.status == status
    assert status == 200 or answered.is_problem


async def chunks(size: int, each: int = 8192) -> AsyncIterator[bytes]:
    for _ in range(0, size, each):
        yield b"x" * each


async def test_a_body_over_the_limit_is_413_whether_its_length_was_said_or_not(sidecar: Sidecar) -> None:
    async with others_are_served(sidecar):
        exact = encoded(context={"topic": ""})
        fits = await sidecar.ask(context={"topic": "x" * (MAX_BODY - len(exact))})
        assert fits.status == 200
        over = await sidecar.ask(context={"topic": "x" * (MAX_BODY - len(exact) + 1)})
        assert (over.status, over.is_problem) == (413, True)
        said = await sidecar.raw(request(b"", length=10**12), head_only=True)
        assert (status_of(said), b"application/problem+json" in said) == (413, True)
        unsaid = await asyncio.gather(sidecar.send(chunks(MAX_BODY + 8192)), return_exceptions=True)
        assert isinstance(unsaid[0], ConnectionError) or (unsaid[0].status, unsaid[0].is_problem) == (413, True)  # type: ignore[union-attr]


async def test_a_chunked_body_within_the_limit_is_read(sidecar: Sidecar) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in encoded():
            yield bytes([byte])

    assert (await sidecar.send(pieces())).prompt == GOOD_PROMPT


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["X-Long: " + "x" * 5000], id="a long value"),
        pytest.param(["X-" + "x" * 5000 + ": x"], id="a long name"),
        pytest.param(["X-Very-Long: " + "x" * 5 * MIB], id="five megabytes of it"),
        pytest.param([f"X-{n}: x" for n in range(100)], id="many lines"),
    ],
)
async def test_headers_beyond_the_limits_are_431(lines: list[str], sidecar: Sidecar) -> None:
    async with others_are_served(sidecar):
        answer = await sidecar.raw(request(encoded(), *lines))
        assert answer == b"" or status_of(answer) == 431
        if len("".join(lines)) < MIB:
            assert b"application/problem+json" in answer


async def test_a_long_request_line_is_431(sidecar: Sidecar) -> None:
    answer = await sidecar.raw(b"POST /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status_of(answer), b"application/problem+json" in answer) == (431, True)


@pytest.mark.parametrize("node", ["nowhere", " ", "EXPLAIN", "explain ", "../explain", "e" * 10_000, "\u0000", "😀"])
async def test_an_unknown_node_gets_the_upstreams_own_answer(node: str, sidecar: Sidecar) -> None:
    answered = await sidecar.ask(1, node)
    assert (answered.status, answered.document) == (404, {"detail": "Template not found"})


RESERVED = [
    *("self", "loop", "range", "__class__", "environment", "context", "", "caller", "varargs", "kwargs", "namespace"),
    *("l_0_topic", "undefined", "True", "none", "dict", "lipsum", "__builtins__", "resolve", "missing", "t_1"),
]


@pytest.mark.parametrize("template", ["Explain {{ topic }}.", "Explain {% if topic %}{{ topic|trim }}{% endif %}."])
async def test_a_context_key_that_jinja_uses_itself_is_a_key_like_any_other(template: str) -> None:
    async def serve(exchange: Exchange) -> None:
        await exchange.answer(prompt_data(template))

    async with raw_upstream(serve) as upstream, sidecar_with(quick_settings(upstream.url)) as sidecar:
        for name in RESERVED:
            answered = await sidecar.ask(context={"topic": "tides", name: "x"})
            assert answered.prompt == "Explain tides."
            assert answered.document["used_placeholders"] == {"topic": "tides", name: "x"}
        everything = dict.fromkeys(RESERVED, "x")
        assert (await sidecar.ask(context={"topic": "tides", **everything})).prompt == "Explain tides."


async def test_ten_thousand_node_names_make_no_series_and_keep_nothing(tmp_path: Path) -> None:
    async def serve(exchange: Exchange) -> None:
        if exchange.node.startswith("known"):
            await exchange.answer(prompt_data())
        else:
            await plays(exchange)

    async with (
        raw_upstream(serve) as upstream,
        sidecar_process(upstream.url, tmp_path, METRICS__MAX_NODES="5", CACHE__MAX_ENTRIES="100") as sidecar,
    ):
        await ask_names(sidecar, (f"random {n}" for n in range(200)))
        series, memory = await series_of(sidecar), psutil.Process(sidecar.pid).memory_info().rss
        await ask_names(sidecar, (f"random {n}" for n in range(200, 1_000)))
        await ask_names(sidecar, (f"random {n}" for n in range(1_000, 10_000)), "Cache-Control: only-if-cached")
        assert await series_of(sidecar) == series
        assert "random" not in "".join(series)
        await ask_names(sidecar, (f"known {n}" for n in range(150)))
        known = {line for line in await series_of(sidecar) if 'node="known' in line}
        assert len(set(re.findall(r'node="(known \d+)"', "".join(known)))) == 5
        assert 'cache_entries{tier="memory"} 100.0' in await sidecar.metrics()
        assert psutil.Process(sidecar.pid).memory_info().rss - memory < 16 * MIB


async def ask_names(client: Client, names: Iterable[str], *lines: str) -> None:
    """Ask for each node once, pipelined over few connections: here the connection is not what is looked at."""

    async def some() -> None:
        reader, writer = await asyncio.open_connection(*client.address)
        while batch := [*islice(rest, 25)]:
            bodies = [encoded(node_name=name) for name in batch]
            writer.write(b"".join(request(body, *lines).replace(b"Connection: close\r\n", b"") for body in bodies))
            for _ in batch:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
        writer.close()
        await writer.wait_closed()

    rest = iter(names)
    await asyncio.gather(*(some() for _ in range(8)))


async def series_of(client: Client) -> set[str]:
    """Return the names and labels of all series about requests, without their values."""
    lines = (await client.metrics()).splitlines()
    return {line.rpartition(" ")[0] for line in lines if line.startswith("prompt_sidecar_")}


async def test_half_a_body_and_then_nothing_is_408_by_the_deadline(sidecar: Sidecar) -> None:
    async with others_are_served(sidecar):
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(
            sidecar.raw(request(encoded()[:20], length=200), head_only=True),
            sidecar.raw(request(b"", length=200), head_only=True),
            sidecar.raw(chunked(b'5\r\n{"use\r\n'), head_only=True),
            sidecar.raw(chunked(b"FFFFFF\r\n{"), head_only=True),
        )
        assert asyncio.get_running_loop().time() - began < QUICK_LIMIT
        for answer in answers:
            assert (status_of(answer), b"application/problem+json" in answer) == (408, True)


async def test_a_body_that_drips_is_408_by_the_deadline(sidecar: Sidecar) -> None:
    body = encoded()
    async with others_are_served(sidecar):
        reader, writer = await asyncio.open_connection(*sidecar.address)
        began = asyncio.get_running_loop().time()
        writer.write(request(b"", length=len(body)))
        answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        for byte in body:
            if answer.done():
                break
            writer.write(bytes([byte]))
            await asyncio.wait([answer], timeout=0.05)
        assert asyncio.get_running_loop().time() - began < QUICK_LIMIT
        assert status_of(await answer) == 408
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def chunked(body: bytes) -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + body
    )


async def test_a_client_that_hangs_up_at_any_point_costs_the_others_nothing(sidecar: Sidecar) -> None:
    whole = request(encoded(context={"topic": "x" * 100_000}))
    async with others_are_served(sidecar):
        for cut in (0, 1, 10, 40, len(whole) - 100_050, len(whole) - 50_000, len(whole) - 1, len(whole)):
            for abort in (False, True):
                _, writer = await asyncio.open_connection(*sidecar.address)
                writer.write(whole[:cut])
                if abort:
                    writer.transport.abort()
                writer.close()
                await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert (await sidecar.ask()).prompt == GOOD_PROMPT


GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "line ends": b"\r\n" * 1000,
    "NUL": b"\x00" * 1000,
    "no version": b"POST /api/v1/generate-prompt\r\n\r\n",
    "an unknown version": f"POST {PATH} HTTP/9.9\r\nHost: localhost\r\n\r\n".encode(),
    "no header name": f"POST {PATH} HTTP/1.1\r\n: x\r\n\r\n".encode(),
    "a header without a colon": f"POST {PATH} HTTP/1.1\r\nHost x\r\n\r\n".encode(),
    "a folded header": f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n".encode(),
    "a length that is no number": request(b"", length=0).replace(b"Length: 0", b"Length: x"),
    "a negative length": request(b"", length=0).replace(b"Length: 0", b"Length: -1"),
    "two lengths": request(b"{}", "Content-Length: 900"),
    "a length and chunks": request(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    "a chunk size that is no number": chunked(b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk size": chunked(b"-1\r\n{}\r\n0\r\n\r\n"),
    "an endless chunk size": chunked(b"F" * 100_000),
    "an unknown transfer encoding": request(b"{}").replace(b"Content-Length: 2", b"Transfer-Encoding: brotli"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_what_is_no_http_gets_a_4xx_or_a_clean_close(garbage: str, sidecar: Sidecar) -> None:
    async with others_are_served(sidecar):
        answer = await sidecar.raw(GARBAGE[garbage], end=True)
        if answer:
            assert 400 <= status_of(answer) < 500, answer
            assert b"application/problem+json" in answer
            assert answer.count(b"HTTP/1.") == 1


async def test_expect_100_continue_is_answered_before_the_body_is_sent(sidecar: Sidecar) -> None:
    body = encoded()
    reader, writer = await asyncio.open_connection(*sidecar.address)
    writer.write(request(b"", "Expect: 100-continue", length=len(body)))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    answer = await reader.read()
    assert status_of(answer) == 200
    assert GOOD_PROMPT.encode() in answer
    writer.close()
    await writer.wait_closed()


async def test_expect_100_continue_for_a_body_that_is_too_large_is_refused_instead(sidecar: Sidecar) -> None:
    answer = await sidecar.raw(request(b"", "Expect: 100-continue", length=MAX_BODY + 1), head_only=True)
    assert status_of(answer) == 413


async def test_pipelined_requests_are_answered_in_order_the_bad_ones_among_them_too(sidecar: Sidecar) -> None:
    def one(body: bytes, *, last: bool = False) -> bytes:
        whole = request(body)
        return whole if last else whole.replace(b"Connection: close\r\n", b"")

    answer = await sidecar.raw(
        one(encoded())
        + one(encoded(node_name="nowhere"))
        + one(b"{")
        + one(encoded(context={}))
        + one(encoded(), last=True)
    )
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) == [b"200", b"404", b"422", b"422", b"200"]


async def test_a_burst_of_everything_bad_at_once_leaves_the_sidecar_as_it_was(tmp_path: Path) -> None:
    async with (
        raw_upstream(plays) as upstream,
        sidecar_process(
            upstream.url,
            tmp_path,
            DEADLINE="600ms",
            RETRY__PER_TRY_TIMEOUT="150ms",
            POLICY__DEFAULT__NETWORK_TIMEOUT="150ms",
        ) as sidecar,
    ):
        process = psutil.Process(sidecar.pid)
        async with others_are_served(sidecar):
            await bad_burst(sidecar)
        connections, memory = len(process.net_connections()), process.memory_info().rss
        for _ in range(3):
            async with others_are_served(sidecar):
                await bad_burst(sidecar)
        assert len(process.net_connections()) <= connections + 2
        assert process.memory_info().rss - memory < 16 * MIB
        assert (await sidecar.ask()).prompt == GOOD_PROMPT
    assert b"crashed" not in sidecar.log
    assert b"library_error" not in sidecar.log


async def bad_burst(client: Client) -> None:
    bodies: list[Any] = [client.send(body) for body in BROKEN_BODIES.values()]
    garbage: list[Any] = [client.raw(each, end=True) for each in GARBAGE.values()]
    await asyncio.gather(*bodies, *garbage)
