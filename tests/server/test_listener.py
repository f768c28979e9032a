"""The listener as its clients see it: routes, what is no HTTP, what no handler foresaw, connections."""

import asyncio
import logging

import pytest
from aiohttp import web

from sidecar.core.events import Crashed
from sidecar.server.listener import Routes
from tests.wire import Answer, Serving, get, post, serving, until, wire

SECRET = "what the learner wrote"


async def echo(request: web.BaseRequest) -> web.Response:
    return web.Response(body=await request.read())


async def crash(_: web.BaseRequest) -> web.Response:
    raise RuntimeError(SECRET)


async def time_out(_: web.BaseRequest) -> web.Response:
    raise TimeoutError(SECRET)


async def begin_and_crash(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"some")
    raise RuntimeError(SECRET)


async def answer_too_late(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()  # as when a reset has just come, before the request is told of it
    raise ConnectionResetError("Cannot write to closing transport")


ROUTES = Routes(
    {
        ("GET", "/echo"): echo,
        ("POST", "/echo"): echo,
        ("GET", "/crash"): crash,
        ("GET", "/time-out"): time_out,
        ("GET", "/begin"): begin_and_crash,
        ("GET", "/too-late"): answer_too_late,
    }
)


async def answer_to(data: bytes) -> Answer:
    async with serving(ROUTES) as served, wire(served.port) as client:
        await client.send(data)
        answer = await client.answer(to_head=data.startswith(b"HEAD"))
        assert served.events == []
        return answer


# Routes


@pytest.mark.parametrize("target", ["/echo", "/echo?", "/echo?a=1&b=/nothing", "http://localhost:8002/echo?a=1"])
async def test_a_path_is_found_with_any_query_and_in_absolute_form(target: str) -> None:
    answer = await answer_to(post(b"said", path=target))
    assert (answer.status, answer.body) == (200, b"said")


@pytest.mark.parametrize("target", ["/", "/nothing", "/nothing?x=/echo", "/echo/", "//echo", "/Echo", "*"])
async def test_an_unknown_path_is_a_problem(target: str) -> None:
    answer = await answer_to(get(target, method="OPTIONS" if target == "*" else "GET"))
    assert answer.problem()["detail"] == "There is nothing at this path."
    assert answer.status == 404
    assert answer.header("Connection") is None


@pytest.mark.parametrize("target", ["/echo", "/echo?a=1"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_a_method_that_a_path_does_not_take_is_a_problem_that_says_which_it_takes(
    method: str, target: str
) -> None:
    answer = await answer_to(get(target, method=method))
    assert answer.status == 405
    assert answer.header("Allow") == "GET, POST"
    if method != "HEAD":
        assert answer.problem()["detail"] == "/echo takes GET, POST."


async def test_a_problem_leaves_the_connection_open_for_the_next_request() -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        assert (await client.ask(post(b"unread", path="/nothing"))).status == 404
        assert (await client.ask(post(b"said", path="/echo"))).body == b"said"


# What is no HTTP


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /" + b"x" * 1100 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="request line"),
        pytest.param(get("/echo", "X-Long: " + "x" * 1100), id="header line"),
        pytest.param(get("/echo", "X" * 1100 + ": x"), id="header name"),
        pytest.param(get("/echo", *(f"X-{n}: x" for n in range(40))), id="number of headers"),
    ],
)
async def test_a_request_line_or_headers_beyond_the_limits_are_431(data: bytes) -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        answer = await client.ask(data)
        assert answer.status == 431
        assert "limits.max_header or limits.max_headers" in answer.problem()["detail"]
        assert answer.status_line.startswith("HTTP/1.0 ")  # which means close
        assert await client.ended()
        assert served.events == []


async def test_headers_at_the_limits_are_taken() -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        many = [f"X-{n}: x" for n in range(18)]  # Host makes 19 of 20
        assert (await client.ask(get("/echo", "X-Long: " + "x" * 900, *many))).status == 200


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"hello\r\n\r\n", id="words"),
        pytest.param(b"GET /echo HTTP/1.1\r\nno colon\r\n\r\n", id="header without a colon"),
        pytest.param(b"GET /echo HTTP/1.1\r\nBad Name: x\r\n\r\n", id="space in a header's name"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", id="length in words"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", id="two lengths"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length and chunks: request smuggling",
        ),
    ],
)
async def test_what_is_no_http_is_400_without_a_word_of_it_and_ends_the_connection(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        answer = await client.ask(data)
        assert answer.status == 400
        assert answer.problem()["detail"] == "The request is not valid HTTP/1.1."
        assert answer.status_line.startswith("HTTP/1.0 ")  # which means close
        assert await client.ended()
        assert served.events == []
    assert caplog.records == []


async def test_chunks_that_are_none_are_400(caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(ROUTES) as served, wire(served.port) as client:
        answer = await client.ask(head + b"4\r\nsome\r\nnonsense\r\n")
        assert answer.status == 400
        assert answer.problem()["detail"] == "The request is not valid HTTP/1.1."
        assert await client.ended()
        assert served.events == []
    assert caplog.records == []


async def test_chunks_that_turn_into_nonsense_later_are_400_at_once(caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(ROUTES) as served, wire(served.port) as client:
        await client.send(head + b"4\r\nsome\r\n")
        (connection,) = await connected(served)
        await until(lambda: connection._current_request is not None)
        answer = await client.ask(b"nonsense\r\n")
        assert answer.status == 400
        assert answer.problem()["detail"] == "The request is not valid HTTP/1.1."
        assert await client.ended()
        assert served.events == []
    assert caplog.records == []


async def connected(served: Serving) -> list[web.RequestHandler]:
    await until(lambda: bool(served.server.connections))
    return served.server.connections


@pytest.mark.parametrize("data", [get("/nothing"), post(b"", path="/nothing"), get("/echo"), b"nonsense\r\n\r\n"])
async def test_an_answer_says_who_made_it_and_not_of_what(data: bytes) -> None:
    assert (await answer_to(data)).header("Server") == "prompt-sidecar"


async def test_what_was_asked_before_the_garbage_is_answered() -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        assert (await client.ask(post(b"one", path="/echo"))).body == b"one"
        assert (await client.ask(b"garbage\r\n\r\n")).status == 400


# What no handler foresaw


@pytest.mark.parametrize("path", ["/crash", "/time-out"])
async def test_a_crash_is_500_without_its_text_and_is_told(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        answer = await client.ask(get(path))
        assert answer.status == 500
        assert answer.problem()["detail"] == "The sidecar failed to answer; its log says why."
        assert SECRET not in str(answer)
        assert answer.header("Connection") == "close"
        assert await client.ended()
        (told,) = served.events
        assert isinstance(told, Crashed)
        assert (told.what, str(told.error)) == ("request", SECRET)
        async with wire(served.port) as other:
            assert (await other.ask(post(b"on", path="/echo"))).body == b"on"
    assert caplog.records == []


async def test_a_crash_after_the_answer_began_breaks_the_connection_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(ROUTES) as served, wire(served.port) as client:
        await client.send(get("/begin"))
        assert (await client.answer(to_head=True)).status == 200
        assert not await client.ended()  # part of the body came
        (told,) = served.events
        assert isinstance(told, Crashed)
    assert caplog.records == []


# Connections


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    began: list[str] = []
    release = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        began.append(request.raw_path)
        if request.raw_path == "/first":
            await release.wait()
        return web.Response(text=request.raw_path)

    async with serving(answer) as served, wire(served.port) as client:
        await client.send(b"".join(get(path) for path in ("/first", "/second", "/third")))
        await until(lambda: began == ["/first"])
        release.set()
        assert [(await client.answer()).body for _ in range(3)] == [b"/first", b"/second", b"/third"]


@pytest.mark.parametrize("politely", [True, False], ids=["FIN", "RST"])
@pytest.mark.parametrize("sent", ["head", "half of the body"])
async def test_a_client_that_leaves_before_its_request_is_whole_is_no_error(
    sent: str, politely: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reading = asyncio.Event()
    left: list[BaseException] = []

    async def read(request: web.BaseRequest) -> web.Response:
        reading.set()
        try:
            return await echo(request)
        except BaseException as error:
            left.append(error)
            raise

    data = post(b"x" * 100, path="/echo")
    async with serving(read) as served:
        async with wire(served.port) as client:
            await client.send(data[: data.index(b"\r\n\r\n") + 4 + (0 if sent == "head" else 50)])
            await reading.wait()
            if not politely:
                client.abort()
        await until(lambda: len(left) == 1)
        await until(lambda: not served.server.connections)
        assert served.events == []
    assert caplog.records == []


async def test_a_client_that_leaves_before_its_answer_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked, gone = asyncio.Event(), asyncio.Event()
    requests: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        asked.set()
        await gone.wait()
        return web.Response(body=b"x" * 100_000)

    async with serving(answer) as served:
        async with wire(served.port) as client:
            await client.send(get("/"))
            await asked.wait()
            client.abort()
        await until(lambda: requests[0].transport is None)
        gone.set()
        await until(lambda: not served.server.connections)
        assert served.events == []
    assert caplog.records == []


async def test_a_crash_is_told_even_if_the_client_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()
    requests: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError(SECRET)

    async with serving(answer) as served:
        async with wire(served.port) as client:
            await client.send(get("/"))
            await asked.wait()
            client.abort()
        await until(lambda: requests[0].transport is None)
        await until(lambda: not served.server.connections)
        assert [type(event) for event in served.events] == [Crashed]
    assert caplog.records == []


async def test_a_client_that_has_just_gone_is_no_crash() -> None:
    async with serving(ROUTES) as served:
        async with wire(served.port) as client:
            await client.send(get("/too-late"))
            assert await client.ended()
        async with wire(served.port) as client:
            assert (await client.ask(get("/echo"))).status == 200
        assert served.events == []
