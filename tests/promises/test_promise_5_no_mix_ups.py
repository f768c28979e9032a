"""Promise 5: data of one user never reaches another's prompt."""

import asyncio
import random
import re
from collections import Counter
from itertools import product

import pytest

from sidecar.core.policy import Policy, Strategy
from sidecar.settings import BreakerSettings, CacheSettings
from tests.harness import (
    KEPT,
    Answered,
    Exchange,
    prompt_data,
    quick_settings,
    raw_upstream,
    settings_for,
    sidecar_with,
)

USERS = range(1, 201)
NODES = ("a", "1a", "node", "node2")
LONGEST_DELAY = 0.02
TEMPLATE = "node={} user={{{{ user }}}} request={{{{ request }}}};"


async def serve_marked(exchange: Exchange) -> None:
    """Mark the template with its node, and the settings with their user."""
    settings = {"user": str(exchange.user), "request": "a setting that each request overrides"}
    await exchange.answer(prompt_data(TEMPLATE.format(exchange.node), settings))


def assert_own(answered: Answered, user: int, node: str, request: str) -> None:
    """Check that a prompt has its own marks, and no others."""
    assert answered.prompt == f"node={node} user={user} request={request};"
    assert answered.document["used_placeholders"] == {"user": str(user), "request": request}


class Troubled:
    """Answers late, out of order, and at times wrongly."""

    def __init__(self, share_of_failures: float) -> None:
        self.chance = random.Random(5)
        self.share = share_of_failures
        self.failures = Counter[str]()

    async def __call__(self, exchange: Exchange) -> None:
        await asyncio.sleep(self.chance.uniform(0, LONGEST_DELAY))
        if self.chance.random() >= self.share:
            await serve_marked(exchange)
            return
        fault = self.chance.choice(["503", "reset", "html", "404", "half"])
        self.failures[fault] += 1
        match fault:
            case "reset":
                exchange.reset()
            case "html":
                await exchange.answer(b"<html>user=1 node=a</html>")
            case "half":
                await exchange.answer(prompt_data(TEMPLATE, {"user": "1"}), headers={"Content-Length": "9999"})
                exchange.writer.close()
            case status:
                await exchange.answer({"detail": f"user={exchange.user}"}, status=int(status))


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Policy(), id="kept"),
        pytest.param(Policy(ttl=0.01, stale_while_revalidate=0.02, stale_if_error=10), id="through every state"),
        pytest.param(Policy(strategy=Strategy.NETWORK_FIRST), id="network-first"),
    ],
)
async def test_hundreds_of_users_at_once_get_their_own_whatever_the_upstream_does(policy: Policy) -> None:
    plays = Troubled(0.15)
    breaker = BreakerSettings(fail_max=1000)
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, policy=policy, breaker=breaker)) as sidecar,
    ):
        asked = [(user, random.Random(user * 7 + n).choice(NODES), f"r{user}-{n}") for user in USERS for n in range(3)]
        random.Random(1).shuffle(asked)
        answers = await asyncio.gather(*(sidecar.ask(u, node, {"request": mark}) for u, node, mark in asked))
        for (user, node, mark), answered in zip(asked, answers, strict=True):
            if answered.status == 200:
                assert_own(answered, user, node, mark)
            elif answered.status == 404:
                assert answered.document["detail"] == f"user={user}"
            else:
                assert answered.is_problem
        assert sum(answered.status == 200 for answered in answers) > len(asked) / 2
        assert len(plays.failures) == 5


async def test_names_that_run_into_each_other_are_kept_apart() -> None:
    users, nodes = (1, 11, 12, 112, 2), ("a", "1a", "2a", "12a", " a", "a ", "A", "a/1", "1:a", "1.a", "а")  # noqa: RUF001
    pairs = [*product(users, nodes)]
    async with raw_upstream(serve_marked) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        for _ in range(2):
            answers = await asyncio.gather(*(sidecar.ask(user, node, {"request": "x"}) for user, node in pairs))
            for (user, node), answered in zip(pairs, answers, strict=True):
                assert_own(answered, user, node, "x")
        assert len(upstream.requests) == len(pairs)


@pytest.mark.parametrize(("spelling", "user"), [('"12"', 12), ("12.0", 12), ("1.2e1", 12), ("true", 1), ('" 1 "', 1)])
async def test_a_user_by_another_spelling_is_that_user_and_no_other(spelling: str, user: int) -> None:
    async with raw_upstream(serve_marked) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        for each in (1, 12, 2):
            await sidecar.ask(each, "a", {"request": "x"})
        body = f'{{"user_id": {spelling}, "node_name": "a", "context": {{"request": "y"}}}}'
        assert_own(await sidecar.send(body.encode()), user, "a", "y")
        assert len(upstream.requests) == 3


async def test_a_fetch_is_shared_by_those_who_ask_for_the_same_and_by_nobody_else() -> None:
    everybody_waits = asyncio.Event()

    async def plays(exchange: Exchange) -> None:
        await everybody_waits.wait()
        await serve_marked(exchange)

    keys = [*product((1, 12), ("a", "2a"))]
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        asking = [
            asyncio.ensure_future(sidecar.ask(user, node, {"request": f"r{n}"}))
            for n in range(25)
            for user, node in keys
        ]
        while "prompt_sidecar_coalesced_requests_total 96.0" not in await sidecar.metrics():
            pass
        everybody_waits.set()
        answers = await asyncio.gather(*asking)
        for n, answered in enumerate(answers):
            assert_own(answered, *keys[n % 4], f"r{n // 4}")
        assert len(upstream.requests) == 4
        assert sum("collapsed" in answered.how for answered in answers) == 96


async def test_content_that_overrides_a_setting_changes_that_one_prompt() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data("{{ style }} {{ topic }}", {"style": f"style {exchange.user}"}))

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        for _ in range(2):
            other = await sidecar.ask(1, "explain", {"topic": "tides", "style": "other"})
            assert other.prompt == "other tides"
            own = await sidecar.ask(1)
            assert own.prompt == "style 1 tides"
            assert own.document["used_placeholders"] == {"style": "style 1", "topic": "tides"}
            assert (await sidecar.ask(2)).prompt == "style 2 tides"
        assert len(upstream.requests) == 2


async def test_stale_data_stands_in_for_its_own_user_only() -> None:
    down = False

    async def plays(exchange: Exchange) -> None:
        if down:
            exchange.reset()
        else:
            await serve_marked(exchange)

    async with raw_upstream(plays) as upstream, sidecar_with(quick_settings(upstream.url, policy=KEPT)) as sidecar:
        await sidecar.ask(1, "a", {"request": "x"})
        down = True
        for user in (1, 12, 11, 2, 1):
            answered = await sidecar.ask(user, "a", {"request": "y"})
            if user == 1:
                assert_own(answered, 1, "a", "y")
            else:
                assert answered.status == 503


async def test_room_made_for_others_hands_nobody_anothers_data() -> None:
    async with (
        raw_upstream(serve_marked) as upstream,
        sidecar_with(settings_for(upstream.url, cache=CacheSettings(max_entries=3))) as sidecar,
    ):
        for n in range(60):
            user, node = n % 7 + 1, NODES[n % 4]
            assert_own(await sidecar.ask(user, node, {"request": f"r{n}"}), user, node, f"r{n}")
        assert len(sidecar.core.cache) == 3


async def test_pipelined_requests_of_two_users_are_answered_in_their_order() -> None:
    async with raw_upstream(serve_marked) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        requests = b""
        for user in (1, 12, 1, 2):
            body = f'{{"user_id": {user}, "node_name": "a", "context": {{"request": "x"}}}}'.encode()
            last = b"Connection: close\r\n" if user == 2 else b""
            requests += b"POST /api/v1/generate-prompt HTTP/1.1\r\nHost: localhost\r\n" + last
            requests += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        answers = await sidecar.raw(requests)
        assert re.findall(rb'"prompt":"node=a user=(\d+)', answers) == [b"1", b"12", b"1", b"2"]


async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_ones() -> None:
    """A service or a proxy may say something on an idle connection (a 408, an answer twice)."""

    async def twice(exchange: Exchange) -> None:
        mine = prompt_data("Explain {{ topic }} to {{ style }}.", {"style": f"user {exchange.user}"})
        theirs = prompt_data("Explain {{ topic }} to {{ style }}.", {"style": "somebody else"})
        await exchange.answer(mine)
        await exchange.answer(theirs)

    async with raw_upstream(twice) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        for user in range(1, 6):
            assert f"user {user}" in (await sidecar.ask(user)).prompt
