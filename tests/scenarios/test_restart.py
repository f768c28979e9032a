"""A restart in the middle of an outage: the last good copy, with its true age, and nothing that a user changed."""

import sqlite3
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
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
from tests.redis_servers import Server, server
from tests.scenarios.test_redis_shared import store_at

ONCE = RetrySettings(attempts=1)
KEPT = Policy(ttl=60, max_ttl=60, stale_while_revalidate=0, stale_if_error=600)
TEMPLATES = "explain_system_prompt: 'Explain {{ topic }} in {{ style }}, in {{ language }}.'\n"
NOW = 1_800_000_000.0


class Shelf(ABC):
    """Where what survives is kept."""

    settings: StoreSettings

    @abstractmethod
    async def content(self) -> bytes:
        """Return all bytes of it."""

    @abstractmethod
    async def spoil(self) -> None:
        """Flip a bit of every record."""


class FileShelf(Shelf):
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = StoreSettings(path=path)

    async def content(self) -> bytes:
        return b"".join(each.read_bytes() for each in self.path.parent.iterdir())

    async def spoil(self) -> None:
        connection = sqlite3.connect(self.path)
        for key, record in connection.execute("SELECT key, record FROM records WHERE owner IS NOT NULL").fetchall():
            connection.execute("UPDATE records SET record = ? WHERE key = ?", (flipped(record), key))
        connection.commit()
        connection.close()


class RedisShelf(Shelf):
    """A Redis."""

    def __init__(self, redis: Server) -> None:
        self.redis = redis
        self.settings = store_at(redis.url)

    async def content(self) -> bytes:
        client = self.redis.client
        found = []
        for key in await client.keys("*"):
            found += [key, await client.dump(key)]
        return b" ".join(found)

    async def spoil(self) -> None:
        client = self.redis.client
        for key in await client.keys("*"):
            if await client.type(key) == b"string" and await client.strlen(key) > 40:
                await client.set(key, flipped(await client.get(key)), keepttl=True)


def flipped(record: bytes) -> bytes:
    """Return the record with one bit the other way, in its last third."""
    place = len(record) * 5 // 6
    return record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :]


@pytest.fixture(params=["file", "redis"])
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    if request.param == "file":
        yield FileShelf(tmp_path / "cache.db")
        return
    async with server() as redis:
        yield RedisShelf(redis)


class Clocks:
    """Both clocks of a process; a restart begins a new monotonic one."""

    def __init__(self) -> None:
        self.wall = ManualClock()
        self.wall.now = NOW

    @asynccontextmanager
    async def sidecar(self, service: Reference, shelf: Shelf, **given: Any) -> AsyncIterator[Sidecar]:
        self.monotonic = ManualClock()
        self.monotonic.now = 1000.0  # not long since the machine's start
        options = {"policy": KEPT, "retry": ONCE, "store": shelf.settings, **given}
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


async def test_the_last_good_copy_is_served_with_its_true_age(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        prompt = (await sidecar.ask()).prompt
    upstream.fails(Mode.UNAVAILABLE)
    clocks.wall.advance(40)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        fresh = await sidecar.ask()
        assert (fresh.prompt, fresh.age, fresh.how) == (prompt, 40, "prompt-sidecar; hit; ttl=20")
        clocks.advance(30)
        stale = await sidecar.ask()
        assert (stale.prompt, stale.age) == (prompt, 70)
        assert stale.how.endswith("ttl=-10; detail=stale-if-error")
    clocks.wall.advance(580)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).prompt == prompt
        clocks.advance(20)
        assert (await sidecar.ask()).status == 503, "650 + 20 seconds are more than 60 + 600"


async def test_content_of_a_request_is_in_no_store(upstream: Reference, shelf: Shelf) -> None:
    canary = "kanarienvogel-77"
    async with Clocks().sidecar(upstream, shelf) as sidecar:
        assert canary in (await sidecar.ask(7123456789, context={"topic": canary})).prompt
    content = await shelf.content()
    assert len(content) > 100
    assert canary.encode() not in content
    assert b"7123456789" not in content


@pytest.mark.parametrize("jump", [-3600.0, -1.0])
async def test_what_comes_from_the_future_counts_for_nothing_until_it_is_confirmed(
    upstream: Reference, shelf: Shelf, jump: float
) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        await sidecar.ask()
    clocks.wall.advance(jump)
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).status == 503
        upstream.fails(Mode.NONE)
        assert (await sidecar.ask()).how == "prompt-sidecar; fwd=miss; stored"


async def test_a_clock_that_jumped_ahead_and_back_has_deleted_nothing(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        prompt = (await sidecar.ask()).prompt
    upstream.fails(Mode.UNAVAILABLE)
    clocks.wall.advance(10 * 365 * 86400)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).status == 503
    clocks.wall.advance(-10 * 365 * 86400 + 30)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).prompt == prompt


async def test_a_jump_of_the_wall_clock_changes_nothing_within_a_process(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        await sidecar.ask()
        for jump in (1e6, -2e6):
            clocks.wall.advance(jump)
            assert (await sidecar.ask()).how == "prompt-sidecar; hit; ttl=60"


async def test_a_settings_change_is_not_undone_by_a_restart(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        for user in (1, 12):
            await sidecar.ask(user)
        async with sidecar.session.post(f"{sidecar.base}/api/v1/users/1/reset") as response:
            assert response.status == 200
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask(1)).status == 503
        assert (await sidecar.ask(12)).status == 200


async def test_a_404_is_remembered_as_well(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        await sidecar.ask()
        template = upstream.state.templates.pop("explain")
        assert (await sidecar.ask(headers={"Cache-Control": "no-cache"})).status == 404
    upstream.state.templates["explain"] = template
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).status == 503


async def test_another_config_services_store_is_not_ours(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        await sidecar.ask()
    async with reference() as other:
        other.fails(Mode.UNAVAILABLE)
        async with clocks.sidecar(other, shelf) as sidecar:
            assert (await sidecar.ask()).status == 503


async def test_the_generation_that_filled_the_store_is_remembered(shelf: Shelf, tmp_path: Path) -> None:
    templates = tmp_path / "prompts.yaml"
    templates.write_text(TEMPLATES)
    given = {"upstream": {"api": UpstreamApi.AUTO, "templates_file": templates}}
    clocks = Clocks()
    async with reference(generation=Generation.PLACEHOLDERS, render=TODAY) as upstream:
        async with clocks.sidecar(upstream, shelf, **given) as sidecar:
            prompt = (await sidecar.ask()).prompt
        upstream.fails(Mode.UNAVAILABLE)
        async with clocks.sidecar(upstream, shelf, **given) as sidecar:
            answered = await sidecar.ask(context={"topic": "ebb"})
            assert answered.prompt == prompt.replace("tides", "ebb")
            async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/") as response:
                assert response.status >= 500, "never asked before"


@pytest.mark.parametrize("mode", [Mode.GARBAGE, Mode.EMPTY, Mode.WRONG_SHAPE, Mode.EMPTY_TEMPLATE, Mode.BAD_TEMPLATE])
async def test_a_bad_document_replaces_no_good_one_in_the_store(upstream: Reference, shelf: Shelf, mode: Mode) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        prompt = (await sidecar.ask()).prompt
        upstream.fails(mode)
        clocks.advance(70)
        assert (await sidecar.ask()).prompt == prompt
    async with clocks.sidecar(upstream, shelf) as sidecar:
        answered = await sidecar.ask()
        assert (answered.prompt, answered.age) == (prompt, 70)


async def test_a_record_that_was_tampered_with_is_dropped_and_counted_and_fetched_again(
    upstream: Reference, shelf: Shelf
) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        prompt = (await sidecar.ask()).prompt
    await shelf.spoil()
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).status == 503, "better no prompt than a wrong one"
        assert 'records_dropped_total{reason="checksum"} 1.0' in await sidecar.metrics()
    upstream.fails(Mode.NONE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).prompt == prompt
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask()).prompt == prompt


async def invalidates(sidecar: Sidecar, what: dict[str, object]) -> None:
    async with sidecar.session.post(f"{sidecar.ops}/admin/invalidate", json=what) as response:
        assert response.status == 200


async def test_what_is_invalidated_by_hand_is_not_brought_back_by_a_restart(upstream: Reference, shelf: Shelf) -> None:
    clocks = Clocks()
    async with clocks.sidecar(upstream, shelf) as sidecar:
        for user in (1, 12):
            await sidecar.ask(user)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        await invalidates(sidecar, {"user": 1})
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask(1)).status == 503
        assert (await sidecar.ask(12)).status == 200
        await invalidates(sidecar, {"all": True})
        assert (await sidecar.ask(12)).status == 503
    async with clocks.sidecar(upstream, shelf) as sidecar:
        assert (await sidecar.ask(12)).status == 503


def sealed(shelf: Shelf, folder: Path, kind: str, *keys: bytes) -> Shelf:
    """Return the same shelf for a sidecar that has these keys."""
    path = folder / "keys"
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    other = copy(shelf)
    named: dict[str, Any] = {f"{kind}_key_file": path}
    other.settings = replace(shelf.settings, **named)
    return other


OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize("kind", ["encryption", "signing"])
async def test_keys_rotate_and_a_stranger_plants_nothing(
    upstream: Reference, shelf: Shelf, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    clocks, folder = Clocks(), tmp_path_factory.mktemp("keys")
    async with clocks.sidecar(upstream, sealed(shelf, folder, kind, OLD)) as sidecar:
        prompt = (await sidecar.ask()).prompt
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, sealed(shelf, folder, kind, NEW, OLD)) as sidecar:
        assert (await sidecar.ask()).prompt == prompt
    async with clocks.sidecar(upstream, sealed(shelf, folder, kind, NEW)) as sidecar:
        assert (await sidecar.ask()).status == 503
        assert 'records_dropped_total{reason="key"}' in await sidecar.metrics()
        upstream.fails(Mode.NONE)
        assert (await sidecar.ask()).prompt == prompt
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, sealed(shelf, folder, kind, NEW)) as sidecar:
        assert (await sidecar.ask()).prompt == prompt, "filled again"
    upstream.fails(Mode.NONE)
    async with clocks.sidecar(upstream, shelf) as sidecar:  # one without keys can write there, too
        await sidecar.ask(2)
        await sidecar.ask()
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, sealed(shelf, folder, kind, NEW)) as sidecar:
        assert [(await sidecar.ask(user)).status for user in (1, 2)] == [503, 503]
        assert 'records_dropped_total{reason="seal"}' in await sidecar.metrics()


async def test_what_is_encrypted_is_not_to_be_read_in_the_store(
    shelf: Shelf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    long = "canary-" + "".join(map(str, range(2000)))  # shrinks little
    closed = sealed(shelf, tmp_path_factory.mktemp("keys"), "encryption", NEW)
    async with reference(templates={"explain": long}) as upstream, Clocks().sidecar(upstream, closed) as sidecar:
        assert (await sidecar.ask()).prompt == long
    content = await shelf.content()
    assert len(content) > 1000
    assert b"canary" not in content
    assert zlib.compress(b"canary-0123456")[2:8] not in content
    assert b"prompt-data" not in content


@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_with_a_black_hole_behind_it_a_restarted_process_answers_within_a_second(
    upstream: Reference, tmp_path: Path, kind: str
) -> None:
    async with server() as redis:
        await answers_after_a_restart(upstream, tmp_path, kind, redis)


async def answers_after_a_restart(upstream: Reference, tmp_path: Path, kind: str, redis: Server) -> None:
    options = {
        "STORE__KIND": kind,
        "STORE__PATH": str(tmp_path / "cache.db"),
        "STORE__REDIS__URL": redis.url,
        "UPSTREAM__API": "auto",
        "POLICY__DEFAULT__TTL": "0s",
        "POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "0s",
    }
    async with sidecar_process(upstream.url, tmp_path, **options) as sidecar:
        prompt = (await sidecar.ask()).prompt

        async def is_written() -> bool:
            if kind == "redis":
                return bool(await redis.client.dbsize() >= 5)  # token and record, eras, changes, the generation
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
        assert took < 2, f"after {started - began:.1f} s of starting a process"


async def test_a_screen_of_the_bot_survives_a_restart(upstream: Reference, shelf: Shelf) -> None:
    async def screen(sidecar: Sidecar) -> tuple[int, bytes]:
        same = {"Host": "localhost:8002"}  # whatever port it is
        async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/", headers=same) as response:
            return response.status, await response.read()

    clocks = Clocks()
    routes = {"/api/v1/profiles*": KEPT}
    async with clocks.sidecar(upstream, shelf, routes=routes) as sidecar:
        shown = await screen(sidecar)
        assert shown[0] == 200
    upstream.fails(Mode.UNAVAILABLE)
    async with clocks.sidecar(upstream, shelf, routes=routes) as sidecar:
        assert await screen(sidecar) == shown
