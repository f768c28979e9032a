"""The screens of LearnFlow's bot: as the service draws them, and in an outage as it last drew them."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import Generation
from sidecar.settings import BreakerSettings
from tests.harness import (
    QUICK_LIMIT,
    Answered,
    Exchange,
    ManualClock,
    Reference,
    Sidecar,
    quick_settings,
    raw_upstream,
    reference,
    sidecar_with,
)

USER = 7
NEVER_OPENS = BreakerSettings(fail_max=1000)
POLICY_SECONDS = 900
CACHED = {"/api/v1/profiles*": Policy(strategy=Strategy.CACHE_FIRST, ttl=300)}
OF_THE_MOMENT = {"Date", "Server", "Connection", "Age", "Cache-Status", "Content-Length", "X-Request-ID"}
FAULTS = [Mode.UNAVAILABLE, Mode.ERROR, Mode.RESET, Mode.HANG, Mode.TOO_MANY]


class Bot(Sidecar):
    """What the bot sees before the sidecar, and would see before the service itself."""

    def __init__(self, sidecar: Sidecar, url: str, clock: ManualClock) -> None:
        super().__init__(sidecar, sidecar.core)
        self.url = url
        self.clock = clock

    async def call(self, path: str, headers: Mapping[str, str] | None = None, **how: Any) -> Answered:
        """Call the sidecar, by GET if nothing else is said; redirects are not followed."""
        method, base = how.pop("method", "GET"), how.pop("base", self.base)
        began, options = time.monotonic(), {"allow_redirects": False, "headers": headers, **how}
        async with self.session.request(method, URL(base + path, encoded=True), **options) as response:
            body = await response.read()
            return Answered(response.status, response.headers.copy(), body, time.monotonic() - began)

    async def directly(self, path: str) -> Answered:
        """Call the service itself under the sidecar's name."""
        return await self.call(path, {"Host": self.base.removeprefix("http://")}, base=self.url)


def shown(answered: Answered) -> tuple[int, dict[str, str], bytes]:
    """Return what a screen is drawn from."""
    headers = {name: value for name, value in answered.headers.items() if name not in OF_THE_MOMENT}
    return answered.status, headers, answered.body


async def screens(bot: Bot) -> list[str]:
    """Return the paths of all that the bot shows."""
    profile = (await bot.call("/api/v1/profiles/", base=bot.url)).document[0]
    placeholder = (await bot.call("/api/v1/placeholders/", base=bot.url)).document[0]
    profiles = ["", "/", f"?category={profile['category']}", f"/?category={profile['category']}", f"/{profile['id']}"]
    placeholders = ["", "/", f"/{placeholder['id']}", f"/{placeholder['id']}/values"]
    lists = [f"/api/v1/profiles{each}" for each in profiles] + [f"/api/v1/placeholders{each}" for each in placeholders]
    return [*lists, f"/api/v1/users/{USER}/placeholders"]


NAMES = frozenset({"bot.example", "learnflow", "somebody.else"})
"""By which the sidecar is asked for."""


@asynccontextmanager
async def before(url: str, **sections: Any) -> AsyncIterator[Bot]:
    clock = ManualClock()
    settings = quick_settings(url, allowed_hosts=NAMES, **{"breaker": NEVER_OPENS, **sections})
    async with sidecar_with(settings, clock=clock) as sidecar:
        yield Bot(sidecar, url, clock)


@asynccontextmanager
async def bot_before_service(**sections: Any) -> AsyncIterator[tuple[Bot, Reference]]:
    async with reference(generation=Generation.PROMPT_DATA) as service, before(service.url, **sections) as bot:
        yield bot, service


@pytest.mark.parametrize("fault", FAULTS)
async def test_all_screens_are_the_services_own_and_stay_in_an_outage_until_the_policy_ends_it(fault: Mode) -> None:
    async with bot_before_service() as (bot, service):
        paths = await screens(bot)
        drawn = {path: shown(await bot.directly(path)) for path in paths}
        for path in paths:
            assert shown(await bot.call(path)) == drawn[path]
        redirects = {path: headers["Location"] for path, (status, headers, _) in drawn.items() if status == 307}
        assert len(redirects) == 3
        assert all(location.startswith(f"{bot.base}/api/v1/") for location in redirects.values())
        service.fails(fault, retry_after=0)
        bot.clock.advance(POLICY_SECONDS - 1)
        for path, answered in zip(paths, await asyncio.gather(*map(bot.call, paths)), strict=True):
            assert shown(answered) == drawn[path]
            assert answered.age == POLICY_SECONDS - 1
            assert answered.how.startswith("prompt-sidecar; fwd=stale")
            assert answered.seconds < QUICK_LIMIT
        bot.clock.advance(2)
        for answered in await asyncio.gather(*map(bot.call, paths)):
            assert answered.status in {500, 503, 504, 429}
            assert answered.seconds < QUICK_LIMIT
        service.fails(Mode.NONE)
        assert shown(await bot.call(paths[1])) == drawn[paths[1]]


@pytest.mark.parametrize("fault", [Mode.GARBAGE, Mode.EMPTY, Mode.HALF])
async def test_what_is_no_screen_never_takes_the_place_of_one(fault: Mode) -> None:
    async with bot_before_service() as (bot, service):
        path = "/api/v1/profiles/"
        drawn = shown(await bot.call(path))
        service.fails(fault)
        for _ in range(2):
            assert shown(await bot.call(path)) == drawn
        service.fails(Mode.UNAVAILABLE)
        assert shown(await bot.call(path)) == drawn


async def test_two_names_of_the_sidecar_do_not_mix_in_an_outage_either() -> None:
    async with bot_before_service() as (bot, service):
        hosts = ["bot.example:8002", "localhost:8002", "learnflow"]
        locations = {host: f"http://{host}/api/v1/profiles/?category=style" for host in hosts}
        for fault in (Mode.NONE, Mode.RESET):
            service.fails(fault)
            for host in hosts:
                answered = await bot.call("/api/v1/profiles?category=style", {"Host": host})
                assert (answered.status, answered.headers["Location"]) == (307, locations[host])
        never_asked = await bot.call("/api/v1/profiles?category=style", {"Host": "somebody.else"})
        assert never_asked.status == 503
        assert "Location" not in never_asked.headers


@pytest.mark.parametrize(
    "header", [("Authorization", "Bearer x"), ("Cookie", "session=x"), ("Range", "bytes=0-9"), ("X-Api-Key", "x")]
)
async def test_a_read_that_is_somebodys_own_is_passed_on_and_never_kept(header: tuple[str, str]) -> None:
    seen: list[bytes] = []

    async def plays(exchange: Exchange) -> None:
        seen.append(exchange.head)
        await exchange.answer([{"answer": len(seen)}])

    name, value = header
    async with raw_upstream(plays) as upstream, before(upstream.url, routes=CACHED) as bot:
        for number in (1, 2):
            answered = await bot.call("/api/v1/profiles/", {name: value})
            assert answered.document == [{"answer": number}]
            assert f"{name}: {value}\r\n".encode() in seen[-1]
        assert len(bot.core.cache) == 0
        assert (await bot.call("/api/v1/profiles/")).document == [{"answer": 3}]  # nobody else is given it
        assert (await bot.call("/api/v1/profiles/")).document == [{"answer": 3}]  # which is kept, and
        assert (await bot.call("/api/v1/profiles/", {name: value})).document == [{"answer": 4}]  # not for him


async def test_what_is_no_static_read_is_never_kept() -> None:
    paths = ["/health", "/", "/api/v1/nothing", "/api/v1/users/7/history", "/api/v1//profiles/", "/api/v1/%70rofiles/"]

    async def plays(exchange: Exchange) -> None:
        await exchange.answer({"anything": 1}, status=503 if down else 200, headers={"Cache-Control": "max-age=3600"})

    down = False
    async with raw_upstream(plays) as upstream, before(upstream.url) as bot:
        for path in paths:
            assert (await bot.call(path)).status == 200
        for method in ("POST", "OPTIONS", "DELETE"):
            assert (await bot.call("/api/v1/profiles/", method=method)).status == 200
        assert len(bot.core.cache) == 0
        down = True
        for path in paths:
            answered = await bot.call(path)
            assert (answered.status, answered.document) == (503, {"anything": 1})
        assert (await bot.call("/api/v1/profiles/")).status == 503


@pytest.mark.parametrize(
    "said", [{"Set-Cookie": "a=b"}, {"Cache-Control": "private, max-age=60"}, {"Cache-Control": "no-store"}]
)
async def test_an_answer_that_is_for_one_only_is_not_kept(said: dict[str, str]) -> None:
    async with (
        raw_upstream(lambda exchange: exchange.answer([], headers=said)) as upstream,
        before(upstream.url, routes=CACHED) as bot,
    ):
        for _ in range(2):
            answered = await bot.call("/api/v1/profiles/")
            assert (answered.status, answered.document) == (200, [])
            assert {name: answered.headers[name] for name in said} == said
        assert (len(upstream.requests), len(bot.core.cache)) == (2, 0)


async def test_a_404_is_passed_on_and_evicts() -> None:
    async with bot_before_service() as (bot, service):
        path = (await screens(bot))[4]
        assert (await bot.call(path)).status == 200
        name = next(iter(service.state.vocabulary.profiles))
        gone = service.state.vocabulary.profiles.pop(name)
        theirs = await bot.directly(path)
        answered = await bot.call(path)
        assert (answered.status, answered.body) == (404, theirs.body) == (theirs.status, theirs.body)
        service.fails(Mode.UNAVAILABLE, retry_after=0)
        assert (await bot.call(path)).status == 503  # nothing that it contradicted is left
        service.fails(Mode.NONE)
        service.state.vocabulary.profiles[name] = gone
        assert (await bot.call(path)).status == 200


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
async def test_a_profile_that_was_changed_through_the_sidecar_is_seen_at_once(method: str) -> None:
    title = "old"

    async def plays(exchange: Exchange) -> None:
        nonlocal title
        if not exchange.head.startswith(b"GET"):
            title = "new"
        await exchange.answer({"title": title})

    async with raw_upstream(plays) as upstream, before(upstream.url, routes=CACHED) as bot:
        for _ in range(2):
            assert (await bot.call("/api/v1/profiles/1")).document == {"title": "old"}
        assert len(upstream.requests) == 1
        assert (await bot.call("/api/v1/profiles/1", method=method, json={})).status == 200
        for _ in range(2):
            assert (await bot.call("/api/v1/profiles/1")).document == {"title": "new"}
        assert len(upstream.requests) == 3


async def test_a_setting_that_was_changed_through_the_sidecar_is_seen_on_the_screen_and_in_the_prompt() -> None:
    routes = {"/api/v1/users/{id}/placeholders": Policy(strategy=Strategy.CACHE_FIRST, ttl=300)}
    async with bot_before_service(routes=routes) as (bot, service):
        path = f"/api/v1/users/{USER}/placeholders"
        before_it = (await bot.call(path)).document["placeholders"]["language"]
        assert "in English" in (await bot.ask(USER)).prompt
        german = service.state.vocabulary.placeholder_document("language")["values"][1]
        change = f"{path}/{before_it['placeholder_id']}"
        assert (await bot.call(change, method="PUT", json={"value_id": german["id"]})).status == 200
        assert (await bot.call(path)).document["placeholders"]["language"]["value"] == german["value"]
        assert german["value"] in (await bot.ask(USER)).prompt
        assert (await bot.call(f"/api/v1/users/{USER}/reset", method="POST")).status == 200
        assert (await bot.call(path)).document["placeholders"]["language"] == before_it


@pytest.mark.parametrize("fault", [Mode.UNAVAILABLE, Mode.RESET])
async def test_in_an_outage_a_write_fails_once_and_takes_no_others_screen_away(fault: Mode) -> None:
    async with bot_before_service() as (bot, service):
        kept = ["/api/v1/profiles/", "/api/v1/users/8/placeholders"]
        drawn = {path: shown(await bot.call(path)) for path in kept}
        service.fails(fault, retry_after=0)
        failed = await bot.call(f"/api/v1/users/{USER}/reset", method="POST")
        assert failed.status in {502, 503}
        assert failed.document["detail"]
        assert service.state.calls["reset"] == 1
        for path in kept:
            assert shown(await bot.call(path)) == drawn[path]
