"""Promise 8: a change of settings that passes through the sidecar is seen by that user's next prompt."""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import looptime
import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.errors import FailureKind, PromptError, UpstreamFailure
from sidecar.core.model import Rendered, UserSettings
from sidecar.core.policy import Policy
from sidecar.demo.reference.database import stable_id
from sidecar.demo.reference.state import TODAY
from sidecar.demo.reference.state import Generation as Offers
from sidecar.service.forwarding import WriteEnd
from sidecar.service.write_watch import WriteWatch
from sidecar.settings import ProxySettings, Settings, UpstreamApi
from tests.fakes import Fetch, HeldSource, TodaysWorld, World, document
from tests.harness import (
    Answered,
    Exchange,
    ManualClock,
    Reference,
    Sidecar,
    eventually,
    prompt_data,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

SETTLE = 25.0
HOUR = Policy(ttl=3600, stale_while_revalidate=30, stale_if_error=3600)
"""The cache would serve for an hour."""
READ = "/api/v1/users/{}/placeholders"
ROUTES = {READ.format("{id}"): HOUR}
GENERATIONS = [UpstreamApi.PLACEHOLDERS, UpstreamApi.PROMPT_DATA]
WRITES = [
    pytest.param("PUT", "/api/v1/users/1/placeholders/3f0e", id="put"),
    pytest.param("POST", "/api/v1/users/1/apply-profile/3f0e", id="apply-profile"),
    pytest.param("POST", "/api/v1/users/1/reset", id="reset"),
]
PUT = ("PUT", "/api/v1/users/1/placeholders/3f0e")


@pytest.fixture(params=GENERATIONS)
def api(request: pytest.FixtureRequest) -> UpstreamApi:
    chosen: UpstreamApi = request.param
    return chosen


def keeping(url: str, api: UpstreamApi, folder: Path) -> Settings:
    """Return settings of a sidecar that keeps for an hour all that it may."""
    templates = folder / "prompts.yaml"
    templates.write_text('explain_system_prompt: "Explain {{ topic }} in {{ style }}."\n')
    return settings_for(
        url,
        policy=HOUR,
        upstream={"api": api, "templates_file": templates},
        routes=ROUTES,
        proxy=ProxySettings(response_timeout=SETTLE),
    )


class Service:
    """A config service that is a socket: what becomes of each request is up to the test."""

    def __init__(self) -> None:
        self.styles: defaultdict[int, str] = defaultdict(lambda: "old words")
        self.reads = 0
        self.held: asyncio.Event | None = None
        """Holds back the next answer to a read, once the value is read."""
        self.asked = asyncio.Event()
        """A read was asked for."""
        self.write_asked = asyncio.Event()
        self.writes_as: Callable[[Exchange, Callable[[], None]], Any] = self.applies

    async def applies(self, exchange: Exchange, apply: Callable[[], None]) -> None:
        apply()
        await exchange.answer({"message": "updated"})

    async def __call__(self, exchange: Exchange) -> None:
        method, target = exchange.head.split(b" ", 2)[:2]
        user = re.search(r"/users/([^/?]+)", unquote(target.decode()))
        if method == b"GET" or target.endswith(b"/prompt-data"):
            await self._reads(exchange, int(user[1]) if user else exchange.asked["user_id"])
        else:
            assert user is not None
            self.write_asked.set()
            await self.writes_as(exchange, lambda: self._apply(int(user[1])))

    def _apply(self, user: int) -> None:
        self.styles[user] = "new words"

    async def _reads(self, exchange: Exchange, user: int) -> None:
        self.reads += 1
        style = self.styles[user]
        held, self.held = self.held, None
        self.asked.set()
        if held is not None:
            await held.wait()
        if exchange.head.startswith(b"GET"):
            await exchange.answer({"placeholders": {"style": {"placeholder_name": "style", "value": style}}})
        else:
            await exchange.answer(prompt_data(settings={"style": style}, cache_ttl=3600))


class Bot(Sidecar):
    """A sidecar, and how LearnFlow's bot talks to it."""

    def __init__(self, sidecar: Sidecar) -> None:
        super().__init__(sidecar, sidecar.core)

    async def style(self, user: int = 1) -> str:
        """Return the style of the user's next prompt."""
        prompt = (await self.ask(user)).prompt
        return prompt.removeprefix("Explain tides in ").removesuffix(".")

    async def writes(self, method: str = PUT[0], path: str = PUT[1], body: Any = None) -> int:
        url = self.base + path
        async with self.session.request(method, url, json=body or {}, allow_redirects=False) as response:
            await response.read()
            return response.status

    async def reads(self, user: int = 1) -> Answered:
        """Read a user's settings as the bot's screens do."""
        async with self.session.get(self.base + READ.format(user)) as response:
            return Answered(response.status, response.headers.copy(), await response.read(), 0.0)

    async def is_unsettled(self, user: int = 1) -> bool:
        await self.metrics()
        return self.core.writes.ticket(user) is None


@asynccontextmanager
async def bot_before(
    service: Service, api: UpstreamApi, folder: Path, clock: ManualClock | None = None
) -> AsyncIterator[Bot]:
    async with raw_upstream(service) as upstream:
        given = {} if clock is None else {"clock": clock}
        async with sidecar_with(keeping(upstream.url, api, folder), **given) as sidecar:  # type: ignore[arg-type] # one
            yield Bot(sidecar)


async def test_without_a_write_the_cache_would_have_served(api: UpstreamApi, tmp_path: Path) -> None:
    service = Service()
    async with bot_before(service, api, tmp_path) as bot:
        await bot.style()
        service.styles[1] = "words changed behind its back"
        assert await bot.style() == "old words"
        assert service.reads == 1


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_the_next_prompt_shows_a_change_and_is_kept_again(
    api: UpstreamApi, tmp_path: Path, method: str, path: str
) -> None:
    service = Service()
    async with bot_before(service, api, tmp_path) as bot:
        assert await bot.style() == "old words"
        assert await bot.writes(method, path) == 200
        assert [await bot.style(), await bot.style()] == ["new words", "new words"]
        assert service.reads == 2


@pytest.mark.parametrize("spelled", ["+1", "001", "%31", "%2B1", "0_1"])
async def test_however_the_user_is_spelled(api: UpstreamApi, tmp_path: Path, spelled: str) -> None:
    service = Service()
    async with bot_before(service, api, tmp_path) as bot:
        await bot.style()
        path = f"/api/v1/users/{spelled}/placeholders/3f0e".encode()  # byte for byte: a client library would tidy it up
        request = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % path
        assert (await bot.raw(request)).startswith(b"HTTP/1.1 200")
        assert await bot.style() == "new words"


async def test_a_change_of_user_1_costs_user_12_nothing(api: UpstreamApi, tmp_path: Path) -> None:
    service = Service()
    async with bot_before(service, api, tmp_path) as bot:
        for user in (1, 12, 11):
            await bot.style(user)
        service.styles[12] = service.styles[11] = "what would be seen by asking"
        await bot.writes()
        assert await bot.style(12) == "old words"
        assert await bot.style(11) == "old words"
        assert await bot.style(1) == "new words"


async def test_a_change_whose_answer_was_lost_is_seen_and_nothing_is_kept_until_it_is_settled(
    api: UpstreamApi, tmp_path: Path
) -> None:
    service, clock = Service(), ManualClock()

    async def resets(exchange: Exchange, apply: Callable[[], None]) -> None:
        apply()
        exchange.reset()

    service.writes_as = resets
    async with bot_before(service, api, tmp_path, clock) as bot:
        await bot.style()
        assert await bot.writes() == 503
        for _ in range(3):
            assert await bot.style() == "new words"
        assert service.reads == 4
        clock.advance(SETTLE)
        assert [await bot.style(), await bot.style()] == ["new words", "new words"]
        assert service.reads == 5


async def test_a_change_that_takes_effect_only_after_its_answer_was_lost_is_seen_as_soon_as_it_does(
    api: UpstreamApi, tmp_path: Path
) -> None:
    service, clock, applied = Service(), ManualClock(), []

    async def resets(exchange: Exchange, apply: Callable[[], None]) -> None:
        applied.append(apply)
        exchange.reset()

    service.writes_as = resets
    async with bot_before(service, api, tmp_path, clock) as bot:
        assert await bot.writes() == 503
        assert await bot.style() == "old words"
        clock.advance(SETTLE - 1)
        assert await bot.style() == "old words"
        applied[0]()
        assert await bot.style() == "new words"
        clock.advance(2)
        assert await bot.style() == "new words"


async def test_a_change_that_the_client_did_not_wait_for_is_seen(api: UpstreamApi, tmp_path: Path) -> None:
    service, go_on = Service(), asyncio.Event()

    async def dawdles(exchange: Exchange, apply: Callable[[], None]) -> None:
        await go_on.wait()
        apply()
        await exchange.answer({})

    service.writes_as = dawdles
    async with bot_before(service, api, tmp_path) as bot:
        await bot.style()
        writing = asyncio.ensure_future(bot.writes())
        await service.write_asked.wait()
        writing.cancel()
        await eventually(bot.is_unsettled)
        assert await bot.style() == "old words"
        service._apply(1)
        go_on.set()
        assert await bot.style() == "new words"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_change_for_which_only_somebody_in_between_answered_is_seen_when_it_takes_effect(
    api: UpstreamApi, tmp_path: Path, status: int
) -> None:
    service, clock = Service(), ManualClock()

    async def gateway_gives_up(exchange: Exchange, _: Callable[[], None]) -> None:
        await exchange.answer({"detail": "upstream timed out"}, status=status)

    service.writes_as = gateway_gives_up
    async with bot_before(service, api, tmp_path, clock) as bot:
        await bot.style()
        assert await bot.writes() == status
        assert await bot.style() == "old words"
        service._apply(1)
        assert await bot.style() == "new words"


async def test_a_change_that_was_refused_is_over(api: UpstreamApi, tmp_path: Path) -> None:
    service = Service()

    async def refuses(exchange: Exchange, _: Callable[[], None]) -> None:
        await exchange.answer({"detail": "Placeholder value not found"}, status=404)

    service.writes_as = refuses
    async with bot_before(service, api, tmp_path) as bot:
        await bot.style()
        assert await bot.writes() == 404
        assert [await bot.style(), await bot.style()] == ["old words", "old words"]
        assert service.reads == 2


async def test_a_change_that_was_never_sent_leaves_what_is_kept_for_the_outage(
    api: UpstreamApi, tmp_path: Path
) -> None:
    service = Service()
    async with (
        raw_upstream(service) as upstream,
        sidecar_with(keeping(upstream.url, api, tmp_path)) as sidecar,
    ):
        bot = Bot(sidecar)
        await bot.style()
        await upstream.close()
        assert await bot.writes() == 503
        assert await bot.style() == "old words"


async def test_a_fetch_that_was_under_way_does_not_bring_old_settings_back(api: UpstreamApi, tmp_path: Path) -> None:
    service, held = Service(), asyncio.Event()
    async with bot_before(service, api, tmp_path) as bot:
        service.held = held
        before = asyncio.ensure_future(bot.style())
        await service.asked.wait()
        assert await bot.writes() == 200
        assert await bot.style() == "new words", "it shares no fetch from before the change"
        held.set()
        assert await before == "old words"
        assert await bot.style() == "new words"
        assert service.reads == 2


async def test_a_fetch_that_lands_between_the_change_and_its_answer_is_not_served_after_it(
    api: UpstreamApi, tmp_path: Path
) -> None:
    service, go_on = Service(), asyncio.Event()

    async def dawdles(exchange: Exchange, apply: Callable[[], None]) -> None:
        await go_on.wait()
        apply()
        await exchange.answer({})

    service.writes_as = dawdles
    async with bot_before(service, api, tmp_path) as bot:
        writing = asyncio.ensure_future(bot.writes())
        await service.write_asked.wait()
        assert await bot.style() == "old words"
        go_on.set()
        assert await writing == 200
        assert await bot.style() == "new words"


async def test_old_settings_do_not_stand_in_for_changed_ones_in_an_outage(api: UpstreamApi, tmp_path: Path) -> None:
    service = Service()
    async with (
        raw_upstream(service) as upstream,
        sidecar_with(keeping(upstream.url, api, tmp_path)) as sidecar,
    ):
        bot = Bot(sidecar)
        await bot.style()
        assert await bot.writes() == 200
        await upstream.close()
        assert (await bot.ask()).status == 503


async def test_the_bot_reads_what_it_wrote(tmp_path: Path) -> None:
    service = Service()
    async with bot_before(service, UpstreamApi.PROMPT_DATA, tmp_path) as bot:
        for shown in ("old words", "old words"):
            assert (await bot.reads()).document["placeholders"]["style"]["value"] == shown
        assert service.reads == 1
        await bot.reads(12)
        await bot.writes()
        for shown in ("new words", "new words"):
            assert (await bot.reads()).document["placeholders"]["style"]["value"] == shown
        assert service.reads == 3
        await bot.reads(12)
        assert service.reads == 3


async def test_a_bots_read_that_was_under_way_does_not_bring_old_settings_back(tmp_path: Path) -> None:
    service, held = Service(), asyncio.Event()
    async with bot_before(service, UpstreamApi.PROMPT_DATA, tmp_path) as bot:
        service.held = held
        before = asyncio.ensure_future(bot.reads())
        await service.asked.wait()
        await bot.writes()
        assert "new words" in (await bot.reads()).body.decode()
        held.set()
        assert "old words" in (await before).body.decode()
        assert "new words" in (await bot.reads()).body.decode()


@asynccontextmanager
async def real_bot(api: UpstreamApi, folder: Path) -> AsyncIterator[tuple[Bot, Reference]]:
    """Run a sidecar before the reference service, which has ids and a vocabulary as the real one."""
    offers = Offers.PLACEHOLDERS if api is UpstreamApi.PLACEHOLDERS else Offers.PROMPT_DATA
    templates = {"explain": "Explain {{ topic }} in {{ style }}."}
    async with (
        reference(templates=templates, generation=offers, render=TODAY) as config,
        sidecar_with(keeping(config.url, api, folder)) as sidecar,
    ):
        yield Bot(sidecar), config


async def test_everything_that_learnflows_bot_may_change_is_seen(api: UpstreamApi, tmp_path: Path) -> None:
    async with real_bot(api, tmp_path) as (bot, config):
        vocabulary = config.state.vocabulary
        default, other, *_ = (value.value for value in vocabulary.placeholders["style"].values.values())
        profile = next(
            name for name in vocabulary.profiles if vocabulary.profile_settings(name).get("style", default) != default
        )
        assert await bot.style() == default
        style_id = stable_id("placeholder", "style")
        chosen = {"value_id": stable_id("value", "style", other)}
        assert await bot.writes("PUT", f"{READ.format(1)}/{style_id}", chosen) == 200
        assert await bot.style() == other
        assert await bot.writes("POST", "/api/v1/users/1/reset") == 200
        assert await bot.style() == default
        assert await bot.writes("POST", f"/api/v1/users/1/apply-profile/{stable_id('profile', profile)}") == 200
        assert await bot.style() == vocabulary.profile_settings(profile)["style"]
        shown = (await bot.reads()).document["placeholders"]["style"]["value"]
        assert shown == vocabulary.profile_settings(profile)["style"]
        assert await bot.style(12) == default


async def test_many_changes_and_prompts_at_once_end_with_the_last_change_seen(api: UpstreamApi, tmp_path: Path) -> None:
    async with real_bot(api, tmp_path) as (bot, config):
        values = [value.value for value in config.state.vocabulary.placeholders["style"].values.values()]
        path = f"{READ.format(1)}/{stable_id('placeholder', 'style')}"
        for _ in range(5):
            for value in values:
                asking = [asyncio.ensure_future(bot.style()) for _ in range(5)]
                assert await bot.writes("PUT", path, {"value_id": stable_id("value", "style", value)}) == 200
                assert await bot.style() == value
                assert {await each for each in asking} <= {*values}
                assert await bot.style() == value


async def test_a_redirect_or_a_failed_connection_to_nowhere_changes_nothing(tmp_path: Path) -> None:
    async with real_bot(UpstreamApi.PLACEHOLDERS, tmp_path) as (bot, config):
        await bot.style()
        assert await bot.writes("POST", "/api/v1/users/1/reset/") == 307
        assert await bot.style() == await bot.style()
        assert config.state.calls["user-placeholders"] == 2
        with pytest.raises(aiohttp.ClientError):
            await bot.session.post("http://127.0.0.1:1/")


# What follows checks the rules against a model, whatever the order of things.

USERS = st.sampled_from([1, 1, 12])  # much happens to one: that is where rules meet
NODES = st.sampled_from(["explain", "explain", "quiz"])
ENDS = st.sampled_from([WriteEnd.ANSWERED, WriteEnd.LOST])
MODEL_SETTLE = 2.0
"""Seconds; shorter than a request's deadline, so that a fetch may outlast it."""
MODEL_POLICY = Policy(ttl=200, stale_while_revalidate=30, stale_if_error=400, network_timeout=1)


class Write:
    """A change on its way."""

    def __init__(self, user: int, ended: Callable[[WriteEnd], None]) -> None:
        self.user = user
        self.ended = ended
        self.version = 0
        """What it made the settings; 0: nothing yet."""
        self.lost_until = 0.0
        """Until when it may take effect, once its answer is lost."""


class ReadYourWrites(RuleBasedStateMachine):
    """Prompts, fetches and changes of a few users, in any order, in faked time.

    The model knows the true version of each user's settings, and which of them have been answered for.
    """

    max_marks = 100

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop(start=0)
        self.versions = 0
        self.truth: defaultdict[int, int] = defaultdict(int)
        self.owed: defaultdict[int, int] = defaultdict(int)  # what a prompt that begins now must show, or newer
        self.prompts: list[tuple[asyncio.Task[Rendered], int]] = []
        self.read: dict[Fetch[Any, Any], int] = {}
        self.writing: list[Write] = []
        self.lost: list[Write] = []
        self.source: HeldSource[Any, Any] = HeldSource()
        self.run(self.begin())

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def begin(self) -> None:
        self.world = self.make()
        self.world.writes._max_marks = self.max_marks
        self.watch = WriteWatch(
            self.world.writes, settle_seconds=lambda: MODEL_SETTLE, observer=self.world.events.append
        )

    def make(self) -> World:
        world = World(MODEL_POLICY)
        world.resources._source = self.source
        return world

    def document(self, version: int) -> Any:
        return document_of(version)

    def settle(self) -> None:
        async def passing() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.run(passing())

    @property
    def under_way(self) -> list[Fetch[Any, Any]]:
        return [fetch for fetch in self.source.fetches if not fetch.ended.done()]

    def answer(self, fetch: Fetch[Any, Any]) -> None:
        """Have a fetch bring what the upstream read for it: now, if it has not before."""
        fetch.brings(self.document(self.read.setdefault(fetch, self.truth[fetch.key.owner])))

    def end(self, write: Write, how: WriteEnd) -> None:
        """Tell how a write ended, as the proxy does; from then on, what took effect of it is owed."""

        async def tell() -> None:
            write.ended(how)

        self.run(tell())
        if how is WriteEnd.LOST:
            write.lost_until = self.loop.time() + MODEL_SETTLE
            self.lost.append(write)
        if write.version:
            self.owed[write.user] = max(self.owed[write.user], write.version)

    def apply(self, write: Write) -> None:
        """Have the upstream carry out a write; then it is the newest, whichever began first."""
        if not write.version:
            self.versions += 1
            write.version = self.truth[write.user] = self.versions

    def write(self, user: int) -> Write:
        watched = self.watch.began("PUT", f"/api/v1/users/{user}/placeholders/3f0e")
        assert watched is not None
        return Write(user, watched)

    @rule(user=USERS, node=NODES, read=st.booleans())
    def a_prompt_begins(self, user: int, node: str, *, read: bool) -> None:
        """`read`: the upstream reads for its fetch at once, and may answer much later."""
        task = self.loop.create_task(self.world.ask(user, node, topic="tides"))
        self.prompts.append((task, self.owed[user]))
        self.settle()
        for fetch in self.under_way if read else ():
            self.read.setdefault(fetch, self.truth[fetch.key.owner])

    @rule(user=USERS, node=NODES)
    def a_prompt_is_asked_for_and_the_upstream_answers_all_at_once(self, user: int, node: str) -> None:
        self.a_prompt_begins(user, node, read=True)
        for fetch in self.under_way:
            self.answer(fetch)
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def a_fetch_lands(self, data: st.DataObject) -> None:
        self.answer(data.draw(st.sampled_from(self.under_way)))
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), kind=st.sampled_from([FailureKind.RESET, FailureKind.GONE]))
    def a_fetch_fails(self, data: st.DataObject, kind: FailureKind) -> None:
        data.draw(st.sampled_from(self.under_way)).fails(UpstreamFailure(kind, "no", status=404))
        self.settle()

    @rule(user=USERS, end=ENDS, applied=st.booleans())
    def a_write_is_made(self, user: int, end: WriteEnd, *, applied: bool) -> None:
        """One that is answered took effect; a lost one may have, or may later."""
        write = self.write(user)
        if applied or end is WriteEnd.ANSWERED:
            self.apply(write)
        self.end(write, end)

    @rule(user=USERS)
    def a_write_begins(self, user: int) -> None:
        self.writing.append(self.write(user))

    @precondition(lambda self: self.writing)
    @rule(data=st.data())
    def a_write_takes_effect(self, data: st.DataObject) -> None:
        self.apply(data.draw(st.sampled_from(self.writing)))

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), end=st.sampled_from(WriteEnd))
    def a_write_ends(self, data: st.DataObject, end: WriteEnd) -> None:
        write = self.writing.pop(self.writing.index(data.draw(st.sampled_from(self.writing))))
        if end is WriteEnd.ANSWERED:
            self.apply(write)
        if end is WriteEnd.NOT_SENT and write.version:
            end = WriteEnd.LOST  # what took effect was sent
        self.end(write, end)

    @precondition(lambda self: self.may_take_effect)
    @rule(data=st.data())
    def a_lost_write_takes_effect(self, data: st.DataObject) -> None:
        write = data.draw(st.sampled_from(self.may_take_effect))
        self.apply(write)
        self.owed[write.user] = max(self.owed[write.user], write.version)

    @rule(user=USERS, node=NODES, end=ENDS, others=st.lists(USERS, max_size=2), flags=st.tuples(*[st.booleans()] * 4))
    def a_write_takes_effect_between_two_prompts(
        self, user: int, node: str, end: WriteEnd, others: list[int], flags: tuple[bool, bool, bool, bool]
    ) -> None:
        """What the steps above come to by chance, but seldom; `others` write between."""
        begins_before, is_quick, settles, lands = flags
        if begins_before:
            self.a_prompt_begins(user, node, read=True)
        write = self.write(user)
        if end is WriteEnd.ANSWERED:
            self.apply(write)
        self.end(write, end)
        for other in others:
            self.a_write_is_made(other, WriteEnd.ANSWERED, applied=True)
        if is_quick:
            self.a_prompt_is_asked_for_and_the_upstream_answers_all_at_once(user, node)
        else:
            self.a_prompt_begins(user, node, read=True)
        self.apply(write)
        self.owed[user] = max(self.owed[user], write.version)
        if settles:
            self.time_passes(MODEL_SETTLE)
        if lands:
            for fetch in self.under_way:
                self.answer(fetch)
            self.settle()
        self.a_prompt_begins(user, node, read=True)

    @property
    def may_take_effect(self) -> list[Write]:
        now = self.loop.time()
        return [write for write in self.lost if not write.version and now < write.lost_until]

    @rule(seconds=st.sampled_from([MODEL_SETTLE / 2, MODEL_SETTLE, 5.0, 250.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def no_prompt_shows_what_is_older_than_a_write_before_it(self) -> None:
        for task, owed in [*self.prompts]:
            if not task.done():
                continue
            self.prompts.remove((task, owed))
            error = task.exception()
            assert error is None or isinstance(error, PromptError)
            if error is None:
                shown = int(task.result().used_placeholders["style"])
                assert shown >= owed, f"version {shown} was shown after version {owed} was answered for"

    def teardown(self) -> None:
        for fetch in self.under_way:
            fetch.fails(UpstreamFailure(FailureKind.RESET, "over"))
        self.run(self.over())
        self.loop.close()

    async def over(self) -> None:
        await asyncio.gather(*(task for task, _ in self.prompts), return_exceptions=True)
        await self.world.background.drain(0)


@lru_cache
def document_of(version: int) -> Any:
    return document("Explain {{ topic }} in {{ style }}.", {"style": str(version)}, ttl=200)


class ReadYourWritesToday(ReadYourWrites):
    """The same before today's service, where all nodes of a user share one entry and one fetch."""

    def make(self) -> World:
        world = TodaysWorld(MODEL_POLICY, templates=dict.fromkeys(("explain", "quiz"), "{{ topic }} {{ style }}"))
        world.settings._source = self.source
        return world

    def document(self, version: int) -> Any:
        return UserSettings({"style": str(version)})


class ReadYourWritesForgetful(ReadYourWritesToday):
    """The same where only the last write is remembered one by one."""

    max_marks = 1


STEPS = hypothesis_settings(
    max_examples=100, stateful_step_count=20, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink]
)
for machine in (ReadYourWrites, ReadYourWritesToday, ReadYourWritesForgetful):
    machine.TestCase.settings = STEPS

TestPromptData = ReadYourWrites.TestCase
TestToday = ReadYourWritesToday.TestCase
TestForgetful = ReadYourWritesForgetful.TestCase
