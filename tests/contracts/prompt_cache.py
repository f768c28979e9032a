"""What every cache of entries holds to: aiocache's interface, times by the given clock, and `peek`."""

import asyncio
from typing import Any

import pytest
from aiocache.lock import OptimisticLock, OptimisticLockError

from sidecar.core.model import Document, Entry, PromptKey
from sidecar.core.policy import Policy
from tests.fakes import document
from tests.harness import ManualClock

KEY = PromptKey(1, "explain")
NEIGHBOURS = (
    PromptKey(12, "explain"),
    PromptKey(1, "explain_more"),
    PromptKey(2, "explain"),
    KEY._replace(credential="7f3a"),
)


def entry(source: str = "Explain {{ topic }} in {{ style }}.", **settings: str) -> Entry[Document]:
    """Make an entry as a fetch would."""
    return Entry.of(document(source, settings or {"style": "plain words"}), 0.0, 0.0, Policy())


class PromptCacheContract:
    """Each test takes the fixture `cache`: an empty one with room for all of this, by the fixture `clock`."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def cache(self, clock: ManualClock) -> Any:
        raise NotImplementedError

    # One key

    async def test_what_is_not_kept_is_not_there(self, cache: Any) -> None:
        assert (cache.peek(KEY), await cache.get(KEY), await cache.exists(KEY)) == (None, None, False)
        assert await cache.get(KEY, default="nothing") == "nothing"

    async def test_what_is_kept_is_there(self, cache: Any) -> None:
        kept = entry()
        assert await cache.set(KEY, kept, 60)
        assert (cache.peek(KEY), await cache.get(KEY), await cache.exists(KEY)) == (kept, kept, True)

    async def test_what_is_kept_is_there_for_no_other_key(self, cache: Any) -> None:
        await cache.set(KEY, entry(), 60)
        assert [cache.peek(key) for key in NEIGHBOURS] == [None] * 4

    async def test_the_last_one_kept_counts(self, cache: Any) -> None:
        await cache.set(KEY, entry(), 60)
        later = entry(style="verse")
        await cache.set(KEY, later, 60)
        assert await cache.get(KEY) == later

    async def test_what_is_deleted_is_gone_and_its_neighbours_are_not(self, cache: Any) -> None:
        for key in (KEY, *NEIGHBOURS):
            await cache.set(key, entry(), 60)
        assert await cache.delete(KEY) == 1
        assert cache.peek(KEY) is None
        assert all(cache.peek(key) for key in NEIGHBOURS)

    async def test_to_delete_what_is_not_there_does_nothing(self, cache: Any) -> None:
        assert await cache.delete(KEY) == 0

    async def test_to_add_is_to_keep_only_where_nothing_is_kept(self, cache: Any) -> None:
        first = entry()
        assert await cache.add(KEY, first, 60)
        with pytest.raises(ValueError, match="already exists"):
            await cache.add(KEY, entry(style="verse"), 60)
        assert await cache.get(KEY) == first

    async def test_a_change_under_an_optimistic_lock_is_made_only_if_nobody_else_made_one(self, cache: Any) -> None:
        second, third = entry(style="verse"), entry(style="prose")
        await cache.set(KEY, entry(), 60)
        async with OptimisticLock(cache, KEY) as lock:
            assert await lock.cas(second, ttl=60)
            with pytest.raises(OptimisticLockError):
                await lock.cas(third, ttl=60)
        assert await cache.get(KEY) == second

    async def test_an_entry_is_no_number_to_be_incremented(self, cache: Any) -> None:
        await cache.set(KEY, entry(), 60)
        for key in (KEY, NEIGHBOURS[0]):
            with pytest.raises(TypeError):
                await cache.increment(key)

    # Many keys

    async def test_many_are_kept_and_got_in_the_order_asked(self, cache: Any) -> None:
        entries = [entry(style=f"style {n}") for n in range(len(NEIGHBOURS))]
        assert await cache.multi_set([*zip(NEIGHBOURS, entries, strict=True)], ttl=60)
        asked = [NEIGHBOURS[2], KEY, NEIGHBOURS[0]]
        assert await cache.multi_get(asked) == [entries[2], None, entries[0]]

    async def test_many_that_are_kept_together_end_together(self, cache: Any, clock: ManualClock) -> None:
        await cache.multi_set([(key, entry()) for key in NEIGHBOURS], ttl=60)
        clock.advance(61)
        assert await cache.multi_get(NEIGHBOURS) == [None] * 4

    async def test_clearing_forgets_all(self, cache: Any) -> None:
        for key in (KEY, *NEIGHBOURS):
            await cache.set(key, entry(), 60)
        assert await cache.clear()
        assert await cache.multi_get([KEY, *NEIGHBOURS]) == [None] * 5

    async def test_any_number_may_ask_at_once(self, cache: Any) -> None:
        keys = [PromptKey(user, "explain") for user in range(1, 101)]
        await asyncio.gather(*(cache.set(key, entry(style=f"of {key.user_id}"), 60) for key in keys))
        found = await asyncio.gather(*(cache.get(key) for key in keys))
        assert [each.document.settings["style"] for each in found] == [f"of {key.user_id}" for key in keys]

    # Time

    @pytest.mark.parametrize(("after", "there"), [(0.0, True), (59.5, True), (60.0, True), (60.5, False), (1e9, False)])
    async def test_what_is_kept_for_a_time_is_there_up_to_its_end(
        self, cache: Any, clock: ManualClock, after: float, *, there: bool
    ) -> None:
        await cache.set(KEY, entry(), 60)
        clock.advance(after)
        assert (cache.peek(KEY) is not None, await cache.exists(KEY)) == (there, there)

    async def test_what_is_kept_without_a_time_stays(self, cache: Any, clock: ManualClock) -> None:
        await cache.set(KEY, entry())
        clock.advance(1e9)
        assert await cache.exists(KEY)

    async def test_to_keep_again_is_to_keep_from_now(self, cache: Any, clock: ManualClock) -> None:
        await cache.set(KEY, entry(), 60)
        clock.advance(50)
        await cache.set(KEY, entry(), 60)
        clock.advance(50)
        assert await cache.exists(KEY)

    async def test_what_is_past_its_time_may_be_added_anew(self, cache: Any, clock: ManualClock) -> None:
        await cache.set(KEY, entry(), 60)
        clock.advance(61)
        later = entry(style="verse")
        assert await cache.add(KEY, later, 60)
        assert await cache.get(KEY) == later

    @pytest.mark.parametrize(
        ("ttl", "ends_after"),
        [
            pytest.param(10, 10.0, id="shorter"),
            pytest.param(600, 600.0, id="longer"),
            pytest.param(0, None, id="0: never"),
        ],
    )
    async def test_a_new_time_counts_from_now(
        self, cache: Any, clock: ManualClock, ttl: float, ends_after: float | None
    ) -> None:
        await cache.set(KEY, entry(), 60)
        clock.advance(5)
        assert await cache.expire(KEY, ttl)
        clock.advance(1e9 if ends_after is None else ends_after)
        assert await cache.exists(KEY)
        clock.advance(0.5)
        assert await cache.exists(KEY) is (ends_after is None)

    async def test_what_is_not_there_gets_no_new_time(self, cache: Any) -> None:
        assert not await cache.expire(KEY, 60)

    async def test_what_is_past_its_time_does_not_come_back_by_a_new_one(self, cache: Any, clock: ManualClock) -> None:
        await cache.set(KEY, entry(), 60)
        clock.advance(61)
        assert not await cache.expire(KEY, 60)
        assert cache.peek(KEY) is None
