"""A restart in the middle of an outage: the last good copy, with its true age, and nothing that a user changed."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.policy import Policy
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import RetrySettings, StoreSettings, UpstreamApi
from tests.harness import (
    Chance,
    ManualClock,
    Reference,
    Sidecar,
    eventually,
    reference,
    settings_for,
    sidecar_process,
    sidecar_with,
)

ONCE = RetrySettings(attempts=1)
KEPT = Policy(ttl=60, max_ttl=60, stale_while_revalidate=0, stale_if_error=600)
TEMPLATES = "explain_system_prompt: 'Explain {{ topic }} in {{ style }}, in {{ language }}.'\n"
NOW = 1_800_000_000.0


class Clocks:
    """Both clocks of a process; a restart begins a new monotonic one."""

    def __init__(self) -> None:
        self.wall = ManualClock()
        self.wall.now = NOW

    @asynccontextmanager
    async def sidecar(self, service: Reference, folder: Path, **given: Any) -> AsyncIterator[Sidecar]:
        self.monotonic = ManualClock()
        self.monotonic.now = 1000.0  # not long since the machine's start
        options = {"policy": KEPT, "retry": ONCE, "store": StoreSettings(path=folder / "cache.db"), **given}
        settings = settings_for(service.url, **options)
        async with sidecar_with(settings, clock=self.monotonic, wall=self.wall, rng=Chance()) as sidecar:
            yield sidecar

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.monotonic.advance(seconds)


@pytest.fixture
async def upstream() -> AsyncIterator[Reference]:
    async with reference(announce_version=False) as upstream:
        yield upstream


async def test_the_last_good_copy_is_served_with_its_true_age(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        prompt = (await sidecar.ask()).prompt
    upstream.fails(Mode.UNAVAILABLE)
    clocks.wall.advance(40)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        fresh = await sidecar.ask()
        assert (fresh.prompt, fresh.age, fresh.how) == (prompt, 40, "prompt-sidecar; hit; ttl=20")
        clocks.advance(30)
        stale = await sidecar.ask()
        assert (stale.prompt, stale.age) == (prompt, 70)
        assert stale.how.endswith("ttl=-10; detail=stale-if-error")
    clocks.wall.advance(580)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask()).prompt == prompt
        clocks.advance(20)
        assert (await sidecar.ask()).status == 503, "650 + 20 seconds are more than 60 + 600"


async def test_content_of_a_request_is_in_no_file(upstream: Reference, tmp_path: Path) -> None:
    canary = "kanarienvogel-77"
    async with Clocks().sidecar(upstream, tmp_path) as sidecar:
        assert canary in (await sidecar.ask(7123456789, context={"topic": canary})).prompt
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert canary.encode() not in content
        assert b"7123456789" not in content


@pytest.mark.parametrize("jump", [-3600.0, -1.0])
async def test_what_comes_from_the_future_counts_for_nothing_until_it_is_confirmed(
    upstream: Reference, tmp_path: Path, jump: float
) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        await sidecar.ask()
    clocks.wall.advance(jump)
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask()).status == 503
        upstream.fails(Mode.NONE)
        assert (await sidecar.ask()).how == "prompt-sidecar; fwd=miss; stored"


async def test_a_clock_that_jumped_ahead_and_back_has_deleted_nothing(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        prompt = (await sidecar.ask()).prompt
    upstream.fails(Mode.UNAVAILABLE)
    clocks.wall.advance(10 * 365 * 86400)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask()).status == 503
    clocks.wall.advance(-10 * 365 * 86400 + 30)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask()).prompt == prompt


async def test_a_jump_of_the_wall_clock_changes_nothing_within_a_process(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        await sidecar.ask()
        for jump in (1e6, -2e6):
            clocks.wall.advance(jump)
            assert (await sidecar.ask()).how == "prompt-sidecar; hit; ttl=60"


async def test_a_settings_change_is_not_undone_by_a_restart(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        for user in (1, 12):
            await sidecar.ask(user)
        async with sidecar.session.post(f"{sidecar.base}/api/v1/users/1/reset") as response:
            assert response.status == 200
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask(1)).status == 503
        assert (await sidecar.ask(12)).status == 200


async def test_a_404_is_remembered_as_well(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        await sidecar.ask()
        template = upstream.state.templates.pop("explain")
        assert (await sidecar.ask(headers={"Cache-Control": "no-cache"})).status == 404
    upstream.state.templates["explain"] = template
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        assert (await sidecar.ask()).status == 503


async def test_another_config_services_store_is_not_ours(upstream: Reference, tmp_path: Path) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, tmp_path) as sidecar:
        await sidecar.ask()
    async with reference() as other:
        other.fails(Mode.UNAVAILABLE)
        async with clocks.sidecar(other, tmp_path) as sidecar:
            assert (await sidecar.ask()).status == 503


async def test_the_generation_that_filled_the_store_is_remembered(tmp_path: Path) -> None:
    templates = tmp_path / "prompts.yaml"
    templates.write_text(TEMPLATES)
    given = {"upstream": {"api": UpstreamApi.AUTO, "templates_file": templates}}
    clocks = Clocks()
    async with reference(generation=Generation.PLACEHOLDERS, render=TODAY) as upstream:
        async with clocks.sidecar(upstream, tmp_path, **given) as sidecar:
            prompt = (await sidecar.ask()).prompt
        upstream.fails(Mode.UNAVAILABLE)
        async with clocks.sidecar(upstream, tmp_path, **given) as sidecar:
            answered = await sidecar.ask(context={"topic": "ebb"})
            assert answered.prompt == prompt.replace("tides", "ebb")
            async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/") as response:
                assert response.status >= 500, "never asked before"


async def test_with_a_black_hole_behind_it_a_restarted_process_answers_within_a_second(
    upstream: Reference, tmp_path: Path
) -> None:
    options = {
        "STORE__KIND": "file",
        "STORE__PATH": str(tmp_path / "cache.db"),
        "UPSTREAM__API": "auto",
        "POLICY__DEFAULT__TTL": "0s",
        "POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "0s",
    }
    async with sidecar_process(upstream.url, tmp_path, **options) as sidecar:
        prompt = (await sidecar.ask()).prompt

        async def is_written() -> bool:
            async with sidecar.session.get(f"{sidecar.ops}/status") as response:
                return bool((await response.json())["store"]["entries"] >= 2)  # the document, and the generation

        await eventually(is_written)
        sidecar.process.kill()
        await sidecar.process.wait()
    upstream.fails(Mode.HANG)
    began = time.monotonic()
    async with sidecar_process(upstream.url, tmp_path, **options) as sidecar:
        started = time.monotonic()
        answered = await sidecar.ask()
        took = time.monotonic() - started
        assert answered.prompt == prompt
        assert took < 0.6, f"after {started - began:.1f} s of starting a process"


async def test_a_screen_of_the_bot_survives_a_restart(upstream: Reference, tmp_path: Path) -> None:
    async def screen(sidecar: Sidecar) -> tuple[int, bytes]:
        same = {"Host": "localhost:8002"}  # whatever port it is
        async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/", headers=same) as response:
            return response.status, await response.read()

    clocks = Clocks()
    routes = {"/api/v1/profiles*": KEPT}
    async with clocks.sidecar(upstream, tmp_path, routes=routes) as sidecar:
        shown = await screen(sidecar)
        assert shown[0] == 200
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, tmp_path, routes=routes) as sidecar:
        assert await screen(sidecar) == shown
