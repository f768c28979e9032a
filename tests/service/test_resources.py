"""Resources: what writes, shared policies and closed ways add to looking up, deciding and fetching; in faked time.

What all kinds of entries have in common is tested through the manager, in test_prompts.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import permutations

import pytest

from sidecar.cache.memory import MemoryCache
from sidecar.core.cache_status import Forward, cache_status
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import Coalesced, Event, Evicted, FetchFailed
from sidecar.core.model import RouteKey, SettingsKey, UserSettings
from sidecar.core.policy import Policy, Strategy
from sidecar.service.background import Background
from sidecar.service.resources import Diverted, Landed, Obtained, Resources, Terms
from sidecar.service.writes import Writes
from tests.fakes import Fetch, HeldSource, Still, answered, loop_time, memory_alone

pytestmark = pytest.mark.looptime

KEPT = Policy(ttl=100, stale_while_revalidate=30, stale_if_error=900, network_timeout=1)
USER = SettingsKey(1)
DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
OLD, NEW = UserSettings({"style": "old"}), UserSettings({"style": "new"})


class Store:
    """Settings by user, whose fetches a test ends by hand."""

    def __init__(
        self,
        *,
        keep_under: Callable[[Policy], Iterable[Policy]] = lambda policy: (policy,),
        may_keep: Callable[[UserSettings], bool] = lambda _: True,
    ) -> None:
        self.events: list[Event] = []
        self.source: HeldSource[SettingsKey | RouteKey, UserSettings] = HeldSource()
        self.writes = Writes(loop_time)
        self.cache = MemoryCache(max_entries=100, max_bytes=1 << 20, clock=loop_time)
        self.background = Background(self.events.append)
        self.resources: Resources[SettingsKey | RouteKey, UserSettings] = Resources(
            source=self.source,
            cache=memory_alone(self.cache),
            writes=self.writes,
            clock=loop_time,
            rng=Still(),
            background=self.background,
            observer=self.events.append,
            keep_under=keep_under,
            may_keep=may_keep,
        )

    def asks(
        self, key: SettingsKey | RouteKey = USER, policy: Policy = KEPT, directives: Directives = NO_DIRECTIVES
    ) -> "asyncio.Task[Obtained[UserSettings]]":
        return asyncio.ensure_future(self.resources.obtain(key, terms(policy, directives)))

    async def fetching(self, count: int) -> "Fetch[SettingsKey | RouteKey, UserSettings]":
        """Return the newest fetch, which is the `count`th."""
        await passing()
        assert len(self.source.fetches) == count
        return self.source.fetches[-1]

    async def has(
        self, document: UserSettings = OLD, key: SettingsKey | RouteKey = USER, policy: Policy = KEPT
    ) -> None:
        """Have a document fetched and kept."""
        task = self.asks(key, policy)
        await passing()
        self.source.fetches.pop().brings(document)
        assert (await task).provenance.stored

    def kept(self, key: SettingsKey | RouteKey = USER) -> UserSettings | None:
        entry = self.resources.peek(key)
        return entry.document if entry else None


def terms(policy: Policy = KEPT, directives: Directives = NO_DIRECTIVES, *, deadline: float = 4.0) -> Terms:
    return Terms(policy, directives, loop_time(), deadline, "a label")


async def passing() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def answer(task: "asyncio.Task[Obtained[UserSettings]]") -> UserSettings:
    return (await task).entry.document


async def test_what_a_write_made_void_is_not_served_and_the_next_request_asks() -> None:
    store = Store()
    await store.has(OLD)
    store.writes.ended(1)
    assert store.kept() is None
    task = store.asks()
    fetch = await store.fetching(1)
    assert fetch.known is None, "what is void must not be confirmed by a 304"
    fetch.brings(NEW)
    assert cache_status((await task).provenance) == "prompt-sidecar; fwd=miss; stored"
    assert store.kept() is NEW


@pytest.mark.parametrize("age", [0, 110, 500])
async def test_what_is_void_does_not_stand_in_for_an_upstream_that_fails(age: float) -> None:
    store = Store()
    await store.has(OLD)
    store.writes.ended(1)
    await asyncio.sleep(age)
    task = store.asks()
    (await store.fetching(1)).fails(DOWN)
    with pytest.raises(PromptError) as caught:
        await task
    assert caught.value.status == 503


async def test_what_is_void_does_not_serve_while_the_circuit_is_open_or_the_client_wants_no_fetch() -> None:
    store = Store()
    await store.has(OLD)
    store.writes.ended(1)
    with pytest.raises(PromptError) as uncached:
        await store.asks(directives=Directives(only_if_cached=True))
    assert uncached.value.status == 504
    with pytest.raises(PromptError) as too_stale:
        await store.asks(directives=Directives(only_if_cached=True, max_stale=10_000))
    assert too_stale.value.status == 504
    store.source.open_for = 3.0
    with pytest.raises(PromptError) as unasked:
        await store.asks()
    assert (unasked.value.status, unasked.value.retry_after) == (503, 3)


async def test_a_slow_upstream_is_not_covered_with_what_became_void_while_it_was_waited_for() -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(500)
    task = store.asks()
    await asyncio.sleep(0.5)
    store.writes.ended(1)
    await asyncio.sleep(1)
    assert not task.done(), "network_timeout is over, but there is nothing to serve instead"
    (await store.fetching(2)).brings(NEW)
    assert cache_status((await task).provenance) == "prompt-sidecar; fwd=stale; stored"
    assert store.kept() is NEW


async def test_what_another_user_wrote_makes_nothing_void() -> None:
    store = Store()
    await store.has(OLD)
    store.writes.ended(12)
    store.writes.ended(None)
    assert await answer(store.asks()) is OLD
    assert store.source.fetches == []


async def test_a_read_that_is_nobodys_is_void_after_a_write_that_is_nobodys_and_no_users() -> None:
    store = Store()
    everybodys, users = RouteKey("host", "/api/v1/profiles/"), RouteKey("host", "/api/v1/users/1/placeholders", 1)
    await store.has(OLD, everybodys)
    await store.has(OLD, users)
    store.writes.ended(1)
    assert (store.kept(everybodys), store.kept(users)) == (OLD, None)
    store.writes.ended(None)
    assert store.kept(everybodys) is None


@pytest.mark.parametrize("order", list(permutations(["write ends", "fetch lands", "time passes"])))
async def test_a_fetch_that_began_before_a_write_is_not_kept_whatever_is_first(order: tuple[str, ...]) -> None:
    store = Store()
    task = store.asks()
    fetch = await store.fetching(1)
    for step in order:
        match step:
            case "write ends":
                store.writes.ended(1)
            case "fetch lands":
                fetch.brings(OLD)
            case "time passes":
                await asyncio.sleep(1)
        await passing()
    assert await answer(task) is OLD, "who asked before the write may see what was before it"
    assert store.kept() is None


async def test_a_fetch_that_began_before_a_write_does_not_replace_what_came_after_it() -> None:
    store = Store()
    store.asks()
    early = await store.fetching(1)
    store.writes.ended(1)
    task = store.asks()
    (await store.fetching(2)).brings(NEW)
    assert await answer(task) is NEW
    early.brings(OLD)
    await passing()
    assert store.kept() is NEW
    assert await answer(store.asks()) is NEW


async def test_a_fetch_that_began_between_two_writes_is_not_kept() -> None:
    store = Store()
    store.writes.ended(1)
    task = store.asks()
    fetch = await store.fetching(1)
    store.writes.ended(1)
    fetch.brings(OLD)
    assert (await task).provenance.stored is False
    assert store.kept() is None


async def test_a_fetch_that_began_after_a_write_is_kept() -> None:
    store = Store()
    store.writes.ended(1)
    task = store.asks()
    (await store.fetching(1)).brings(NEW)
    assert (await task).provenance.stored is True
    assert store.kept() is NEW


async def test_a_write_between_two_requests_parts_them_and_further_ones_share_the_later_fetch() -> None:
    store = Store()
    before = [store.asks() for _ in range(5)]
    early = await store.fetching(1)
    store.writes.ended(1)
    after = [store.asks() for _ in range(5)]
    late = await store.fetching(2)
    early.brings(OLD)
    await passing()
    assert not any(task.done() for task in after)
    late.brings(NEW)
    assert [await answer(task) for task in before] == [OLD] * 5
    assert [await answer(task) for task in after] == [NEW] * 5
    assert len([event for event in store.events if isinstance(event, Coalesced)]) == 8


@pytest.mark.parametrize("order", list(permutations(range(4))))
async def test_many_writes_and_fetches_land_in_any_order_and_the_last_word_counts(order: tuple[int, ...]) -> None:
    store = Store()
    documents = [UserSettings({"style": str(n)}) for n in range(4)]
    tasks, fetches = [], []
    for n in range(4):
        tasks.append(store.asks())
        fetches.append(await store.fetching(n + 1))
        if n < 3:
            store.writes.ended(1)
        await asyncio.sleep(0.1)
    for n in order:
        fetches[n].brings(documents[n])
        await passing()
        assert store.kept() in {None, documents[3]}
    assert [await answer(task) for task in tasks] == documents
    assert store.kept() is documents[3]


async def test_a_revalidation_that_began_before_a_write_is_not_kept_even_if_it_says_unchanged() -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(110)
    assert await answer(store.asks()) is OLD
    fetch = await store.fetching(1)
    assert fetch.known is OLD
    store.writes.ended(1)
    fetch.brings(OLD)
    await passing()
    assert store.kept() is None


async def test_a_failure_of_a_fetch_from_before_a_write_evicts_nothing_newer() -> None:
    store = Store()
    early_task = store.asks()
    early = await store.fetching(1)
    await asyncio.sleep(0.1)
    store.writes.ended(1)
    task = store.asks()
    (await store.fetching(2)).brings(NEW)
    await task
    early.fails(answered(404))
    with pytest.raises(PromptError):
        await early_task
    assert store.kept() is NEW
    assert not any(isinstance(event, Evicted) for event in store.events)


async def test_while_a_lost_write_may_take_effect_each_request_asks_for_itself_and_nothing_is_kept() -> None:
    store = Store()
    store.writes.ended(1, unsettled_for=25)
    tasks = [store.asks() for _ in range(3)]
    await store.fetching(3)
    for fetch, document in zip(store.source.fetches, [OLD, NEW, NEW], strict=True):
        fetch.brings(document)
    got = [await task for task in tasks]
    assert [each.entry.document for each in got] == [OLD, NEW, NEW]
    assert {cache_status(each.provenance) for each in got} == {"prompt-sidecar; fwd=miss"}
    assert store.kept() is None
    task = store.asks()
    (await store.fetching(4)).brings(NEW)
    await task


async def test_a_fetch_that_began_within_the_window_is_not_kept_after_it_and_not_shared() -> None:
    store = Store()
    store.writes.ended(1, unsettled_for=1)
    early_task = store.asks()
    early = await store.fetching(1)
    await asyncio.sleep(1)
    task = store.asks()
    late = await store.fetching(2)
    early.brings(OLD)
    assert await answer(early_task) is OLD
    assert store.kept() is None
    late.brings(NEW)
    assert (await task).provenance.stored
    assert store.kept() is NEW


async def test_within_the_window_the_policy_does_not_cover_a_failure() -> None:
    store = Store()
    await store.has(OLD)
    store.writes.ended(1, unsettled_for=25)
    task = store.asks()
    (await store.fetching(1)).fails(DOWN)
    with pytest.raises(PromptError) as caught:
        await task
    assert caught.value.status == 503


async def test_other_users_go_on_sharing_within_the_window() -> None:
    store = Store()
    store.writes.ended(12, unsettled_for=25)
    tasks = [store.asks() for _ in range(3)]
    (await store.fetching(1)).brings(OLD)
    assert [await answer(task) for task in tasks] == [OLD] * 3
    assert store.kept() is OLD


async def test_an_entry_is_kept_for_the_longest_of_the_policies_that_may_look_at_it() -> None:
    short = Policy(ttl=10, stale_if_error=0, stale_while_revalidate=0)
    long = Policy(ttl=10, stale_if_error=500)
    store = Store(keep_under=lambda policy: (policy, long))
    await store.has(OLD, policy=short)
    await asyncio.sleep(500)
    task = store.asks(policy=short)
    fetch = await store.fetching(1)
    fetch.fails(DOWN)
    with pytest.raises(PromptError):
        await task
    covered = store.asks(policy=long)
    (await store.fetching(2)).fails(DOWN)
    assert await answer(covered) is OLD
    await asyncio.sleep(11)
    assert store.cache.peek(USER) is None


async def test_a_policy_that_keeps_nothing_leaves_what_another_one_wants_kept() -> None:
    never = Policy(strategy=Strategy.NETWORK_ONLY)
    store = Store(keep_under=lambda policy: (policy, KEPT))
    task = store.asks(policy=never)
    (await store.fetching(1)).brings(OLD)
    assert (await task).provenance.stored
    assert await answer(store.asks()) is OLD


async def test_where_no_policy_keeps_it_nothing_is_kept() -> None:
    never = Policy(strategy=Strategy.NETWORK_ONLY, ttl=100)
    nothing = Policy(ttl=0, stale_if_error=0)
    store = Store(keep_under=lambda _: (never, nothing))
    task = store.asks(policy=never)
    (await store.fetching(1)).brings(OLD)
    assert (await task).provenance.stored is False
    assert len(store.cache) == 0


async def test_an_entry_fetched_under_one_policy_is_judged_by_the_one_that_asks() -> None:
    strict = Policy(ttl=5, stale_while_revalidate=0, stale_if_error=0)
    store = Store(keep_under=lambda _: (KEPT, strict))
    await store.has(OLD)
    await asyncio.sleep(6)
    assert await answer(store.asks()) is OLD
    task = store.asks(policy=strict)
    (await store.fetching(1)).brings(NEW)
    assert await answer(task) is NEW


async def test_what_may_not_be_kept_serves_once() -> None:
    store = Store(may_keep=lambda document: document is not OLD)
    task = store.asks()
    (await store.fetching(1)).brings(OLD)
    assert cache_status((await task).provenance) == "prompt-sidecar; fwd=miss"
    assert store.kept() is None
    task = store.asks()
    (await store.fetching(2)).brings(NEW)
    await task
    assert store.kept() is NEW


@pytest.mark.parametrize(("age", "is_aging"), [(0, False), (499, False), (500, True), (1000, True), (1001, True)])
async def test_an_entry_is_aging_from_half_of_its_use_on(age: float, is_aging: bool) -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(age)
    assert store.resources.is_aging(USER, KEPT) is is_aging


async def test_what_is_absent_or_void_is_aging() -> None:
    store = Store()
    assert store.resources.is_aging(USER, KEPT)
    await store.has(OLD)
    store.writes.ended(1)
    assert store.resources.is_aging(USER, KEPT)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(40, "prompt-sidecar; fwd=bypass; fwd-status=503; ttl=60; detail=stale-if-error", id="fresh"),
        pytest.param(400, "prompt-sidecar; fwd=bypass; fwd-status=503; ttl=-300; detail=stale-if-error", id="stale"),
        pytest.param(1001, None, id="too old"),
    ],
)
async def test_what_is_kept_stands_in_as_far_as_the_policy_says(age: float, expected: str | None) -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(age)
    instead = store.resources.instead(USER, terms(), DOWN, Forward.BYPASS)
    assert (None if instead is None else cache_status(instead.provenance)) == expected


async def test_nothing_stands_in_where_the_policy_the_client_or_the_failure_forbids_it() -> None:
    store = Store()
    never = Policy(strategy=Strategy.NETWORK_ONLY, ttl=100)
    assert store.resources.instead(USER, terms(), DOWN, Forward.MISS) is None
    await store.has(OLD)
    await asyncio.sleep(200)
    assert store.resources.instead(USER, terms(never), DOWN, Forward.MISS) is None
    assert store.resources.instead(USER, terms(directives=Directives(no_cache=True)), DOWN, Forward.MISS) is None
    assert store.resources.instead(USER, terms(directives=Directives(max_stale=99)), DOWN, Forward.MISS) is None
    assert store.resources.instead(USER, terms(), answered(404), Forward.MISS) is None
    assert store.resources.instead(USER, terms(directives=Directives(max_stale=100)), DOWN, Forward.MISS) is not None
    store.writes.ended(1)
    assert store.resources.instead(USER, terms(), DOWN, Forward.MISS) is None


async def test_a_refresh_asks_whatever_is_kept_and_shares_what_is_under_way() -> None:
    store = Store()
    await store.has(OLD)
    refresh = asyncio.ensure_future(store.resources.refresh(USER, terms()))
    other = asyncio.ensure_future(store.resources.refresh(USER, terms()))
    (await store.fetching(1)).brings(NEW)
    landed = await refresh
    assert isinstance(landed, Landed)
    assert (landed.entry.document, landed.stored) == (NEW, True)
    assert await other is landed
    assert store.kept() is NEW


async def test_a_refresh_that_fails_says_how_and_leaves_what_is_kept() -> None:
    store = Store()
    await store.has(OLD)
    refresh = asyncio.ensure_future(store.resources.refresh(USER, terms()))
    (await store.fetching(1)).fails(DOWN)
    assert await refresh is DOWN
    assert store.kept() is OLD


async def test_a_refresh_that_nobody_answers_is_a_failure_like_any_other() -> None:
    store = Store()
    failure = await store.resources.refresh(USER, terms())
    assert isinstance(failure, UpstreamFailure)
    assert failure.rule.status == 504
    assert loop_time() < 4


async def test_a_refresh_waits_no_longer_than_it_has_for_a_fetch_that_has_longer() -> None:
    store = Store()
    patient = asyncio.ensure_future(store.resources.refresh(USER, terms(deadline=10)))
    await passing()
    failure = await store.resources.refresh(USER, terms())
    assert isinstance(failure, UpstreamFailure)
    assert failure.kind is FailureKind.DEADLINE
    assert loop_time() < 4
    (await store.fetching(1)).brings(NEW)
    assert isinstance(await patient, Landed)


@pytest.mark.parametrize("kind", [FailureKind.NOT_ADMITTED, FailureKind.ENDPOINT_GONE])
@pytest.mark.parametrize("age", [None, 110, 500])
async def test_a_closed_way_is_told_before_anything_stale_is_served(kind: FailureKind, age: float | None) -> None:
    store = Store()
    policy = Policy(ttl=100, stale_while_revalidate=0, stale_if_error=900)
    if age is not None:
        await store.has(OLD, policy=policy)
        await asyncio.sleep(age)
    task = store.asks(policy=policy)
    failure = UpstreamFailure(kind, "closed", status=404)
    (await store.fetching(1)).fails(failure)
    with pytest.raises(Diverted) as caught:
        await task
    assert caught.value.failure is failure
    assert caught.value.forward is (Forward.MISS if age is None else Forward.STALE)
    assert store.kept() is (None if age is None else OLD), "if the other way fails too, it may still stand in"
    assert [event.kind for event in store.events if isinstance(event, FetchFailed)] == [kind]


async def test_a_closed_way_is_told_to_everyone_who_waits() -> None:
    store = Store()
    tasks = [store.asks() for _ in range(3)]
    (await store.fetching(1)).fails(UpstreamFailure(FailureKind.ENDPOINT_GONE, "gone", status=404))
    for caught in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(caught, Diverted)


async def test_a_closed_way_found_behind_an_answer_disturbs_nobody() -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(110)
    assert await answer(store.asks()) is OLD
    (await store.fetching(1)).fails(UpstreamFailure(FailureKind.NOT_ADMITTED, "no"))
    await store.background.drain(1)
    assert [type(event) for event in store.events] == [FetchFailed]
    assert store.kept() is OLD


async def test_settings_that_were_all_lost_do_not_replace_good_ones_but_after_a_write_they_may() -> None:
    store = Store()
    await store.has(OLD)
    await asyncio.sleep(500)
    task = store.asks()
    (await store.fetching(1)).brings(UserSettings({}))
    assert await answer(task) is OLD
    store.writes.ended(1)
    emptied = UserSettings({})
    task = store.asks()
    (await store.fetching(2)).brings(emptied)
    assert await answer(task) is emptied
