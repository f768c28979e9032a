"""The guarded fetch: inside its deadline whatever the upstream does, in faked time."""

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import FAILURE_TABLE, FailureKind, UpstreamFailure
from sidecar.core.events import Event, Retried, UpstreamAttempt
from sidecar.core.model import Document, PromptKey
from sidecar.core.retry import RetryBudget, RetryRule, Rng
from sidecar.upstream.breaker import Breaker
from sidecar.upstream.guarded import Bulkhead, Confirmation, Guard, GuardedSource, GuardRules
from tests.fakes import Still, answered, document, loop_time

pytestmark = pytest.mark.looptime

KEY = PromptKey(1, "explain")
RULE = RetryRule(attempts=3, backoff=0.1, max_backoff=1.0, min_attempt=0.05)
PER_TRY, RESET_TIMEOUT = 1.0, 10.0
TICK = 1e-5
"""Seconds: what looptime's own resolution may add up to."""
GOOD = document()
DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
RETRIED = [kind for kind in FailureKind if FAILURE_TABLE[kind].retry]
NOT_RETRIED = [kind for kind in FailureKind if not FAILURE_TABLE[kind].retry]


class Step(NamedTuple):
    """What one call to the upstream does: after so many seconds, serve or fail."""

    takes: float
    ends: Document | UpstreamFailure


HANG = Step(math.inf, GOOD)


def fails(
    kind: FailureKind = FailureKind.SERVER_ERROR, *, after: float = 0.0, retry_after: float | None = None
) -> Step:
    return Step(after, UpstreamFailure(kind, "a made-up failure", retry_after=retry_after))


class Scripted:
    """An upstream that plays its steps, the last one for ever after."""

    endpoint = "prompt-data"

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = [*steps]
        self.began: list[float] = []
        self.known: list[Document | None] = []
        self.out = self.peak = 0

    async def fetch(self, key: PromptKey, known: Document | None, _authorization: str | None) -> Document:
        assert isinstance(key, PromptKey)
        takes, ends = self.steps[min(len(self.began), len(self.steps) - 1)]
        self.began.append(loop_time())
        self.known.append(known)
        self.out += 1
        self.peak = max(self.peak, self.out)
        try:
            if math.isinf(takes):
                await asyncio.Event().wait()
            await asyncio.sleep(takes)
        finally:
            self.out -= 1
        if isinstance(ends, UpstreamFailure):
            raise ends
        return ends


class Most:
    """Chance at its most."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0
        return b


class Least:
    """Chance at its least."""

    def uniform(self, a: float, b: float) -> float:
        assert b > 0
        return a


class World:
    """A guarded source around a scripted upstream."""

    def __init__(
        self,
        *steps: Step,
        rule: RetryRule = RULE,
        per_try_timeout: float = PER_TRY,
        in_flight: int = 64,
        reserve: int = 1000,
        fail_max: int = 1000,
        rng: Rng | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.upstream = Scripted(steps)
        self.in_flight = in_flight
        self.bulkhead = Bulkhead(in_flight)
        self.breaker = Breaker(
            "upstream",
            fail_max=fail_max,
            reset_timeout=RESET_TIMEOUT,
            success_threshold=1,
            clock=loop_time,
            observer=lambda _: None,
        )
        rules = GuardRules(self.bulkhead, rule, RetryBudget(0.2, reserve), per_try_timeout, RESET_TIMEOUT)
        self.guard = Guard(
            rules, breaker=self.breaker, clock=loop_time, rng=rng or Still(), observer=self.events.append
        )
        self.source: GuardedSource[PromptKey, Document] = GuardedSource(self.guard, self.upstream)

    async def fetch(
        self, *, within: float = 3.9, known: Document | None = None, key: PromptKey = KEY
    ) -> Confirmation[Document] | UpstreamFailure:
        try:
            return await self.source.fetch(key, known, loop_time() + within)
        except UpstreamFailure as failure:
            return failure

    async def brings(self) -> float:
        """Fetch, and return the instant at which what came was confirmed."""
        confirmation = await self.fetch()
        assert isinstance(confirmation, Confirmation)
        assert confirmation.document is GOOD
        return confirmation.confirmed_at

    async def fails_with(self, *, within: float = 3.9) -> FailureKind:
        failure = await self.fetch(within=within)
        assert isinstance(failure, UpstreamFailure)
        return failure.kind

    def begins(
        self, *, within: float = 3.9, key: PromptKey = KEY
    ) -> asyncio.Task[Confirmation[Document] | UpstreamFailure]:
        return asyncio.get_running_loop().create_task(self.fetch(within=within, key=key))

    @property
    def attempts(self) -> list[UpstreamAttempt]:
        return [event for event in self.events if isinstance(event, UpstreamAttempt)]

    @property
    def retries(self) -> list[FailureKind]:
        return [event.reason for event in self.events if isinstance(event, Retried)]

    async def has_leaked_nothing(self) -> bool:
        """Take all the bulkhead's places at once, and ask the breaker."""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                for _ in range(self.in_flight):
                    await self.bulkhead.take(1)
                return self.breaker.open_for() is None
        return False


# What is brought


async def test_a_document_is_confirmed_at_the_instant_before_it_was_asked_for() -> None:
    world = World(Step(0.4, GOOD))
    await asyncio.sleep(7)
    assert await world.brings() == 7
    assert loop_time() == pytest.approx(7.4)


async def test_after_retries_the_last_attempts_instant_counts() -> None:
    world = World(fails(after=0.5), Step(0.4, GOOD), rng=Most())
    assert await world.brings() == pytest.approx(0.6)


async def test_the_known_document_is_offered_on_each_attempt() -> None:
    world = World(fails(), Step(0, GOOD))
    await world.fetch(known=GOOD)
    assert world.upstream.known == [GOOD, GOOD]


# Retries


@pytest.mark.parametrize("kind", RETRIED)
async def test_what_another_attempt_may_help_is_retried_as_often_as_the_rule_says(kind: FailureKind) -> None:
    world = World(fails(kind))
    assert await world.fails_with() is kind
    assert (len(world.upstream.began), world.retries) == (3, [kind, kind])


@pytest.mark.parametrize("kind", NOT_RETRIED)
async def test_what_no_other_attempt_can_help_is_never_retried(kind: FailureKind) -> None:
    world = World(fails(kind), Step(0, GOOD))
    assert await world.fails_with() is kind
    assert (len(world.upstream.began), world.retries) == (1, [])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 422])
async def test_a_4xx_is_an_answer_passed_on_as_it_is_and_never_retried(status: int) -> None:
    answer = answered(status)
    world = World(Step(0, answer), Step(0, GOOD), fail_max=1)
    assert await world.fetch() is answer
    assert (len(world.upstream.began), world.breaker.state) == (1, "closed")


async def test_the_last_attempts_failure_is_the_fetchs() -> None:
    world = World(fails(FailureKind.CONNECT_ERROR), fails(FailureKind.RESET), fails(FailureKind.GARBAGE))
    assert await world.fails_with() is FailureKind.GARBAGE
    assert world.retries == [FailureKind.CONNECT_ERROR, FailureKind.RESET]


@pytest.mark.parametrize(
    ("rng", "began"),
    [
        pytest.param(Most(), [0, 0.1, 0.3], id="at most the backoff, doubled each time"),
        pytest.param(Least(), [0, 0, 0], id="at least none: full jitter"),
    ],
)
async def test_pauses_are_jittered(rng: Rng, began: list[float]) -> None:
    world = World(fails(), rng=rng)
    await world.fetch()
    assert world.upstream.began == pytest.approx(began)


@pytest.mark.parametrize("kind", [FailureKind.TOO_MANY_REQUESTS, FailureKind.SERVER_ERROR])
async def test_retry_after_is_waited_for_in_full(kind: FailureKind) -> None:
    world = World(fails(kind, retry_after=2), Step(0, GOOD), rng=Most())
    await world.fetch()
    assert world.upstream.began == pytest.approx([0, 2.1])


async def test_a_retry_after_beyond_the_deadline_ends_the_fetch_at_once() -> None:
    world = World(fails(FailureKind.TOO_MANY_REQUESTS, retry_after=30))
    assert await world.fails_with() is FailureKind.TOO_MANY_REQUESTS
    assert (loop_time(), len(world.upstream.began)) == (0, 1)


async def test_a_storm_over_many_keys_at_once_is_answered_with_no_more_retries_than_are_saved_up() -> None:
    world = World(fails(), reserve=10)
    await asyncio.gather(*(world.fetch(key=PromptKey(user, "explain")) for user in range(200)))
    assert (len(world.retries), len(world.upstream.began)) == (10, 210)


async def test_a_storm_that_goes_on_is_answered_with_one_retry_for_five_fetches() -> None:
    world = World(fails(), reserve=10)
    for user in range(200):
        await world.fetch(key=PromptKey(user, "explain"))
    assert 0.2 * 200 <= len(world.retries) <= 10 + 0.2 * 200


# The deadline


@pytest.mark.parametrize(
    ("within", "began"),
    [
        pytest.param(3.9, [0, 1.05, 2.15], id="three attempts fit"),
        pytest.param(2.0, [0, 1.05], id="the second one is cut short, and no third begins"),
        pytest.param(1.1, [0, 1.05], id="the second one has just enough"),
        pytest.param(1.09, [0], id="a second one could not end in time"),
        pytest.param(0.5, [0], id="the first one is cut short"),
        pytest.param(0.05, [0], id="the first one has just enough"),
        pytest.param(0.04, [], id="not even one could end in time"),
        pytest.param(0.0, [], id="no time at all"),
        pytest.param(-1.0, [], id="the deadline has passed"),
    ],
)
async def test_no_attempt_begins_that_cannot_end_in_time_and_a_hanging_upstream_ends_with_the_deadline(
    within: float, began: list[float]
) -> None:
    world = World(HANG)
    kind = await world.fails_with(within=within)
    assert kind is (FailureKind.READ_TIMEOUT if began else FailureKind.DEADLINE)
    assert world.upstream.began == pytest.approx(began)
    assert loop_time() <= max(0, within) + TICK


async def test_an_attempt_ends_after_its_own_time_so_that_another_has_a_chance() -> None:
    world = World(HANG, Step(0.2, GOOD))
    assert await world.brings() == pytest.approx(1.05)


STEPS = st.builds(
    Step,
    takes=st.sampled_from([0.0, math.inf]) | st.floats(0, 5),
    ends=st.just(GOOD)
    | st.builds(
        UpstreamFailure,
        st.sampled_from([*FailureKind]),
        st.just("a made-up failure"),
        retry_after=st.none() | st.floats(0, 10),
    ),
)


class Fetch(NamedTuple):
    """When one of many fetches begins, how long it may take, and when it is cancelled."""

    begins: float
    within: float
    cancelled_after: float | None


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=8),
    fetches=st.lists(
        st.builds(Fetch, st.floats(0, 3), st.floats(-0.1, 5), st.none() | st.floats(0, 5)), min_size=1, max_size=6
    ),
    attempts=st.integers(1, 5),
    per_try_timeout=st.floats(0.01, 5),
    in_flight=st.integers(1, 3),
    fail_max=st.integers(1, 4),
)
def test_whatever_happens_a_fetch_ends_by_its_deadline_and_leaks_nothing(
    steps: list[Step],
    fetches: list[Fetch],
    attempts: int,
    per_try_timeout: float,
    in_flight: int,
    fail_max: int,
) -> None:
    async def one(world: World, fetch: Fetch) -> None:
        await asyncio.sleep(fetch.begins)
        deadline_at = loop_time() + max(0.0, fetch.within)
        task = world.begins(within=fetch.within)
        done, _ = await asyncio.wait([task], timeout=fetch.cancelled_after)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        assert loop_time() <= deadline_at + TICK
        if not task.cancelled():
            assert isinstance(task.result(), Confirmation | UpstreamFailure)

    async def all_of_them() -> None:
        world = World(
            *steps,
            rule=RULE._replace(attempts=attempts),
            per_try_timeout=per_try_timeout,
            in_flight=in_flight,
            fail_max=fail_max,
            reserve=10,
        )
        await asyncio.gather(*(one(world, fetch) for fetch in fetches))
        assert world.upstream.peak <= in_flight
        await asyncio.sleep(RESET_TIMEOUT + 1)
        assert await world.has_leaked_nothing()

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(all_of_them())


# The breaker


@pytest.mark.parametrize("kind", FailureKind)
async def test_the_breaker_is_told_what_the_failure_table_says(kind: FailureKind) -> None:
    world = World(fails(kind), rule=RULE._replace(attempts=1), fail_max=1)
    await world.fetch()
    assert (world.breaker.state == "open") is (FAILURE_TABLE[kind].verdict == "failure")


async def test_a_place_that_comes_too_late_for_the_retry_leaves_the_attempts_failure_the_fetchs() -> None:
    world = World(fails(FailureKind.CONNECT_ERROR), HANG, in_flight=1, rng=Most())
    retrying = world.begins(within=0.5)
    await asyncio.sleep(0.05)
    hanging = world.begins()
    failure = await retrying
    assert isinstance(failure, UpstreamFailure)
    assert failure.kind is FailureKind.CONNECT_ERROR
    assert loop_time() == pytest.approx(0.5)
    hanging.cancel()


@pytest.mark.parametrize(
    ("within", "state"),
    [
        pytest.param(0.49, "closed", id="less than half of its own time: neutral"),
        pytest.param(0.5, "open", id="half of it: a failure"),
        pytest.param(3.9, "open", id="all of it: a failure"),
    ],
)
async def test_an_attempt_cut_short_by_the_deadline_says_nothing_of_the_upstream(within: float, state: str) -> None:
    world = World(HANG, rule=RULE._replace(attempts=1), fail_max=1)
    await world.fetch(within=within)
    assert world.breaker.state == state


async def test_while_the_circuit_is_open_nothing_is_asked() -> None:
    world = World(fails(), fail_max=1)
    await world.fetch()
    failure = await world.fetch()
    assert isinstance(failure, UpstreamFailure)
    assert (failure.kind, failure.retry_after) == (FailureKind.CIRCUIT_OPEN, 10)
    assert world.source.circuit_open_for() == 10
    assert (len(world.upstream.began), len(world.attempts)) == (1, 1)


async def test_a_circuit_that_opens_by_an_attempt_stops_its_retries() -> None:
    world = World(fails(), fail_max=2)
    assert await world.fails_with() is FailureKind.SERVER_ERROR
    assert (len(world.upstream.began), world.retries) == (2, [FailureKind.SERVER_ERROR])


async def test_a_circuit_that_others_open_during_the_pause_stops_the_retry_and_the_failure_stays() -> None:
    world = World(fails(FailureKind.RESET, retry_after=1), fails(), fail_max=2)
    waiting = world.begins()
    await asyncio.sleep(0.5)
    await world.fetch()
    assert world.breaker.state == "open"
    failure = await waiting
    assert isinstance(failure, UpstreamFailure)
    assert failure.kind is FailureKind.RESET
    assert len(world.upstream.began) == 2


async def test_the_circuit_closes_again_by_a_trial_call_while_the_others_are_refused() -> None:
    world = World(fails(), Step(0.5, GOOD), fail_max=1)
    await world.fetch()
    await asyncio.sleep(RESET_TIMEOUT)
    results = await asyncio.gather(*(world.fetch() for _ in range(50)))
    assert sum(isinstance(result, Confirmation) for result in results) == 1
    assert {result.kind for result in results if isinstance(result, UpstreamFailure)} == {FailureKind.CIRCUIT_OPEN}
    assert world.breaker.state == "closed"
    assert isinstance(await world.fetch(), Confirmation)


async def test_a_circuit_that_is_due_for_a_trial_call_has_room_for_that_alone() -> None:
    world = World(fails(), Step(0.5, GOOD), fail_max=1)
    rooms = [world.guard.has_room(trial=True)]
    await world.fetch()
    rooms.append(world.guard.has_room(trial=True))
    await asyncio.sleep(RESET_TIMEOUT)
    rooms.append(world.guard.has_room(trial=True))
    assert not world.guard.has_room()
    trial = world.begins()
    await asyncio.sleep(0.1)
    rooms.append(world.guard.has_room(trial=True))
    await trial
    assert world.guard.has_room()
    assert rooms == [True, False, True, False]


# The bulkhead


async def test_no_more_calls_are_out_than_the_bulkhead_has_places() -> None:
    world = World(Step(0.1, GOOD), in_flight=5)
    results = await asyncio.gather(*(world.fetch(key=PromptKey(user, "explain")) for user in range(1, 51)))
    assert all(isinstance(result, Confirmation) for result in results)
    assert world.upstream.peak == 5
    assert loop_time() == pytest.approx(1.0)


async def test_waiting_for_a_place_counts_against_the_deadline_and_not_against_the_upstream() -> None:
    world = World(HANG, in_flight=1, fail_max=1)
    first = world.begins()
    await asyncio.sleep(0.1)
    assert await world.fails_with(within=0.4) is FailureKind.DEADLINE
    assert loop_time() == pytest.approx(0.5)
    assert (len(world.upstream.began), world.breaker.state) == (1, "closed")
    await first
    assert await world.has_leaked_nothing() is False  # by now the first one's timeout has opened the circuit
    await asyncio.sleep(RESET_TIMEOUT)
    assert world.breaker.open_for() is None


async def test_who_waited_long_for_a_place_has_only_the_rest_of_the_time() -> None:
    world = World(Step(0.9, GOOD), HANG, in_flight=1)
    first = world.begins()
    await asyncio.sleep(0)
    assert await world.fails_with(within=1.2) is FailureKind.READ_TIMEOUT
    assert world.upstream.began == pytest.approx([0, 0.9])
    assert loop_time() == pytest.approx(1.2)
    await first


async def test_a_pause_between_attempts_holds_no_place() -> None:
    world = World(fails(retry_after=2), Step(0, GOOD), in_flight=1)
    paused = world.begins()
    await asyncio.sleep(0.1)
    assert isinstance(await world.fetch(), Confirmation)
    assert loop_time() == pytest.approx(0.1)
    await paused


# Leaving early


@pytest.mark.parametrize(
    "leaves_at",
    [
        pytest.param(0.5, id="during an attempt"),
        pytest.param(1.0, id="at the very instant of its timeout"),
        pytest.param(1.02, id="between attempts"),
        pytest.param(1.5, id="during the second attempt"),
    ],
)
async def test_who_leaves_early_leaves_nothing_behind(leaves_at: float) -> None:
    world = World(HANG, in_flight=1)
    task = world.begins()
    await asyncio.sleep(leaves_at)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (world.upstream.out, world.breaker.state) == (0, "closed")
    assert await world.has_leaked_nothing()


async def test_who_leaves_while_waiting_for_a_place_takes_none() -> None:
    world = World(Step(0.9, GOOD), in_flight=1)
    first, second = world.begins(), world.begins()
    await asyncio.sleep(0.5)
    second.cancel()
    await first
    assert len(world.upstream.began) == 1
    assert await world.has_leaked_nothing()


async def test_who_leaves_in_the_middle_of_the_trial_call_gives_it_back() -> None:
    world = World(fails(), HANG, Step(0, GOOD), fail_max=1)
    await world.fetch()
    await asyncio.sleep(RESET_TIMEOUT)
    trial = world.begins()
    await asyncio.sleep(0.5)
    assert world.source.circuit_open_for() is not None
    trial.cancel()
    await asyncio.wait([trial])
    assert world.breaker.state == "half-open"
    assert isinstance(await world.fetch(), Confirmation)
    assert world.breaker.state == "closed"


async def test_an_attempt_that_breaks_in_a_way_nobody_foresaw_leaves_nothing_behind() -> None:
    class Broken:
        endpoint = "prompt-data"

        async def fetch(self, key: PromptKey, known: Document | None, _authorization: str | None) -> Document:
            raise ZeroDivisionError(key, known)

    world = World(HANG, in_flight=1)
    world.source._attempt = Broken()
    with pytest.raises(ZeroDivisionError):
        await world.fetch()
    assert await world.has_leaked_nothing()


# Telling


async def test_each_attempt_is_told_with_its_result_and_time() -> None:
    world = World(fails(after=0.25), HANG, Step(0.5, GOOD))
    await world.fetch()
    assert {attempt.endpoint for attempt in world.attempts} == {"prompt-data"}
    assert [attempt.result for attempt in world.attempts] == ["server_error", "read_timeout", "ok"]
    assert [attempt.seconds for attempt in world.attempts] == pytest.approx([0.25, 1.0, 0.5])
    assert world.retries == [FailureKind.SERVER_ERROR, FailureKind.READ_TIMEOUT]


async def test_a_confirmed_document_is_told_as_not_modified() -> None:
    world = World(Step(0, GOOD))
    assert await world.fetch(known=GOOD) == Confirmation(GOOD, 0)
    assert [attempt.result for attempt in world.attempts] == ["not_modified"]


async def test_an_attempt_that_somebody_left_is_told_as_cancelled() -> None:
    world = World(HANG)
    task = world.begins()
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    assert world.attempts == [UpstreamAttempt("prompt-data", "cancelled", 0.5)]


async def test_what_was_never_sent_is_not_told_as_an_attempt() -> None:
    world = World(HANG)
    await world.fetch(within=0)
    assert world.events == []


# The upstream's wish to be left alone


async def test_while_a_429_asks_for_quiet_no_key_is_asked_for() -> None:
    world = World(fails(FailureKind.TOO_MANY_REQUESTS, retry_after=7), Step(0, GOOD))
    assert await world.fails_with() is FailureKind.TOO_MANY_REQUESTS
    assert world.source.circuit_open_for() == pytest.approx(7)
    failure = await world.fetch(key=PromptKey(2, "other"))
    assert isinstance(failure, UpstreamFailure)
    assert failure.kind is FailureKind.CIRCUIT_OPEN
    assert failure.retry_after == pytest.approx(7)
    assert (len(world.upstream.began), world.breaker.state) == (1, "closed")
    await asyncio.sleep(7)
    assert world.source.circuit_open_for() is None
    await world.brings()


async def test_quiet_lasts_no_longer_than_an_open_circuit() -> None:
    world = World(fails(FailureKind.TOO_MANY_REQUESTS, retry_after=86_400), Step(0, GOOD))
    assert await world.fails_with() is FailureKind.TOO_MANY_REQUESTS
    await asyncio.sleep(RESET_TIMEOUT)
    await world.brings()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(fails(FailureKind.TOO_MANY_REQUESTS), id="a 429 that does not say when to come back"),
        pytest.param(fails(FailureKind.TOO_MANY_REQUESTS, retry_after=0), id="a 429 that says: at once"),
        pytest.param(fails(FailureKind.SERVER_ERROR, retry_after=5), id="a 503 that speaks for one call"),
    ],
)
async def test_any_other_failure_keeps_no_other_key_waiting(first: Step) -> None:
    world = World(first, Step(0, GOOD), rule=RULE._replace(attempts=1))
    await world.fetch()
    assert world.source.circuit_open_for() is None
    assert isinstance(await world.fetch(key=PromptKey(2, "another")), Confirmation)
