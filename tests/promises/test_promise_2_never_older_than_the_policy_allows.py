"""Promise 2: no prompt is made from data older than ttl + stale_if_error; past it, an error."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.policy import Policy, Strategy
from sidecar.settings import BreakerSettings, RetrySettings
from tests.harness import (
    Chance,
    Exchange,
    ManualClock,
    RawUpstream,
    Sidecar,
    prompt_data,
    raw_upstream,
    settings_for,
    sidecar_with,
)

NO_RETRY = RetrySettings(attempts=1)
TRUSTING = BreakerSettings(fail_max=1000)


def limit_of(policy: Policy, stated: float | None) -> float:
    """Return the age past which nothing may be used: said here in the contract's own words, not by the code's."""
    ttl = stated if policy.ttl is None else policy.ttl
    return min(0.0 if ttl is None else ttl, policy.max_ttl) + policy.stale_if_error


class Counting:
    """Serves a number that counts up, and notes when each was served; or fails as it is told."""

    def __init__(self, clock: ManualClock, stated: float | None, *, etag: bool = False) -> None:
        self.clock = clock
        self.stated = stated
        self.etag = etag
        self.fault = "none"
        self.takes = 0.0
        self.answer_takes = 0.0
        self.number = 0
        self.confirmed_at: dict[int, float] = {}

    async def __call__(self, exchange: Exchange) -> None:
        self.clock.advance(self.takes)
        match self.fault:
            case "none":
                known = f'"{self.number}"'.encode() in exchange.head
                if self.etag and self.number and known:
                    self.confirmed_at[self.number] = self.clock()
                    await exchange.answer(status=304, headers={"ETag": f'"{self.number}"'})
                    return
                self.number += 1
                self.confirmed_at[self.number] = self.clock()
                document = prompt_data("{{ topic }} {{ number }}", {"number": str(self.number)}, cache_ttl=self.stated)
                self.clock.advance(self.answer_takes)
                await exchange.answer(document, headers={"ETag": f'"{self.number}"'} if self.etag else None)
            case "reset":
                exchange.reset()
            case "html":
                await exchange.answer(b"<html>It works!</html>", headers={"Content-Type": "text/html"})
            case "empty":
                await exchange.answer(b"")
            case "older":
                await exchange.answer(prompt_data("", {}))
            case status:
                await exchange.answer({"detail": "no"}, status=int(status))

    def age_of(self, prompt: str) -> float:
        return self.clock() - self.confirmed_at[int(prompt.split()[1])]


@asynccontextmanager
async def before(
    plays: Counting, policy: Policy, *, breaker: BreakerSettings = TRUSTING, spread: float = 0.5
) -> AsyncIterator[tuple[RawUpstream, Sidecar]]:
    """Run a sidecar, in the upstream's own time, before it."""
    async with raw_upstream(plays) as upstream:
        settings = settings_for(upstream.url, policy=policy, retry=NO_RETRY, breaker=breaker)
        async with sidecar_with(settings, clock=plays.clock, rng=Chance(spread)) as sidecar:
            yield upstream, sidecar


@pytest.mark.parametrize(
    ("policy", "stated"),
    [
        pytest.param(Policy(ttl=100, stale_if_error=900), 300, id="the policy's ttl"),
        pytest.param(Policy(stale_if_error=900), 100, id="the upstream's ttl"),
        pytest.param(Policy(max_ttl=100, stale_if_error=900), 31_536_000, id="a ttl of a year, capped"),
        pytest.param(Policy(ttl=500, max_ttl=100, stale_if_error=900), 300, id="the policy's ttl, capped"),
        pytest.param(Policy(ttl=0, stale_if_error=1000), 300, id="no ttl at all"),
        pytest.param(Policy(stale_if_error=1000), None, id="no ttl stated"),
        pytest.param(Policy(ttl=1000, stale_if_error=0, stale_while_revalidate=600), 1, id="no stale-if-error"),
        pytest.param(Policy(strategy=Strategy.NETWORK_FIRST, ttl=100, stale_if_error=900), 300, id="network-first"),
    ],
)
@pytest.mark.parametrize("fault", ["503", "reset", "html", "429"])
async def test_the_last_second_is_served_and_the_next_is_an_error(
    policy: Policy, stated: float | None, fault: str
) -> None:
    clock = ManualClock()
    plays = Counting(clock, stated)
    assert limit_of(policy, stated) == 1000
    async with before(plays, policy) as (_, sidecar):
        await sidecar.ask()
        plays.fault = fault
        clock.advance(999)
        almost = await sidecar.ask()
        assert (almost.prompt, almost.age) == ("tides 1", 999)
        clock.advance(1)
        last = await sidecar.ask()
        assert (last.prompt, last.age) == ("tides 1", 1000)
        clock.advance(0.001)
        past = await sidecar.ask()
        assert past.status in {502, 503}
        assert past.is_problem
        clock.advance(1_000_000)
        assert (await sidecar.ask()).status in {502, 503}
        plays.fault = "none"
        assert (await sidecar.ask()).prompt == "tides 2"


async def test_an_open_circuit_prolongs_nothing() -> None:
    clock = ManualClock()
    plays = Counting(clock, 100)
    policy = Policy(stale_if_error=900)
    breaker = BreakerSettings(fail_max=1, reset_timeout=3600)
    async with before(plays, policy, breaker=breaker) as (upstream, sidecar):
        await sidecar.ask()
        plays.fault = "503"
        clock.advance(500)
        await sidecar.ask()
        assert sidecar.core.breaker.state == "open"
        clock.advance(500)
        assert (await sidecar.ask()).age == 1000
        clock.advance(0.001)
        past = await sidecar.ask()
        assert (past.status, past.how) == (503, "prompt-sidecar; detail=circuit-open")
        assert len(upstream.requests) == 2


async def test_a_confirmation_begins_the_time_anew_and_a_failed_one_does_not() -> None:
    clock = ManualClock()
    plays = Counting(clock, 100, etag=True)
    policy = Policy(stale_while_revalidate=0, stale_if_error=50)
    async with before(plays, policy) as (_, sidecar):
        await sidecar.ask()
        clock.advance(140)
        confirmed = await sidecar.ask()
        assert (confirmed.prompt, confirmed.age, plays.number) == ("tides 1", 0, 1)
        plays.fault = "503"
        for _ in range(10):
            clock.advance(15)
            assert (await sidecar.ask()).prompt == "tides 1"
        clock.advance(0.001)
        assert (await sidecar.ask()).status == 503


async def test_no_directive_of_a_request_makes_anything_older_usable() -> None:
    clock = ManualClock()
    plays = Counting(clock, 100)
    policy = Policy(stale_if_error=50)
    async with before(plays, policy) as (_, sidecar):
        await sidecar.ask()
        plays.fault = "503"
        clock.advance(150.001)
        for directive in ("max-stale", "max-stale=1000000", "only-if-cached", "only-if-cached, max-stale", "no-cache"):
            refused = await sidecar.ask(headers={"Cache-Control": directive})
            assert refused.status in {503, 504}, directive


async def test_the_time_that_an_answer_was_on_its_way_is_part_of_its_age() -> None:
    clock = ManualClock()
    plays = Counting(clock, 100)
    plays.answer_takes = 30
    async with before(plays, Policy(stale_while_revalidate=0, stale_if_error=50)) as (_, sidecar):
        await sidecar.ask()
        plays.fault = "503"
        assert (await sidecar.ask()).age == 30
        clock.advance(120)
        assert (await sidecar.ask()).age == 150
        clock.advance(0.001)
        assert (await sidecar.ask()).status == 503


async def test_while_an_answer_is_waited_for_what_is_kept_grows_older() -> None:
    clock = ManualClock()
    plays = Counting(clock, 100)
    policy = Policy(stale_while_revalidate=0, stale_if_error=50)
    async with before(plays, policy) as (_, sidecar):
        await sidecar.ask()
        clock.advance(140)
        plays.takes = 10.001
        plays.fault = "503"
        assert (await sidecar.ask()).status in {503, 504}


class Step(NamedTuple):
    """Time passes, the upstream is switched, and requests come."""

    seconds: float
    fault: str
    directive: str
    requests: int


class Case(NamedTuple):
    """A policy, what the upstream states, and what happens."""

    policy: Policy
    stated: float | None
    etag: bool
    fail_max: int
    spread: float
    steps: Sequence[Step]


SECONDS = st.sampled_from([0.0, 1.0, 7.0, 60.0, 100.0]) | st.floats(0, 200)
FAULTS = st.sampled_from(["none", "none", "503", "500", "429", "reset", "html", "empty", "older", "401", "404"])
DIRECTIVES = st.sampled_from(["", "", "", "no-cache", "max-stale", "max-stale=10", "only-if-cached"])
POLICIES = st.builds(
    Policy,
    strategy=st.sampled_from(Strategy),
    ttl=st.none() | SECONDS,
    max_ttl=SECONDS,
    stale_while_revalidate=SECONDS,
    stale_if_error=SECONDS,
    network_timeout=st.just(1.0),
)
CASES = st.builds(
    Case,
    policy=POLICIES,
    stated=st.none() | SECONDS,
    etag=st.booleans(),
    fail_max=st.sampled_from([2, 1000]),
    spread=st.sampled_from([0.0, 0.5, 1.0]),
    steps=st.lists(st.builds(Step, SECONDS, FAULTS, DIRECTIVES, st.integers(1, 3)), min_size=2, max_size=12),
)


async def play(case: Case) -> None:
    clock = ManualClock()
    plays = Counting(clock, case.stated, etag=case.etag)
    breaker = BreakerSettings(fail_max=case.fail_max, reset_timeout=30)
    limit = limit_of(case.policy, case.stated)
    async with before(plays, case.policy, breaker=breaker, spread=case.spread) as (_, sidecar):
        for step in case.steps:
            clock.advance(step.seconds)
            plays.fault = step.fault
            headers = {"Cache-Control": step.directive} if step.directive else {}
            answers = await asyncio.gather(*(sidecar.ask(headers=headers) for _ in range(step.requests)))
            for answered in answers:
                if answered.status == 200:
                    age = plays.age_of(answered.prompt)
                    assert age <= limit, (answered, limit)
                    assert answered.age == int(age)
            await sidecar.settle()


@settings(max_examples=120, deadline=None)
@given(case=CASES)
def test_whatever_happens_no_prompt_is_older_than_its_policy_says(case: Case) -> None:
    asyncio.run(play(case))
