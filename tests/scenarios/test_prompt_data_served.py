"""`POST /api/v1/prompt-data` for a LearnFlow that renders by itself, before whichever generation of the service."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import PACKAGED, TODAY, Generation
from sidecar.settings import BreakerSettings, RolloutSettings, UpstreamApi
from tests.harness import (
    QUICK_LIMIT,
    Answered,
    Chance,
    ManualClock,
    Reference,
    Sidecar,
    quick_settings,
    reference,
    sidecar_with,
)

PATH = "/api/v1/prompt-data"
ODD = "{{ topic | center(40) }} in {{ language }}"
"""Renders at the service; the gate admits no `center`."""
DEMO = yaml.safe_load((PACKAGED / "prompts.yaml").read_text("utf-8"))
TEMPLATES = {"explain": "Explain {{ topic }} in {{ language }}.", "odd": ODD} | {
    key.removesuffix("_system_prompt"): text for key, text in DEMO.items()
}
BOTH = [Generation.PLACEHOLDERS, Generation.PROMPT_DATA]
NEVER_OPENS = BreakerSettings(fail_max=1000)
STATED = 300
"""Seconds of life that the service states."""


class World:
    """A service, and a sidecar before it, in the clock's time."""

    def __init__(self, service: Reference, sidecar: Sidecar, clock: ManualClock) -> None:
        self.service = service
        self.sidecar = sidecar
        self.clock = clock

    async def get(self, node: str = "explain", user: int = 1, **headers: str) -> Answered:
        body = json.dumps({"user_id": user, "node_name": node}).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.sidecar.send(body, named, path=PATH)

    async def directly(self, node: str = "explain") -> tuple[int, bytes]:
        asked = {"user_id": 1, "node_name": node}
        async with self.sidecar.session.post(self.service.url + PATH, json=asked) as response:
            return response.status, await response.read()


@asynccontextmanager
async def before(folder: Path, generation: Generation, **sections: Any) -> AsyncIterator[World]:
    file, clock = folder / "prompts.yaml", ManualClock()
    file.write_text(yaml.safe_dump({f"{node}_system_prompt": text for node, text in TEMPLATES.items()}), "utf-8")
    async with reference(templates=TEMPLATES, generation=generation, render=TODAY, cache_ttl=STATED) as service:
        upstream = {"api": UpstreamApi.AUTO, "templates_file": None if generation not in BOTH else file}
        given = {"breaker": NEVER_OPENS, **sections}
        settings = quick_settings(service.url, upstream=upstream, **given)
        async with sidecar_with(settings, clock=clock, rng=Chance()) as sidecar:
            yield World(service, sidecar, clock)


@pytest.fixture(params=BOTH)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with before(tmp_path, request.param) as made:
        yield made


def is_newer(world: World) -> bool:
    return world.service.state.generation is Generation.PROMPT_DATA


async def test_the_parts_are_the_services_and_make_the_same_prompt_as_the_service(world: World) -> None:
    for node in DEMO:
        name = node.removesuffix("_system_prompt")
        answered = await world.get(name)
        assert (answered.status, answered.headers["Content-Type"]) == (200, "application/json")
        document = answered.document
        assert document["template"] == TEMPLATES[name]
        settings = world.service.state.database.settings(1)
        assert document["user_placeholders"] == settings
        context = dict.fromkeys(document["required_dynamic_placeholders"], "<it's> here")
        options = dict(document["render"])
        assert options.pop("undefined") == "empty"
        rendered = jinja2.Environment(**options).from_string(document["template"]).render({**settings, **context})
        assert rendered == (await world.sidecar.ask(1, name, context)).prompt


async def test_what_only_a_request_can_give_is_named(world: World) -> None:
    named = {
        name: (await world.get(name)).document["required_dynamic_placeholders"]
        for name in ("explain", "answer_question")
    }
    world.service.state.database.replace(2, {"language": "German", "topic": "a setting, too"})
    of_another = (await world.get("explain", 2)).document["required_dynamic_placeholders"]
    if is_newer(world):
        assert named["explain"] == world.service.state.document(1, "explain")["required_dynamic_placeholders"]
    else:
        assert named == {"explain": ["topic"], "answer_question": ["input_content", "study_material"]}
    assert of_another == []


async def test_it_is_never_used_for_longer_than_the_service_stated(world: World) -> None:
    stated = STATED if is_newer(world) else 0
    for passed in (0, 1, 100, 198):
        world.clock.advance(passed)
        answered = await world.get()
        assert answered.status == 200
        assert answered.document["cache_ttl"] + answered.age <= stated
        assert answered.document["cache_ttl"] >= 0
    if is_newer(world):
        assert (answered.age, answered.document["cache_ttl"]) == (299, 1)
        assert world.service.calls == 1
    else:
        assert world.service.state.calls["user-placeholders"] == 4


async def test_a_policy_that_keeps_longer_is_what_is_stated(tmp_path: Path) -> None:
    policy = Policy(strategy=Strategy.CACHE_FIRST, ttl=60)
    async with before(tmp_path, Generation.PLACEHOLDERS, policy=policy) as world:
        assert ((first := await world.get()).age, first.document["cache_ttl"]) == (0, 60)
        world.clock.advance(45)
        assert ((later := await world.get()).age, later.document["cache_ttl"]) == (45, 15)
        assert later.how == "prompt-sidecar; hit; ttl=15"


@pytest.mark.parametrize("fault", [Mode.UNAVAILABLE, Mode.HANG, Mode.GARBAGE, Mode.DATABASE_DOWN])
async def test_in_an_outage_the_last_parts_are_given_with_no_life_left_until_the_policy_ends_it(
    world: World, fault: Mode
) -> None:
    good = (await world.get()).document
    world.service.fails(fault, retry_after=0)
    world.clock.advance((STATED if is_newer(world) else 0) + 899)
    stale = await world.get()
    assert stale.document == {**good, "cache_ttl": 0}
    assert "stale-if-error" in stale.how or "network-timeout" in stale.how
    assert stale.age >= 899
    world.clock.advance(2)
    ended = await world.get()
    assert ended.status in {502, 503, 504}
    assert ended.is_problem
    assert ended.seconds < QUICK_LIMIT
    world.service.fails(Mode.NONE)
    assert (await world.get()).document == good


async def test_who_has_it_already_is_told_so_until_it_changes(world: World) -> None:
    first = await world.get()
    tag = first.headers["ETag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}'):
        answered = await world.get(If_None_Match=given)
        assert (answered.status, answered.body) == (304, b"")
        assert (answered.headers["ETag"], answered.how) == (tag, (await world.get()).how)
    assert (await world.get(If_None_Match='"other"')).document == first.document
    world.service.state.database.change(1, {"language": "German"})
    changed = await world.get(If_None_Match=tag, Cache_Control="no-cache")
    assert changed.document["user_placeholders"]["language"] == "German"
    assert changed.headers["ETag"] != tag
    assert (await world.get(user=2)).headers["ETag"] == tag  # the same parts


async def test_an_unknown_node_is_a_404_that_says_which(world: World) -> None:
    answered = await world.get("no-such-node")
    assert (answered.status, answered.document["detail"]) == (404, "Template not found for node: no-such-node")
    assert (await world.get()).status == 200


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"user_id": 0, "node_name": "explain"}', b'{"user_id": 1}'])
async def test_a_request_that_breaks_the_schema_is_refused_here(world: World, body: bytes) -> None:
    answered = await world.sidecar.send(body, path=PATH)
    assert (answered.status, answered.is_problem) == (422, True)
    assert world.service.calls == 0


async def test_a_template_that_is_not_admitted_here_is_passed_on_as_it_is(tmp_path: Path) -> None:
    async with before(tmp_path, Generation.PROMPT_DATA) as world:
        for _ in range(2):
            answered = await world.get("odd")
            assert (answered.status, answered.body) == await world.directly("odd")
            assert answered.document["template"] == ODD
            assert answered.how == "prompt-sidecar; fwd=bypass; detail=not-admitted"


async def test_a_service_that_has_no_parts_of_what_is_not_admitted_says_so_itself(tmp_path: Path) -> None:
    async with before(tmp_path, Generation.PLACEHOLDERS) as world:
        answered = await world.get("odd")
        assert (answered.status, answered.body) == await world.directly("odd")
        assert answered.status == 404


async def test_the_first_generation_is_asked_itself(tmp_path: Path) -> None:
    async with before(tmp_path, Generation.PASSTHROUGH) as world:
        answered = await world.get()
        assert (answered.status, answered.body) == await world.directly()
        assert answered.document == {"detail": "Not Found"}
        assert "Cache-Status" not in answered.headers


async def test_it_is_no_part_of_the_rollout_and_shares_its_parts_with_prompts(tmp_path: Path) -> None:
    async with before(tmp_path, Generation.PROMPT_DATA, rollout=RolloutSettings(percent=0.0)) as world:
        assert (await world.get()).document["template"] == TEMPLATES["explain"]
        assert (await world.sidecar.ask()).how == "prompt-sidecar; fwd=bypass; detail=rollout"
    async with before(tmp_path, Generation.PROMPT_DATA) as world:
        await world.get()
        assert "; hit; " in (await world.sidecar.ask()).how
        assert world.service.calls == 1
