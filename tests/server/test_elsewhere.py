"""What is neither a prompt nor its parts: a static read where the table has it, and else the proxy's."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import Answer, PromptError
from sidecar.core.model import Entry, RouteKey, StaticAnswer
from sidecar.core.policy import Policy, Strategy
from sidecar.core.routes import RoutePattern, RouteTable
from sidecar.server.elsewhere import Elsewhere
from sidecar.service.resources import Obtained, Resources, Terms
from tests.harness import Exchange, ManualClock, raw_upstream, settings_for, sidecar_with
from tests.wire import Answer as Seen
from tests.wire import Wire, get, serving, wire

DEADLINE = 3.5
POLICY = Policy(ttl=7.0)
OF_USERS = Policy(ttl=8.0)
TABLE = {"/api/v1/profiles*": POLICY, "/api/v1/users/{id}/placeholders": OF_USERS}
HOST = "Host: localhost:9102"
"""What `get` says."""
BODY = b'[{"id": 1}]'
ANSWER = StaticAnswer(200, (("Content-Type", "application/json"), ("X-One", "1"), ("X-One", "2")), BODY)
FRESH = Provenance(hit=True, ttl=12.7, age=3.9)


class Reads:
    """Static reads as a test wants them: `ends` is what is obtained, or raised."""

    def __init__(self) -> None:
        self.asked: list[tuple[RouteKey, Terms]] = []
        self.ends: StaticAnswer | PromptError = ANSWER
        self.provenance = FRESH

    async def obtain(self, key: RouteKey, terms: Terms) -> Obtained[StaticAnswer]:
        self.asked.append((key, terms))
        if isinstance(self.ends, PromptError):
            raise self.ends
        return Obtained(Entry.of(self.ends, 0.0, 0.0, terms.policy), self.provenance)


class World:
    """Elsewhere on the wire, between static reads and a proxy that are made up."""

    def __init__(self, table: Mapping[str, Policy]) -> None:
        self.table = {RoutePattern.parse(path): policy for path, policy in table.items()}
        self.reads = Reads()
        self.clock = ManualClock()
        self.proxied: list[str] = []
        self.client: Wire

    async def proxy(self, request: web.BaseRequest) -> web.Response:
        self.proxied.append(f"{request.method} {request.raw_path}")
        return web.Response(text="proxied")

    async def ask(self, data: bytes) -> Seen:
        return await self.client.ask(data)

    async def is_read(self, data: bytes) -> bool:
        """Ask, and say whether it was a static read; else it was the proxy's, as it came."""
        answer = await self.ask(data)
        assert len(self.reads.asked) + len(self.proxied) == 1
        assert answer.body == (BODY if self.reads.asked else b"proxied")
        return bool(self.reads.asked)


@asynccontextmanager
async def world(table: Mapping[str, Policy] = TABLE) -> AsyncIterator[World]:
    made = World(table)
    elsewhere = Elsewhere(
        lambda: (RouteTable(made.table), DEADLINE),
        cast(Resources[RouteKey, StaticAnswer], made.reads),
        made.proxy,
        clock=made.clock,
    )
    async with serving(elsewhere, max_header=8192) as served, wire(served.port) as client:
        made.client = client
        yield made
        assert served.events == []


# Which is which


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("/api/v1/profiles", True),
        ("/api/v1/profiles/", True),
        ("/api/v1/profiles/7/anything", True),
        ("/api/v1/profiles?category=style", True),
        ("/api/v1/profiles?/../", True),
        ("/api/v1/users/7/placeholders", True),
        ("/api/v1/users/7/placeholders?x=1", True),
        ("/api/v1/users/anyone/placeholders", True),
        ("/api/v1/users/7/placeholders/", False),
        ("/api/v1/users/7/placeholders/8", False),
        ("/api/v1/users//placeholders", False),
        ("/api/v1/profile", False),
        ("/api/v1/Profiles", False),
        ("/api/v1//profiles", False),
        ("//api/v1/profiles", False),
        ("/api/v1/./profiles", False),
        ("/api/v1/x/../profiles", False),
        ("/api/v1/profiles/..", False),
        ("/api/v1/profiles/%2e%2e/users", False),
        ("/api/v1/%70rofiles", False),
        ("/api/v1/profiles%3fx", False),
        ("/", False),
        ("/health", False),
        ("http://localhost:9102/api/v1/profiles", False),
        ("/?/api/v1/profiles", False),
    ],
)
async def test_a_path_of_the_table_is_a_static_read_and_all_else_the_proxys(target: str, read: bool) -> None:
    async with world() as here:
        assert await here.is_read(get(target)) is read
        if not read:
            assert here.proxied == [f"GET {target}"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_only_a_get_is_a_read(method: str) -> None:
    async with world() as here:
        assert not await here.is_read(get("/api/v1/profiles", "Content-Length: 0", method=method))


async def test_a_head_is_the_proxys() -> None:
    async with world() as here:
        await here.client.send(get("/api/v1/profiles", method="HEAD"))
        assert (await here.client.answer(to_head=True)).status == 200
        assert here.proxied == ["HEAD /api/v1/profiles"]


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer x",
        "authorization: ",
        "Cookie: a=b",
        "X-Api-Key: x",
        "apikey: x",
        "X-Auth-Token: x",
        "Proxy-Authorization: Basic eDp4",
        "X-Amz-Security-Token: x",
        "X-Session-Id: x",
        "X-Tenant: x",
        "X-User-Id: 7",
        "User: 7",
        "X-Forwarded-User: x",
        "X-Forwarded-Client-Cert: Hash=x",
        "Range: bytes=0-1",
        "Origin: http://x",
        "Forwarded: for=1.2.3.4",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /x",
        'If-None-Match: "1"',
        "If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT",
        'If-Match: "1"',
        "If-Unmodified-Since: Mon, 01 Jan 2024 00:00:00 GMT",
        'If-Range: "1"',
    ],
)
async def test_a_request_that_asks_for_an_answer_of_its_own_is_the_proxys(header: str) -> None:
    async with world() as here:
        assert not await here.is_read(get("/api/v1/profiles", header))


@pytest.mark.parametrize("header", ["Accept: text/html", "user-agent: bot", "X-Forwarded-For: 1.2.3.4", "Pragma: x"])
async def test_other_headers_make_no_difference(header: str) -> None:
    async with world() as here:
        assert await here.is_read(get("/api/v1/profiles", header))


@pytest.mark.parametrize(
    ("header", "body"), [("Content-Length: 2", b"{}"), ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")]
)
async def test_a_get_with_a_body_is_the_proxys(header: str, body: bytes) -> None:
    async with world() as here:
        assert not await here.is_read(get("/api/v1/profiles", header) + body)


async def test_with_an_empty_table_everything_is_the_proxys() -> None:
    async with world({}) as here:
        assert not await here.is_read(get("/api/v1/profiles"))


async def test_another_table_counts_from_the_next_request_on() -> None:
    async with world({}) as here:
        assert not await here.is_read(get("/api/v1/profiles"))
        here.table = {RoutePattern.parse("/api/v1/profiles*"): POLICY}
        here.proxied.clear()
        assert await here.is_read(get("/api/v1/profiles"))


# What is asked for


@pytest.mark.parametrize(
    ("target", "owner", "policy"),
    [
        ("/api/v1/profiles?a=%2F&b=+", None, POLICY),
        ("/api/v1/profiles/users/9", 9, POLICY),
        ("/api/v1/users/7/placeholders", 7, OF_USERS),
        ("/api/v1/users/007/placeholders", 7, OF_USERS),
        ("/api/v1/users/nobody/placeholders", None, OF_USERS),
    ],
)
async def test_the_key_is_host_and_target_as_they_came_and_whose_settings_it_shows(
    target: str, owner: int | None, policy: Policy
) -> None:
    async with world() as here:
        await here.ask(get(target))
        ((key, terms),) = here.reads.asked
        assert key == RouteKey("localhost:9102", target, owner)
        assert terms.policy is policy


async def test_the_deadline_begins_with_the_request() -> None:
    async with world() as here:
        for _ in range(2):
            here.clock.advance(10)
            await here.ask(get("/api/v1/profiles"))
            _, terms = here.reads.asked[-1]
            assert (terms.began_at, terms.deadline) == (here.clock.now, DEADLINE)


@pytest.mark.parametrize(
    ("header", "directives"),
    [
        ("X-Any: 1", NO_DIRECTIVES),
        ("Cache-Control: no-cache", Directives(no_cache=True)),
        ("Cache-Control: only-if-cached, max-stale=60", Directives(only_if_cached=True, max_stale=60.0)),
    ],
)
async def test_a_request_says_by_cache_control_what_it_takes(header: str, directives: Directives) -> None:
    async with world() as here:
        await here.ask(get("/api/v1/profiles", header))
        assert here.reads.asked[0][1].directives == directives


@pytest.mark.parametrize("host", ["bot.example", "bot.example:8002", "[::1]:8002", "BOT"])
async def test_hosts_have_answers_of_their_own(host: str) -> None:
    async with world() as here:
        await here.ask(get("/api/v1/profiles").replace(HOST.encode(), f"Host: {host}".encode()))
        assert here.reads.asked[0][0].host == host


# What is answered


async def test_the_answer_is_as_it_came_and_says_how_it_was_made() -> None:
    async with world() as here:
        answer = await here.ask(get("/api/v1/profiles"))
    assert (answer.status, answer.body) == (200, BODY)
    assert [value for name, value in answer.headers if name == "X-One"] == ["1", "2"]
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Status") == "prompt-sidecar; hit; ttl=12"
    assert answer.header("Age") == "3"
    assert answer.header("Content-Length") == str(len(BODY))


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_a_redirect_is_a_redirect(status: int) -> None:
    async with world() as here:
        location = "http://localhost:9102/api/v1/profiles/?a=%2F"
        here.reads.ends = StaticAnswer(status, (("Location", location),), b"")
        answer = await here.ask(get("/api/v1/profiles?a=%2F"))
        assert (answer.status, answer.header("Location"), answer.body) == (status, location, b"")
        assert answer.header("Content-Type") is None  # it had none


@pytest.mark.parametrize(
    ("provenance", "how", "age"),
    [
        (Provenance(forward=Forward.MISS, stored=True), "prompt-sidecar; fwd=miss; stored", "0"),
        (
            Provenance(forward=Forward.STALE, forward_status=503, ttl=-35.0, age=335.0, detail="stale-if-error"),
            "prompt-sidecar; fwd=stale; fwd-status=503; ttl=-35; detail=stale-if-error",
            "335",
        ),
    ],
)
async def test_how_it_was_made_is_said_as_for_prompts(provenance: Provenance, how: str, age: str) -> None:
    async with world() as here:
        here.reads.provenance = provenance
        answer = await here.ask(get("/api/v1/profiles"))
        assert (answer.header("Cache-Status"), answer.header("Age")) == (how, age)


THEIRS = Answer(503, b"<h1>sorry</h1>", "text/html")


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        pytest.param(
            PromptError(404, "no", reason="gone", answer=Answer(404, b'{"detail":"no"}', "application/json")),
            404,
            b'{"detail":"no"}',
            id="the service's own no",
        ),
        pytest.param(
            PromptError(503, "no", reason="server_error", retry_after=1, upstream_answer=THEIRS),
            503,
            b"<h1>sorry</h1>",
            id="the service's own trouble",
        ),
        pytest.param(
            PromptError(429, "no", reason="x", answer=Answer(429, b"{}", "application/json"), upstream_answer=THEIRS),
            429,
            b"{}",
            id="both",
        ),
    ],
)
async def test_where_the_service_said_something_it_is_passed_on(error: PromptError, status: int, body: bytes) -> None:
    async with world() as here:
        here.reads.ends = error
        answer = await here.ask(get("/api/v1/profiles"))
        assert (answer.status, answer.body) == (status, body)


async def test_where_it_said_nothing_the_problem_is_ours() -> None:
    async with world() as here:
        here.reads.ends = PromptError(
            503, "Nothing.", reason="reset", retry_after=2.1, provenance=Provenance(forward=Forward.MISS)
        )
        answer = await here.ask(get("/api/v1/profiles"))
        assert answer.problem()["detail"] == "Nothing."
        assert (answer.status, answer.header("Retry-After")) == (503, "3")
        assert answer.header("Cache-Status") == "prompt-sidecar; fwd=miss"


# From end to end


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/profiles?a=%2f&b=%zz",
        "/api/v1/profiles?a='\"<>[]{}|\\^`",
        "/api/v1/profiles??",
        "/api/v1/profiles?",
        "/api/v1/profiles?a=1#part",
    ],
)
async def test_a_target_arrives_byte_for_byte(target: str) -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer([])

    routes = {"/api/v1/profiles*": Policy(strategy=Strategy.CACHE_FIRST, ttl=60.0)}
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, routes=routes)) as sidecar,
    ):
        await sidecar.raw(get(target, "Connection: close"))
        assert upstream.requests[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_a_host_that_is_no_text_is_not_taken_for_another() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(b"", status=307, headers={"Location": "http://somewhere/"})

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        asked = get("/api/v1/profiles", "Connection: close").replace(HOST.encode(), b"Host: \xff\xfe")
        answer = await sidecar.raw(asked)
        assert answer.startswith(b"HTTP/1.1 421 ")
        assert upstream.requests == []


def test_the_tests_own_reads_are_asked_as_the_real_ones() -> None:
    real: Any = Resources.obtain
    ours: Any = Reads.obtain
    count = real.__code__.co_argcount
    assert real.__code__.co_varnames[:count] == ours.__code__.co_varnames[:count]
