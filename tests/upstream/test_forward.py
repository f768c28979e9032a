"""The forwarder before raw sockets: which connection a request takes, and how often it is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.service.forwarding import ForwardRequest
from sidecar.upstream.client import IDLE_SECONDS
from sidecar.upstream.forward import Forwarder
from tests.proxying import EMPTY, OK, Peer, Play, Upstream, answers, broken, echo, pause, silence
from tests.wire import until

SAFE = ["GET", "HEAD", "OPTIONS", "TRACE"]
WRITES = ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"]


@asynccontextmanager
async def forwarding(play: Play) -> AsyncIterator[tuple[Forwarder, Upstream]]:
    async with Upstream(play).running() as upstream:
        forwarder = Forwarder(upstream.url, connect_timeout=5.0)
        try:
            yield forwarder, upstream
        finally:
            await forwarder.close()


async def body() -> AsyncIterator[bytes]:
    yield b"some"
    yield b"body"


async def ask(forwarder: Forwarder, method: str = "GET", *, with_body: bool = False) -> tuple[int, bytes]:
    request = ForwardRequest(method, "/x", [("Host", "config")], body() if with_body else None)
    async with forwarder.open(request) as answer:
        content = b""
        while piece := await answer.read():
            content += piece
        return answer.status, content


async def failure_of(forwarder: Forwarder, method: str = "GET", *, with_body: bool = False) -> FailureKind:
    with pytest.raises(UpstreamFailure) as caught:
        await ask(forwarder, method, with_body=with_body)
    return caught.value.kind


# Which connection


@pytest.mark.parametrize("method", SAFE)
async def test_safe_requests_share_a_connection(method: str) -> None:
    async with forwarding(answers()) as (forwarder, upstream):
        for _ in range(3):
            assert (await ask(forwarder, method))[0] == 200
        assert upstream.connections == 1


@pytest.mark.parametrize("method", WRITES)
async def test_each_write_has_a_connection_of_its_own(method: str) -> None:
    heads = []

    async def play(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.say(EMPTY)

    async with forwarding(play) as (forwarder, upstream):
        for _ in range(3):
            assert (await ask(forwarder, method))[0] == 200
        assert upstream.connections == 3
    assert all(b"\r\nConnection: close\r\n" in head for head in heads)


async def test_a_read_with_a_body_has_a_connection_of_its_own_too() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        assert await peer.chunks() == b"somebody"
        await peer.say(EMPTY)

    async with forwarding(play) as (forwarder, upstream):
        for _ in range(2):
            assert (await ask(forwarder, with_body=True))[0] == 200
        assert upstream.connections == 2


async def test_a_connection_is_kept_for_less_than_the_config_service_keeps_it() -> None:
    assert IDLE_SECONDS < 5
    async with forwarding(answers()) as (forwarder, _):
        assert forwarder._kept.connector._keepalive_timeout == IDLE_SECONDS  # type: ignore[union-attr]


async def test_a_connection_whose_answer_was_not_read_is_not_used_again() -> None:
    async with forwarding(answers(b"x" * 2**20)) as (forwarder, upstream):
        for _ in range(2):
            async with forwarder.open(ForwardRequest("GET", "/x", [])) as answer:
                assert answer.status == 200
        assert upstream.connections == 2


async def test_a_kept_connection_carries_many_answers_and_remembers_none() -> None:
    async with forwarding(answers(b"body")) as (forwarder, upstream):
        for _ in range(50):
            async with forwarder.open(ForwardRequest("GET", "/x", [])) as answer:
                lost = answer._lost
                assert await answer.read() == b"body"
        assert upstream.connections == 1
        if lost is not None:
            assert len(lost._callbacks) == 1


# How often


class DyingConnections:
    """Play: a whole answer, and then no more on this connection, whatever is asked on it."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset
        self.requests: list[bytes] = []
        self.unanswered = 0
        self.dead = False

    async def __call__(self, peer: Peer) -> None:
        self.requests.append(await peer.head())
        if not self.dead:
            await peer.say(EMPTY)
            self.requests.append(await peer.head())
        self.unanswered += 1
        if self.reset:
            peer.reset()


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("method", SAFE)
async def test_a_kept_connection_that_dies_as_it_is_used_is_never_seen(method: str, *, reset: bool) -> None:
    play = DyingConnections(reset=reset)
    async with forwarding(play) as (forwarder, upstream):
        for _ in range(4):
            assert (await ask(forwarder, method))[0] == 200
        assert upstream.connections >= 3
        assert play.unanswered >= 1


async def test_an_answer_that_came_unasked_is_nobodys() -> None:
    unasked, seen = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 4\r\n\r\nmine")
        await unasked.wait()
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 6\r\n\r\nothers")
        seen.set()
        assert await peer.gone() == b""

    async with forwarding(play) as (forwarder, upstream):
        assert await ask(forwarder) == (200, b"mine")
        unasked.set()
        await seen.wait()
        await pause(0.05)
        assert await ask(forwarder) == (200, b"mine")
        assert upstream.connections == 2


@pytest.mark.parametrize("left", [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold", b"HTTP/1.1 20", b"garbage"])
async def test_what_came_with_an_answer_is_not_the_next_ones(left: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: 4\r\n\r\nmine" + left)
        await peer.head()
        await peer.say(OK + b"Content-Length: 4\r\n\r\nmine")

    async with forwarding(play) as (forwarder, _):
        for _ in range(3):
            try:
                assert await ask(forwarder) == (200, b"mine")
            except UpstreamFailure as failure:
                assert failure.kind is FailureKind.GARBAGE  # noqa: PT017 — either is right


async def test_a_read_is_sent_twice_at_most() -> None:
    play = DyingConnections(reset=True)
    async with forwarding(play) as (forwarder, _):
        assert (await ask(forwarder))[0] == 200
        play.dead = True
        assert await failure_of(forwarder) is FailureKind.RESET
        assert len(play.requests) == 3


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("with_body", [True, False])
@pytest.mark.parametrize("method", WRITES)
async def test_a_write_is_sent_once_whatever_becomes_of_it(method: str, *, with_body: bool, reset: bool) -> None:
    async with forwarding(broken(reset=reset)) as (forwarder, upstream):
        assert await failure_of(forwarder, method, with_body=with_body) is FailureKind.RESET
        assert upstream.connections == 1


async def test_a_write_does_not_use_a_connection_that_a_read_left() -> None:
    play = DyingConnections(reset=True)
    async with forwarding(play) as (forwarder, upstream):
        assert (await ask(forwarder))[0] == 200
        assert (await ask(forwarder, "PUT"))[0] == 200
        assert upstream.connections == 2


@pytest.mark.parametrize("method", SAFE)
async def test_a_read_that_breaks_on_a_new_connection_is_not_repeated(method: str) -> None:
    async with forwarding(broken(reset=True)) as (forwarder, upstream):
        assert await failure_of(forwarder, method) is FailureKind.RESET
        assert upstream.connections == 1


async def test_a_read_that_breaks_off_in_its_body_is_not_repeated() -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(EMPTY)
        await peer.head()
        await peer.say(OK + b"Content-Length: 10\r\n\r\nabc")

    async with forwarding(play) as (forwarder, upstream):
        assert (await ask(forwarder))[0] == 200
        assert await failure_of(forwarder) is FailureKind.RESET
        assert upstream.connections == 1


async def test_a_call_that_is_given_up_leaves_no_socket_behind_where_the_upstream_reads_no_more() -> None:
    process = psutil.Process()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**16)

    async with forwarding(silence) as (forwarder, _):
        before = process.num_fds()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), forwarder.open(ForwardRequest("PUT", "/x", [], endless())):
                pass
        await until(lambda: process.num_fds() == before + 1)  # the upstream's own end


async def test_a_timeout_is_not_repeated() -> None:
    async with forwarding(silence) as (forwarder, upstream):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(forwarder), 0.05)
        assert upstream.connections == 1


# The rest


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    async with forwarding(answers(b"", "Location: /y/", "Set-Cookie: a=1", status="307 Temporary")) as (
        forwarder,
        upstream,
    ):
        assert await ask(forwarder) == (307, b"")
        upstream.play = echo
        _, head = await ask(forwarder, "PUT")
        assert b"PUT /x " in head
        assert b"cookie" not in head.lower()


async def test_many_requests_may_be_out_at_once() -> None:
    async with forwarding(silence) as (forwarder, upstream):
        asking = [asyncio.ensure_future(ask(forwarder, method)) for method in ["GET", "PUT"] * 100]
        await until(lambda: upstream.connections == 200)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_an_ipv6_address_is_an_upstream(unused_tcp_port: int) -> None:
    forwarder = Forwarder(f"http://[::1]:{unused_tcp_port}", connect_timeout=1.0)
    assert str(forwarder._base.at("/x")) == f"http://[::1]:{unused_tcp_port}/x"
    assert await failure_of(forwarder) is FailureKind.CONNECT_ERROR
    await forwarder.close()


@pytest.mark.parametrize(
    ("base", "target", "sent"),
    [
        ("http://config", "/x?", "/x?"),
        ("http://config/", "//x", "//x"),
        ("http://config:80/base/", "/../x", "/base/../x"),
        ("http://config/base", "*", "*"),
        ("https://config/%2e", "/%2E", "/%2e/%2E"),
    ],
)
async def test_the_target_comes_after_the_path_of_the_base_url(base: str, target: str, sent: str) -> None:
    forwarder = Forwarder(base, connect_timeout=1.0)
    assert forwarder._base.at(target).raw_path_qs == sent
    await forwarder.close()


async def test_a_name_without_an_address_is_a_connect_error() -> None:
    forwarder = Forwarder("http://does-not-exist.invalid", connect_timeout=5.0)
    assert await failure_of(forwarder, "PUT") is FailureKind.CONNECT_ERROR
    await forwarder.close()
