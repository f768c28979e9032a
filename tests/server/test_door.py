"""The door of each listener, on the wire: whom it sends away, and that nothing behind it hears of that."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from aiohttp import web

from sidecar.core.events import Event, Refused
from sidecar.server.door import Door
from tests.wire import Wire, serving, wire


class Behind(NamedTuple):
    """A client before a door, what came through it, and what was told."""

    client: Wire
    heard: list[str]
    events: list[Event]


@asynccontextmanager
async def behind_a_door(*names: str) -> AsyncIterator[Behind]:
    heard: list[str] = []
    events: list[Event] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        heard.append(f"{request.method} {request.raw_path}")
        return web.Response(body=await request.read())

    door = Door(answer, names=names, observer=events.append)
    async with serving(door, events=events) as served, wire(served.port) as client:
        yield Behind(client, heard, events)


def asking(*lines: str, method: str = "POST", target: str = "/x", version: str = "1.1") -> bytes:
    body = b"{}" if method == "POST" else b""
    head = [f"{method} {target} HTTP/{version}", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


async def test_a_request_under_a_name_of_ours_goes_through() -> None:
    async with behind_a_door("Config.", "sidecar.example") as here:
        for host in ("localhost:8002", "127.0.0.1:8002", "[::1]:8002", "10.0.0.7", "config:8002", "Sidecar.Example"):
            assert (await here.client.ask(asking(f"Host: {host}"))).status == 200, host
        assert len(here.heard) == 6
        assert here.events == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_under_a_strangers_name_is_421_and_the_connection_stays(method: str) -> None:
    async with behind_a_door() as here:
        answer = await here.client.ask(asking("Host: rebound.example:8002", method=method))
        assert answer.status == 421
        assert answer.problem()["title"] == "Misdirected Request"
        assert "rebound" not in answer.problem()["detail"]
        assert here.heard == []
        assert here.events == [Refused("host")]
        assert (await here.client.ask(asking("Host: localhost"))).status == 200


async def test_in_absolute_form_the_targets_own_host_counts() -> None:
    async with behind_a_door() as here:
        other = asking("Host: localhost:8002", target="http://rebound.example/x")
        assert (await here.client.ask(other)).status == 421
        ours = asking("Host: rebound.example", target="http://localhost:8002?x")
        assert (await here.client.ask(ours)).status == 200
        assert (await here.client.ask(asking("Host: rebound.example", method="OPTIONS", target="*"))).status == 421


async def test_http_1_0_may_have_no_host() -> None:
    async with behind_a_door() as here:
        assert (await here.client.ask(asking(version="1.0"))).status == 200
    async with behind_a_door() as here:
        assert (await here.client.ask(asking("Host: rebound.example", version="1.0"))).status == 421


@pytest.mark.parametrize("lines", [[], ["Host: localhost", "Host: localhost"], ["Host: localhost", "host: other"]])
async def test_http_1_1_has_exactly_one_host(lines: list[str]) -> None:
    async with behind_a_door() as here:
        answer = await here.client.ask(asking(*lines))
        assert (answer.status, answer.header("Content-Type")) == (400, "application/problem+json")
        assert await here.client.ended()
        assert here.heard == []


@pytest.mark.parametrize(
    "line",
    ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"],
    ids=["site", "null", "fetch"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
async def test_a_foreign_page_can_change_nothing(method: str, line: str) -> None:
    async with behind_a_door() as here:
        answer = await here.client.ask(asking("Host: localhost:8002", "Content-Type: text/plain", line, method=method))
        assert answer.status == 403
        assert answer.problem()["detail"].startswith("A page of another site")
        assert here.heard == []
        assert here.events == [Refused("cross_site")]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_foreign_page_may_ask_for_what_it_cannot_read(method: str) -> None:
    async with behind_a_door() as here:
        await here.client.send(asking("Host: localhost:8002", "Sec-Fetch-Site: cross-site", method=method))
        assert (await here.client.answer(to_head=method == "HEAD")).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_a_foreign_page_may_not_ask_for_what_it_could_read(method: str, origin: str) -> None:
    async with behind_a_door("prompts.example") as here:
        await here.client.send(asking("Host: localhost:8002", f"Origin: {origin}", method=method))
        assert (await here.client.answer(to_head=method == "HEAD")).status == 403
        assert here.heard == []
        await here.client.send(asking("Host: localhost:8002", "Origin: https://prompts.example", method=method))
        assert (await here.client.answer(to_head=method == "HEAD")).status == 200


async def test_a_page_of_ours_can_change_things() -> None:
    async with behind_a_door() as here:
        lines = ("Host: localhost:9102", "Origin: http://localhost:9102", "Sec-Fetch-Site: same-origin")
        assert (await here.client.ask(asking(*lines))).status == 200


async def test_a_refused_request_whose_body_is_still_to_come_ends_the_connection() -> None:
    async with behind_a_door() as here:
        await here.client.send(b"POST /x HTTP/1.1\r\nHost: rebound.example\r\nContent-Length: 9\r\n\r\n")
        answer = await here.client.answer()
        assert (answer.status, answer.header("Connection")) == (421, "close")
        assert await here.client.ended()
