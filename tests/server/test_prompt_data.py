"""`POST /api/v1/prompt-data` on the wire: what is asked of the manager, and how its answer is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from sidecar.core.cache_status import Forward, Provenance
from sidecar.core.credential import NOBODY, Credential
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import Answer, PromptError
from sidecar.core.model import Document
from sidecar.core.prompt import Undefined
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.server.generate_prompt import Reader
from sidecar.server.prompt_data import PATH, PromptData
from sidecar.service.generations import Ready
from sidecar.service.prompts import PromptManager
from sidecar.settings import UpstreamApi
from tests.fakes import compiled, document
from tests.harness import QUICK_LIMIT, ManualClock, quick_settings, reference, sidecar_with
from tests.wire import Answer as Seen
from tests.wire import Wire, post, serving, wire

DEADLINE = 3.5
MAX_BODY = 1000
ASKED = b'{"user_id": 7, "node_name": "explain"}'
HIT = Provenance(hit=True, ttl=12.7, age=3.9)


def ready(of: Document | None = None, *, required: frozenset[str] = frozenset(), fresh_for: float = 12.7) -> Ready:
    return Ready(of or document(), HIT, required, fresh_for)


class Manager:
    """A manager that does as it is told: `ends` is what it returns, or raises."""

    def __init__(self) -> None:
        self.here = True
        self.rules = object()
        self.ends: Ready | Answer | PromptError = ready()
        self.asked: list[tuple[int, str, Directives, float]] = []
        self.patience: list[float] = []

    async def renders_here(self, timeout_seconds: float) -> bool:
        self.patience.append(timeout_seconds)
        return self.here

    async def get_prompt_data(
        self,
        user_id: int,
        node_name: str,
        *,
        directives: Directives,
        began_at: float,
        rules: object,
        credential: Credential,
    ) -> Ready | Answer:
        assert rules is self.rules  # those in force when the request came
        assert credential is NOBODY
        self.asked.append((user_id, node_name, directives, began_at))
        if isinstance(self.ends, PromptError):
            raise self.ends
        return self.ends


class World:
    """The handler on the wire, between a manager and a proxy that are made up."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.clock = ManualClock()
        self.proxied: list[bytes] = []
        self.events: list[Any] = []
        self.client: Wire

    async def proxy(self, request: web.BaseRequest) -> web.Response:
        self.proxied.append(await request.read())
        return web.Response(status=404, text="proxied")

    async def ask(self, body: bytes = ASKED, *headers: str) -> Seen:
        return await self.client.ask(post(body, "Content-Type: application/json", *headers, path=PATH))


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    reader = Reader(
        observer=made.events.append,
        clock=made.clock,
        max_body=MAX_BODY,
        max_bodies=MAX_BODY,
        deadline=DEADLINE,
        as_today=lambda: False,
    )
    handler = PromptData(cast(PromptManager, made.manager), reader, made.proxy, clock=made.clock, deadline=DEADLINE)
    async with serving(handler) as served, wire(served.port) as client:
        made.client = client
        yield made
        assert served.events == []


# What is asked


async def test_a_users_parts_of_a_node_are_asked_for_from_the_instant_of_the_request_on() -> None:
    async with world() as here:
        here.clock.advance(5)
        assert (await here.ask()).status == 200
        assert here.manager.asked == [(7, "explain", NO_DIRECTIVES, here.clock.now)]
        (patience,) = here.manager.patience
        assert 0 < patience <= DEADLINE
        assert here.proxied == []


@pytest.mark.parametrize(
    ("header", "directives"),
    [
        ("Cache-Control: no-cache", Directives(no_cache=True)),
        ("Cache-Control: max-stale=9", Directives(max_stale=9.0)),
        ("Cache-Control: only-if-cached", Directives(only_if_cached=True)),
        ("Cache-Control: ", NO_DIRECTIVES),
    ],
)
async def test_a_request_says_by_cache_control_what_it_takes(header: str, directives: Directives) -> None:
    async with world() as here:
        await here.ask(ASKED, header)
        assert here.manager.asked[0][2] == directives


@pytest.mark.parametrize(
    ("body", "user", "node"),
    [
        (b'{"user_id": "7", "node_name": "explain"}', 7, "explain"),
        ('{"user_id": 7, "node_name": "ответ", "context": {"a": 1}, "more": 1}'.encode(), 7, "ответ"),
    ],
)
async def test_it_reads_what_the_service_reads(body: bytes, user: int, node: str) -> None:
    async with world() as here:
        assert (await here.ask(body)).status == 200
        assert here.manager.asked[0][:2] == (user, node)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 422, id="nothing"),
        pytest.param(b"{}", 422, id="an empty object"),
        pytest.param(b"[]", 422, id="a list"),
        pytest.param(b'{"user_id": 0, "node_name": "x"}', 422, id="no such user"),
        pytest.param(b'{"user_id": 7, "node_name": ""}', 422, id="no node"),
        pytest.param(b'{"user_id": 7, "node_name": null}', 422, id="a node that is null"),
        pytest.param(b"\xff", 422, id="not text"),
        pytest.param(b" " * (MAX_BODY + 1), 413, id="too large"),
    ],
)
async def test_a_request_that_breaks_the_schema_is_refused_and_nobody_is_asked(body: bytes, status: int) -> None:
    async with world() as here:
        answer = await here.ask(body)
        assert (answer.status, answer.problem()["status"]) == (status, status)
        assert (here.manager.asked, here.proxied) == ([], [])
        assert [event.status for event in here.events] == [status]


async def test_a_body_of_another_type_is_refused() -> None:
    async with world() as here:
        assert (await here.client.ask(post(ASKED, "Content-Type: text/plain", path=PATH))).status == 415
        assert here.manager.asked == []


async def test_where_the_service_alone_has_any_the_request_is_passed_on_unread() -> None:
    async with world() as here:
        here.manager.here = False
        answer = await here.ask(b"anything")
        assert (answer.status, answer.body) == (404, b"proxied")
        assert here.proxied == [b"anything"]
        assert (here.manager.asked, here.events) == ([], [])


# What is answered


@pytest.mark.parametrize("undefined", [Undefined.STRICT, Undefined.EMPTY])
@pytest.mark.parametrize("autoescape", [True, False])
async def test_the_parts_are_those_of_the_second_generation(undefined: Undefined, *, autoescape: bool) -> None:
    template = compiled("<{{ b }}{{ a }}>", undefined=undefined, autoescape=autoescape)
    settings = {"a": "<&>", "unused": "ответ"}
    of = Document.of(template, settings, required=frozenset({"b"}), stated_ttl=None, etag=None)
    async with world() as here:
        here.manager.ends = ready(of, required=frozenset({"z", "b"}))
        answer = await here.ask()
    document_told = json.loads(answer.body)
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    assert document_told == {
        "template": "<{{ b }}{{ a }}>",
        "user_placeholders": {"a": "<&>", "unused": "ответ"},
        "required_dynamic_placeholders": ["b", "z"],
        "render": {
            "autoescape": autoescape,
            "trim_blocks": template.options.trim_blocks,
            "lstrip_blocks": template.options.lstrip_blocks,
            "undefined": undefined.value,
        },
        "cache_ttl": 12,
    }


@pytest.mark.parametrize(("fresh_for", "told"), [(300.0, 300), (12.99, 12), (0.9, 0), (0.0, 0)])
async def test_what_is_left_of_its_life_is_told_in_whole_seconds_and_never_more(fresh_for: float, told: int) -> None:
    async with world() as here:
        here.manager.ends = ready(fresh_for=fresh_for)
        cache_ttl = json.loads((await here.ask()).body)["cache_ttl"]
        assert (cache_ttl, type(cache_ttl)) == (told, int)


async def test_how_it_was_made_is_said_in_the_headers() -> None:
    async with world() as here:
        answer = await here.ask()
        assert (answer.header("Cache-Status"), answer.header("Age")) == ("prompt-sidecar; hit; ttl=12", "3")
        here.manager.ends = ready()._replace(provenance=Provenance(forward=Forward.MISS, stored=True))
        answer = await here.ask()
        assert (answer.header("Cache-Status"), answer.header("Age")) == ("prompt-sidecar; fwd=miss; stored", "0")


async def tag_of(here: World, parts: Ready) -> str:
    here.manager.ends = parts
    tag = (await here.ask()).header("ETag")
    assert tag is not None
    return tag


async def test_the_etag_is_that_of_the_parts_and_of_nothing_else() -> None:
    async with world() as here:
        tag = await tag_of(here, ready())
        assert tag.startswith('"')
        assert tag.endswith('"')
        assert await tag_of(here, ready(fresh_for=1.0)._replace(provenance=Provenance(forward=Forward.MISS))) == tag
        others = [
            await tag_of(here, ready(document("Other {{ style }}."))),
            await tag_of(here, ready(document(settings={"style": "verse"}))),
            await tag_of(here, ready(required=frozenset({"topic"}))),
            await tag_of(here, ready(document(undefined=Undefined.EMPTY))),
        ]
        assert len({tag, *others}) == 5


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"x", {tag}', 304),
        ('"x",W/{tag},"y"', 304),
        ('"x"', 200),
        ("", 200),
        ("{tag}x", 200),
    ],
)
async def test_who_has_the_parts_already_gets_no_body(known: str, status: int) -> None:
    async with world() as here:
        tag = await tag_of(here, ready())
        answer = await here.ask(ASKED, f"If-None-Match: {known.format(tag=tag)}")
        assert answer.status == status
        assert (answer.body == b"") is (status == 304)
        assert answer.header("ETag") == tag
        assert (answer.header("Cache-Status"), answer.header("Age")) == ("prompt-sidecar; hit; ttl=12", "3")
        assert (await here.ask()).status == 200  # and the connection goes on


async def test_what_is_not_admitted_here_is_passed_on_as_the_service_said_it() -> None:
    async with world() as here:
        here.manager.ends = Answer(200, b'{"template": "{% any %}"}', "application/json; charset=utf-8")
        answer = await here.ask(ASKED, 'If-None-Match: "x"')
        assert (answer.status, answer.body) == (200, b'{"template": "{% any %}"}')
        assert answer.header("Content-Type") == "application/json; charset=utf-8"
        assert answer.header("Cache-Status") == "prompt-sidecar; fwd=bypass; detail=not-admitted"
        assert answer.header("ETag") is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(PromptError(400, "Template not found.", reason="unknown_node"), 404, id="an unknown node"),
        pytest.param(PromptError(400, "No.", reason="gone"), 400, id="any other 400"),
        pytest.param(PromptError(503, "No.", reason="reset", retry_after=2.0), 503, id="an outage"),
        pytest.param(PromptError(504, "No.", reason="deadline"), 504, id="too late"),
    ],
)
async def test_an_error_is_a_problem(error: PromptError, status: int) -> None:
    async with world() as here:
        here.manager.ends = error
        answer = await here.ask()
        assert answer.problem()["status"] == status
        assert answer.header("Cache-Status") == "prompt-sidecar"
        assert answer.header("Retry-After") == ("2" if status == 503 else None)


async def test_the_services_own_no_is_passed_on() -> None:
    async with world() as here:
        no = Answer(404, b'{"detail":"no"}', "application/json")
        here.manager.ends = PromptError(404, "no", reason="gone", answer=no)
        answer = await here.ask()
        assert (answer.status, answer.body) == (404, b'{"detail":"no"}')


# From end to end


@pytest.mark.parametrize("api", [UpstreamApi.AUTO, UpstreamApi.PASSTHROUGH])
async def test_a_service_that_hangs_is_not_waited_for_beyond_the_deadline(api: UpstreamApi, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text("explain_system_prompt: Explain {{ topic }}.")
    async with reference(generation=Generation.PASSTHROUGH, render=TODAY) as service:
        service.fails(Mode.HANG)
        settings = quick_settings(service.url, upstream={"api": api, "templates_file": file})
        async with sidecar_with(settings) as sidecar:
            async with asyncio.timeout(QUICK_LIMIT):
                answered = await sidecar.send(ASKED, path=PATH)
            assert answered.status in {503, 504}
            assert answered.is_problem
