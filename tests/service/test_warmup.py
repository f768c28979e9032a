"""Warm-up: quick where it may be, out of live traffic's way, and honest about what failed; in faked time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.events import WarmUpEnded
from sidecar.core.model import Document, PromptKey
from sidecar.core.policy import Policy, Strategy
from sidecar.service.ports import Confirmed, StoreAwayError
from sidecar.service.warm_jobs import Gate, TooManyJobsError, WarmJobs
from sidecar.service.warmup import LOOKS_AT_ONCE, Job, Pair, State, WarmUp, WarmUpRule, listed
from sidecar.upstream.guarded import Confirmation
from tests.fakes import World, answered, document, loop_time

pytestmark = pytest.mark.looptime

LONG = Policy(ttl=3600, max_ttl=3600, stale_if_error=3600)
QUICK = WarmUpRule(rate=1e9, concurrency=4, batch=10, patience=60.0)
DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
OPEN = UpstreamFailure(FailureKind.CIRCUIT_OPEN, "the circuit is open", retry_after=1.0)


class FakeBatch:
    """The batch call, as it is told: `serves` answers for each key, `fails` for all."""

    def __init__(self) -> None:
        self.calls: list[list[PromptKey]] = []
        self.fails: list[UpstreamFailure] = []
        self.serves: dict[PromptKey, UpstreamFailure] = {}
        self.takes = 0.0

    async def fetch(self, keys: Sequence[PromptKey], deadline_at: float) -> list[Confirmed[Document] | UpstreamFailure]:
        assert deadline_at > loop_time()
        self.calls.append(list(keys))
        sent_at = loop_time()
        await asyncio.sleep(self.takes)
        if self.fails:
            raise self.fails.pop(0)
        return [self.serves.get(key) or Confirmation(document(), sent_at) for key in keys]


class FakeUpstream:
    """Whether a call may go out, as it is told."""

    def __init__(self) -> None:
        self.room = True
        self.trial = False
        self.open_for: float | None = None

    def has_room(self, *, trial: bool = False) -> bool:
        return self.room or (trial and self.trial)

    def circuit_open_for(self) -> float | None:
        return self.open_for


class Warming(World):
    """A world with a warm-up."""

    def __init__(self, policy: Policy = LONG, **given: Any) -> None:
        super().__init__(policy, **given)
        self.batch = FakeBatch()
        self.upstream = FakeUpstream()
        self.warm_up = WarmUp(
            documents=self.manager.documents_in_use,
            batch=self.batch,
            upstream=self.upstream,
            policy_for=self.manager.policy_for,
            confirm=self.nodes.confirm,
            deadline=lambda: 4.0,
            clock=loop_time,
            observer=self.events.append,
        )

    async def warm(self, pairs: Sequence[Pair], rule: WarmUpRule = QUICK) -> Job:
        job = Job(listed(pairs), len(pairs), rule)
        await self.warm_up.run(job)
        return job

    async def is_warm(self, *pairs: Pair) -> bool:
        before = self.fetches
        for user, node in pairs:
            await self.ask(user, node, topic="tides")
        return self.fetches == before


def pairs_of(users: int, *nodes: str) -> list[Pair]:
    return [(user, node) for user in range(1, users + 1) for node in nodes or ("explain",)]


async def test_all_pairs_are_brought_by_batches_and_then_served_from_memory() -> None:
    world = Warming()
    pairs = pairs_of(12, "explain", "quiz")
    job = await world.warm(pairs)
    assert (job.state, job.results["stored"], job.done, job.failures) == (State.DONE, 24, 24, [])
    assert [len(call) for call in world.batch.calls] == [10, 10, 4]
    assert world.fetches == 0
    assert await world.is_warm(*pairs)
    assert world.seen(WarmUpEnded)[0].state == "done"


async def test_what_is_fresh_is_not_asked_for_again_and_twice_is_once() -> None:
    world = Warming()
    await world.warm(pairs_of(5))
    job = await world.warm([*pairs_of(6), *pairs_of(6)])
    assert (job.results["fresh"], job.results["stored"], job.results["duplicate"]) == (5, 1, 6)
    assert sum(map(len, world.batch.calls)) + world.fetches == 6


async def test_without_the_batch_endpoint_single_calls_are_made_at_bounded_concurrency() -> None:
    world = Warming()
    world.batch.fails = [answered(404)] * 3
    world.source.takes = 1.0
    job = await world.warm(pairs_of(30), QUICK._replace(concurrency=3))
    assert (job.state, job.results["stored"]) == (State.DONE, 30)
    assert len(world.batch.calls) <= 3, "not asked for again for a while"
    assert world.fetches == 30
    assert loop_time() >= 10.0, "three at once, a second each"


async def test_the_batch_endpoint_is_looked_for_again_after_a_while() -> None:
    world = Warming()
    world.batch.fails = [answered(405)]
    await world.warm(pairs_of(10))
    await asyncio.sleep(601)
    await world.warm([(user, "quiz") for user in range(1, 11)])
    assert [len(call) for call in world.batch.calls] == [10, 10]


async def test_a_batch_that_is_no_batch_is_tried_one_by_one() -> None:
    world = Warming()
    world.batch.fails = [UpstreamFailure(FailureKind.BAD_DOCUMENT, "too large")]
    job = await world.warm(pairs_of(10))
    assert job.results["stored"] == 10
    assert world.fetches == 10


async def test_what_failed_is_told_with_its_reason_and_does_not_spoil_the_others() -> None:
    world = Warming()
    world.batch.serves = {PromptKey(2, "explain"): answered(404), PromptKey(3, "explain"): DOWN}
    job = await world.warm(pairs_of(5))
    assert (job.state, job.results["stored"], job.results["failed"]) == (State.DONE, 3, 2)
    assert dict(job.reasons) == {"the config service answered 404": 1, "the config service answered 503": 1}
    assert [(each.user_id, each.node_name) for each in job.failures] == [(2, "explain"), (3, "explain")]


async def test_it_is_no_faster_than_its_rate() -> None:
    world = Warming()
    await world.warm(pairs_of(100), QUICK._replace(rate=10.0))
    assert 9.0 <= loop_time() <= 10.5


async def test_it_yields_to_live_traffic_and_goes_on_when_there_is_room() -> None:
    world = Warming()
    world.upstream.room = False
    warming = asyncio.ensure_future(world.warm(pairs_of(20)))
    await asyncio.sleep(30)
    assert world.batch.calls == []
    world.upstream.room = True
    job = await warming
    assert (job.state, job.results["stored"]) == (State.DONE, 20)


async def test_without_room_for_longer_than_its_patience_it_stops_and_says_so() -> None:
    world = Warming()
    world.upstream.room = False
    job = await world.warm(pairs_of(20))
    assert job.state is State.STOPPED
    assert job.why == "the config service took no calls for 60 s"
    assert 59 <= loop_time() <= 62


async def test_what_met_an_open_circuit_is_tried_again() -> None:
    world = Warming()
    world.batch.fails = [OPEN, OPEN]
    job = await world.warm(pairs_of(10))
    assert (job.state, job.results["stored"], job.results["failed"]) == (State.DONE, 10, 0)
    world.batch.fails = [OPEN] * 5
    job = await world.warm([(user, "quiz") for user in range(1, 11)])
    assert dict(job.reasons) == {"circuit open": 10}


async def test_what_failed_as_the_circuit_opened_is_tried_again() -> None:
    world = Warming()
    world.batch.fails = [DOWN]
    world.upstream.open_for = 10.0
    job = await world.warm(pairs_of(10))
    assert (job.state, job.results["stored"], job.results["failed"]) == (State.DONE, 10, 0)
    assert [len(call) for call in world.batch.calls] == [10, 10]


async def test_a_batch_that_fails_while_others_are_served_is_tried_one_by_one() -> None:
    world = Warming()
    world.batch.fails = [DOWN]
    job = await world.warm(pairs_of(10))
    assert (job.results["stored"], world.fetches) == (10, 10)


async def test_while_the_circuit_is_not_closed_single_calls_are_tried_one_after_the_other() -> None:
    world = Warming()
    world.upstream.room, world.upstream.trial, world.upstream.open_for = False, True, 10.0
    world.source.serves, world.source.takes = DOWN, 1.0
    job = await world.warm(pairs_of(100))
    assert job.state is State.STOPPED
    assert job.why == "the config service took no calls for 60 s"
    assert 59 <= loop_time() <= 62
    assert 50 <= world.fetches <= 61, "a second each"
    assert (world.batch.calls, job.failures) == ([], [])


async def test_when_a_trial_call_has_closed_the_circuit_it_goes_on_as_usual() -> None:
    world = Warming()
    world.upstream.room, world.upstream.trial = False, True
    world.source.takes = 1.0
    warming = asyncio.ensure_future(world.warm(pairs_of(20)))
    await asyncio.sleep(0.5)
    world.upstream.room = True
    job = await warming
    assert (job.state, job.results["stored"], world.fetches) == (State.DONE, 20, 1)
    assert [len(call) for call in world.batch.calls] == [10, 9]


async def test_what_is_kept_is_looked_at_by_some_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Warming()
    looks, peak = 0, 0

    async def look(*_: Any) -> bool:
        nonlocal looks, peak
        looks += 1
        peak = max(peak, looks)
        await asyncio.sleep(1)
        looks -= 1
        return True

    monkeypatch.setattr(world.resources, "is_fresh", look)
    job = await world.warm(pairs_of(160), QUICK._replace(batch=40))
    assert job.results["fresh"] == 160
    assert (peak, round(loop_time())) == (LOOKS_AT_ONCE, 160 // LOOKS_AT_ONCE)


async def test_a_store_that_cannot_be_read_to_its_end_stops_it() -> None:
    async def some() -> AsyncIterator[Pair]:
        yield 1, "explain"
        raise StoreAwayError("slow")

    world = Warming()
    job = Job(some(), None, QUICK)
    await world.warm_up.run(job)
    assert (job.state, job.why) == (State.STOPPED, "the store cannot be read to its end (slow)")
    assert job.ended.is_set()


async def test_a_write_during_the_call_makes_void_what_it_brings() -> None:
    world = Warming()
    world.batch.takes = 1.0
    warming = asyncio.ensure_future(world.warm(pairs_of(3)))
    await asyncio.sleep(0.5)
    world.writes.ended(2)
    job = await warming
    assert (job.results["stored"], job.results["failed"]) == (2, 1)
    assert await world.is_warm((1, "explain"), (3, "explain"))
    assert not await world.is_warm((2, "explain"))


async def test_a_bad_document_replaces_no_good_one() -> None:
    world = Warming(Policy(ttl=1, max_ttl=1, stale_while_revalidate=0, stale_if_error=1000))
    await world.warm(pairs_of(2))
    await asyncio.sleep(5)
    world.batch.serves = {PromptKey(1, "explain"): UpstreamFailure(FailureKind.BAD_DOCUMENT, "an empty template")}
    await world.warm(pairs_of(2))
    world.source.serves = DOWN
    assert (await world.ask(1, "explain", topic="tides")).provenance.detail == "stale-if-error"


async def test_where_the_service_renders_there_is_nothing_to_warm() -> None:
    from sidecar.service.generations import Generation

    world = Warming(generation=Generation.PASSTHROUGH)
    job = await world.warm(pairs_of(2))
    assert job.state is State.STOPPED
    assert job.why is not None
    assert "renders by itself" in job.why


async def test_what_the_policy_keeps_nothing_of_is_a_failure_with_its_reason() -> None:
    world = Warming(Policy(strategy=Strategy.NETWORK_ONLY))
    job = await world.warm(pairs_of(2))
    assert dict(job.reasons) == {"not kept: the policy keeps nothing, or it was changed meanwhile": 2}


# Jobs


async def test_jobs_are_done_one_after_the_other_and_may_be_cancelled() -> None:
    world = Warming()
    world.batch.takes = 10.0
    jobs = WarmJobs(world.warm_up, loop_time)
    world.background.keep(jobs.work(), name="warm-up")
    numbers = [jobs.submit(listed([(user, "explain")]), 1, QUICK) for user in (1, 2, 3)]
    first, second, third = (jobs.get(number) for number in numbers)
    assert first is not None
    assert second is not None
    assert third is not None
    world.source.takes = 2.0
    await asyncio.sleep(1)
    assert [job.state for job in (first, second, third)] == [State.RUNNING, State.QUEUED, State.QUEUED]
    assert jobs.cancel(numbers[0])
    assert jobs.cancel(numbers[1])
    await third.ended.wait()
    assert [job.state for job in (first, second, third)] == [State.CANCELLED, State.CANCELLED, State.DONE]
    assert not jobs.cancel("unknown")
    await world.settle()


async def test_only_some_jobs_may_wait() -> None:
    jobs = WarmJobs(Warming().warm_up, loop_time)
    for _ in range(4):
        jobs.submit(listed([]), 0, QUICK)
    with pytest.raises(TooManyJobsError):
        jobs.submit(listed([]), 0, QUICK)


async def test_a_job_ends_with_the_drain() -> None:
    world = Warming()
    world.batch.takes = 1000.0
    jobs = WarmJobs(world.warm_up, loop_time)
    world.background.keep(jobs.work(), name="warm-up")
    number = jobs.submit(listed(pairs_of(2)), 2, QUICK)
    await asyncio.sleep(1)
    await world.background.drain(1)
    job = jobs.get(number)
    assert job is not None
    assert job.state is State.CANCELLED


# The gate


async def test_the_gate_opens_at_its_ratio() -> None:
    job = Job(listed([]), 100, QUICK)
    gate = Gate(job, min_ratio=0.9, until=loop_time() + 60, clock=loop_time)
    job.results.update(stored=80, fresh=9)
    assert gate.closed() == "The sidecar is warming up: 89 of 100 pairs; ready at 90%, or in 60 s at the latest."
    job.results.update(fresh=1)
    assert gate.closed() is None


@pytest.mark.parametrize("ends", ["in time", "never"])
async def test_the_gate_opens_when_the_job_ends_or_its_time_is_over(ends: str) -> None:
    job = Job(listed([]), 100, QUICK)
    gate = Gate(job, min_ratio=0.9, until=loop_time() + 60, clock=loop_time)
    if ends == "in time":
        job.ended.set()
    else:
        await asyncio.sleep(61)
    assert gate.closed() is None
