"""LearnFlow's Telegram bot through the proxy: each of its calls is answered as the config service answers it."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest

from sidecar.core.events import Proxied
from sidecar.demo.reference.state import State
from tests.proxying import Setting, proxied, silence
from tests.wire import reference

USER = 4711
TIMEOUT = aiohttp.ClientTimeout(total=30)  # the bot's
OF_THE_MOMENT = {"Date", "Location"}
"""Headers that tell when and by which name the service was asked."""


class Bot:
    """The bot's manner of calling: one session, JSON, redirects followed."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and document."""
        async with self.session.request(method, f"{self.base}/api/v1{path}", json=body, **options) as response:
            headers = {name: value for name, value in response.headers.items() if name not in OF_THE_MOMENT}
            content = await response.json() if response.content_type == "application/json" else await response.read()
            return response.status, headers, content


class World(NamedTuple):
    """The bot before the proxy, the bot before the service itself, and what stands behind both."""

    bot: Bot
    direct: Bot
    state: State
    setting: Setting

    async def same(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Make a call both ways, compare status, headers and body, and return the document."""
        passed = await self.bot.call(method, path, body, **options)
        assert passed == await self.direct.call(method, path, body, **options)
        return passed[2]

    @property
    def told(self) -> list[tuple[str, str]]:
        """Methods and results of what passed."""
        return [(event.method, event.result) for event in self.setting.events if isinstance(event, Proxied)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with (
        reference() as (url, state),
        proxied(silence, url=url) as setting,
        aiohttp.ClientSession(timeout=TIMEOUT) as session,
    ):
        yield World(Bot(session, f"http://127.0.0.1:{setting.port}"), Bot(session, url), state, setting)


async def first_id(world: World, kind: str) -> str:
    _, _, listed = await world.direct.call("GET", f"/{kind}/")
    found: str = listed[0]["id"]
    return found


async def settings(world: World) -> Any:
    return (await world.direct.call("GET", f"/users/{USER}/placeholders"))[2]["placeholders"]


async def other_value(world: World) -> tuple[str, str, str]:
    """Return a placeholder's name and id, and the id of a value of it that the user has not."""
    _, _, listed = await world.direct.call("GET", "/placeholders/")
    now = await settings(world)
    for each in listed:
        for value in each["values"]:
            if value["id"] != now[each["name"]]["value_id"]:
                return each["name"], each["id"], value["id"]
    raise AssertionError("no placeholder has two values")


async def test_profiles_are_listed_through_the_redirect_of_the_path_without_its_slash(world: World) -> None:
    assert len(await world.same("GET", "/profiles")) > 0
    assert world.told == [("GET", "3xx"), ("GET", "2xx")]  # both through us: the redirect names the host that was asked


async def test_the_redirect_itself_passes_unchanged(world: World) -> None:
    for kind in ("profiles?category=style", "placeholders"):
        path, _, query = kind.partition("?")
        await world.same("GET", f"/{kind}", allow_redirects=False)
        async with world.bot.session.get(f"{world.bot.base}/api/v1/{kind}", allow_redirects=False) as response:
            assert response.status == 307
            expected = f"{world.bot.base}/api/v1/{path}/{'?' + query if query else ''}"
            assert response.headers["Location"] == expected


async def test_profiles_are_listed_by_category(world: World) -> None:
    _, _, listed = await world.direct.call("GET", "/profiles/")
    category = listed[0]["category"]
    assert {each["category"] for each in await world.same("GET", f"/profiles?category={category}")} == {category}
    assert await world.same("GET", "/profiles?category=nothing%20at%2Fall") == []


async def test_a_profile_is_shown(world: World) -> None:
    profile = await first_id(world, "profiles")
    assert (await world.same("GET", f"/profiles/{profile}"))["id"] == profile


async def test_placeholders_are_listed_through_the_redirect(world: World) -> None:
    assert len(await world.same("GET", "/placeholders")) > 0


async def test_a_placeholder_is_shown(world: World) -> None:
    placeholder = await first_id(world, "placeholders")
    assert (await world.same("GET", f"/placeholders/{placeholder}"))["id"] == placeholder


async def test_the_values_of_a_placeholder_are_listed(world: World) -> None:
    assert len(await world.same("GET", f"/placeholders/{await first_id(world, 'placeholders')}/values")) > 0


async def test_the_settings_of_a_user_are_shown(world: World) -> None:
    assert (await world.same("GET", f"/users/{USER}/placeholders"))["placeholders"]


async def test_a_setting_is_changed(world: World) -> None:
    name, placeholder, value = await other_value(world)
    path = f"/users/{USER}/placeholders/{placeholder}"
    status, _, document = await world.bot.call("PUT", path, {"value_id": value})
    assert (status, document) == (200, {"message": "Placeholder value updated successfully"})
    assert (await settings(world))[name]["value_id"] == value
    assert world.setting.watch.writes == [("PUT", f"/api/v1{path}")]
    await world.same("PUT", path, {"value_id": value})


async def test_a_profile_is_applied(world: World) -> None:
    profile = await first_id(world, "profiles")
    document = await world.same("POST", f"/users/{USER}/apply-profile/{profile}")
    assert document["placeholders"] == await settings(world)
    assert world.setting.watch.writes == [("POST", f"/api/v1/users/{USER}/apply-profile/{profile}")]


async def test_the_settings_are_reset(world: World) -> None:
    before = await settings(world)
    _, placeholder, value = await other_value(world)
    await world.bot.call("PUT", f"/users/{USER}/placeholders/{placeholder}", {"value_id": value})
    assert await settings(world) != before
    await world.bot.call("POST", f"/users/{USER}/reset")
    assert await settings(world) == before
    await world.same("POST", f"/users/{USER}/reset")


async def test_the_services_health_is_its_own(world: World) -> None:
    for path in ("/health", "/"):
        async with (
            world.bot.session.get(world.bot.base + path) as passed,
            world.direct.session.get(world.direct.base + path) as direct,
        ):
            assert (passed.status, await passed.read()) == (direct.status, await direct.read())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/profiles/not-an-id", None, 422),
        ("GET", "/profiles/00000000-0000-0000-0000-000000000000", None, 404),
        ("GET", "/nothing/here", None, 404),
        ("DELETE", "/profiles/", None, 405),
        ("PUT", f"/users/{USER}/placeholders/00000000-0000-0000-0000-000000000000", {"value_id": "x"}, 404),
        ("POST", "/users/0/reset", None, 400),
    ],
)
async def test_the_services_refusals_pass_as_they_are(
    world: World, method: str, path: str, body: Any, status: int
) -> None:
    assert (await world.bot.call(method, path, body))[0] == status
    await world.same(method, path, body)
