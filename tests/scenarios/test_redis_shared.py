"""Several sidecars with one Redis: what one fetched serves all, a change through one is seen by all."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from sidecar.core.policy import Policy
from sidecar.core.servers import RedisUrl
from sidecar.demo.reference.database import stable_id
from sidecar.demo.reference.faults import Mode
from sidecar.settings import RedisMode, RedisSettings, StoreKind, StoreSettings
from tests.harness import Reference, Sidecar, reference, settings_for, sidecar_with
from tests.redis_servers import Server, server

A_SECOND = 1.0 + 4.0
"""What a change may take to reach all; and what a busy machine may take from the test, which runs all of them."""
LONG = Policy(ttl=600, max_ttl=600, stale_while_revalidate=0, stale_if_error=600)


def store_at(url: str, **redis: Any) -> StoreSettings:
    given = {
        "url": RedisUrl().parse(url),
        "timeout": 0.5,
        "reconnect": 0.05,
        "loss_window": 0.1,
        "gather": 0.01,
        **redis,
    }
    given["mode"] = RedisMode(given.get("mode", "single"))
    return StoreSettings(kind=StoreKind.REDIS, redis=RedisSettings(**given))


@dataclass
class Group:
    """A config service, a Redis, and sidecars that share it."""

    upstream: Reference
    redis: Server
    sidecars: list[Sidecar]


@asynccontextmanager
async def group_of(many: int, kind: str = "valkey", policy: Policy = LONG, **redis: Any) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(reference(announce_version=False))
        redis_server = await stack.enter_async_context(server(kind))
        settings = settings_for(upstream.url, policy=policy, store=store_at(redis_server.url, **redis))
        sidecars = [await stack.enter_async_context(sidecar_with(settings)) for _ in range(many)]
        yield Group(upstream, redis_server, sidecars)


async def change(through: Sidecar, user: int, to: str) -> None:
    """Change a setting through a sidecar, as the bot does."""
    url = f"{through.base}/api/v1/users/{user}/placeholders/{stable_id('placeholder', 'style')}"
    async with through.session.put(url, json={"value_id": stable_id("value", "style", to)}) as response:
        assert response.status == 200


def styles(group: Group) -> tuple[str, str]:
    """Return the default style, and another one."""
    default, other, *_ = (
        value.value for value in group.upstream.state.vocabulary.placeholders["style"].values.values()
    )
    return default, other


async def written(sidecar: Sidecar) -> None:
    """Wait until what is to be kept in Redis is there."""
    store: Any = sidecar.core.store
    await store.flush()


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_what_one_fetched_serves_all(kind: str) -> None:
    async with group_of(3, kind) as group:
        prompts = []
        for sidecar in group.sidecars:
            answer = await sidecar.ask()
            prompts.append(answer.prompt)
            await written(sidecar)
        assert group.upstream.calls == 1
        assert len(set(prompts)) == 1
        assert answer.how.startswith("prompt-sidecar; hit; ttl=")


async def test_in_an_outage_one_answers_with_what_another_fetched() -> None:
    async with group_of(2) as group:
        one, two = group.sidecars
        prompt = (await one.ask()).prompt
        await written(one)
        group.upstream.fails(Mode.UNAVAILABLE)
        assert (await two.ask()).prompt == prompt
        assert (await two.ask(user=2)).status == 503


async def test_a_change_through_one_is_seen_by_all_within_a_second() -> None:
    async with group_of(3) as group:
        default, other = styles(group)
        for sidecar in group.sidecars:
            assert default in (await sidecar.ask()).prompt
            assert default in (await sidecar.ask(user=12)).prompt
        await change(group.sidecars[0], 1, other)
        async with asyncio.timeout(A_SECOND):
            for sidecar in group.sidecars:
                while other not in (await sidecar.ask()).prompt:
                    pass
        calls = group.upstream.calls
        for sidecar in group.sidecars:
            assert default in (await sidecar.ask(user=12)).prompt
        assert group.upstream.calls == calls, "user 1 is not user 12"


@pytest.mark.parametrize("through", ["an admin call", "the proxy"])
async def test_an_id_beyond_all_users_is_nobodys_and_silences_no_sidecar(through: str) -> None:
    async with group_of(2) as group:
        one, two = group.sidecars
        default, other = styles(group)
        assert default in (await two.ask()).prompt
        if through == "an admin call":
            async with one.session.post(f"{one.ops}/admin/invalidate", json={"user": 10**30}) as response:
                assert response.status == 422
        else:
            async with one.session.put(f"{one.base}/api/v1/users/{10**30}/placeholders/1", json={}) as response:
                assert response.status >= 400
        await one.ask(user=10**30)
        await change(one, 1, other)
        async with asyncio.timeout(A_SECOND):
            while other not in (await two.ask()).prompt:
                pass


async def test_what_a_clock_ahead_of_the_others_dates_into_the_future_blocks_nobody() -> None:
    async with group_of(0) as group:
        settings = settings_for(group.upstream.url, policy=LONG, store=store_at(group.redis.url))
        async with (
            sidecar_with(settings, wall=lambda: time.time() + 50) as ahead,
            sidecar_with(settings) as two,
            sidecar_with(settings) as three,
        ):
            await ahead.ask()
            await written(ahead)
            assert "fwd=miss" in (await two.ask()).how
            await written(two)
            assert (await three.ask()).how.startswith("prompt-sidecar; hit")
