"""The memory tier: the contract of every cache, and its own bounds in entries and bytes."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.memory import LIVE_SHARE, MemoryCache
from sidecar.cache.packed import Packed
from sidecar.cache.sizes import shared_bytes, template_bytes
from sidecar.core.model import Document, Entry, PromptKey, SettingsKey, StaticAnswer, UserSettings
from sidecar.core.policy import Policy
from tests.harness import ManualClock

pytest.register_assert_rewrite("tests.contracts.prompt_cache")
from tests.contracts.prompt_cache import KEY, PromptCacheContract, entry  # noqa: E402 — once its asserts are rewritten

SOURCE = "Explain {{ topic }} in {{ style }}."
TEMPLATE = template_bytes(entry().document.template)
ROOM = 1 << 24


def cache_of(*, max_entries: int = 1000, max_bytes: int = ROOM, clock: ManualClock | None = None) -> MemoryCache:
    return MemoryCache(max_entries=max_entries, max_bytes=max_bytes, clock=clock or ManualClock())


def key_of(user: int) -> PromptKey:
    return PromptKey(user, "explain")


async def fill(cache: MemoryCache, users: Iterable[int], ttl: float | None = None) -> None:
    for user in users:
        await cache.set(key_of(user), entry(), ttl)


def users_in(cache: MemoryCache) -> list[int]:
    """Return whose entries are there, the least recently used first."""
    return [key[0] for key in cache]


def slots_of(cache: MemoryCache) -> list[Packed]:
    return [*cache._packed.values(), *cache._live.values()]


def counted(slots: Iterable[Packed]) -> int:
    """Return what a cache should count for these: what they share, once."""
    slots = [*slots]
    texts = {texts for slot in slots for texts in (slot.names, slot.values)}
    shared = texts | {text for each in texts for text in each} | {part for slot in slots for part in slot.parts()}
    return sum(slot.own_bytes() + slot.live_bytes for slot in slots) + sum(map(shared_bytes, shared))


async def figures() -> tuple[int, int, int]:
    """Return what all entries of `fill` share takes, and what each takes at rest and in use; bytes."""
    cache = cache_of()
    await fill(cache, [1])
    first = cache.bytes
    at_rest = slots_of(cache)[0].own_bytes()
    live = slots_of(cache)[0].live_bytes
    return first - at_rest - live, at_rest, live


class TestTheContract(PromptCacheContract):
    @pytest.fixture
    def cache(self, clock: ManualClock) -> MemoryCache:
        return cache_of(clock=clock)


async def test_there_are_no_namespaces_and_what_asks_for_one_clears_nothing() -> None:
    cache = cache_of()
    await fill(cache, [1])
    with pytest.raises(TypeError, match="namespaces"):
        await cache.clear(namespace="main")
    assert len(cache) == 1


# Who makes room


async def test_the_least_recently_used_makes_room_when_there_are_too_many() -> None:
    cache = cache_of(max_entries=3)
    await fill(cache, [1, 2, 3, 4, 5])
    assert users_in(cache) == [3, 4, 5]
    assert cache.evictions == {"entries": 2, "bytes": 0, "expired": 0, "too_large": 0}


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda cache: cache.get(key_of(1)), id="got"),
        pytest.param(lambda cache: cache.multi_get([key_of(1)]), id="got among many"),
        pytest.param(lambda cache: cache.set(key_of(1), entry(style="verse")), id="kept again"),
    ],
)
async def test_what_is_used_goes_to_the_end_of_the_queue(use: Callable[[MemoryCache], Any]) -> None:
    cache = cache_of(max_entries=3)
    await fill(cache, [1, 2, 3])
    await use(cache)
    await fill(cache, [4])
    assert users_in(cache) == [3, 1, 4]


async def test_a_peek_is_a_use() -> None:
    cache = cache_of(max_entries=2)
    await fill(cache, [1, 2])
    assert cache.peek(key_of(1)) is not None
    await fill(cache, [3])
    assert users_in(cache) == [1, 3]


async def test_to_keep_again_evicts_nobody() -> None:
    cache = cache_of(max_entries=2)
    await fill(cache, [1, 2, 1, 2, 1])
    assert (users_in(cache), cache.evictions.total()) == ([2, 1], 0)


async def test_as_many_make_room_as_the_bytes_need() -> None:
    common, at_rest, live = await figures()
    room = common + 3 * at_rest + 2 * live
    cache = cache_of(max_bytes=room)
    await fill(cache, [1, 2, 3])
    assert users_in(cache) == [1, 2, 3]
    await cache.set(key_of(4), entry(style="x" * live))
    assert (users_in(cache), cache.evictions["bytes"]) == ([3, 4], 2)
    assert cache.bytes <= room


async def test_what_is_larger_than_everything_is_refused_and_takes_nobodys_room() -> None:
    common, at_rest, live = await figures()
    cache = cache_of(max_bytes=common + 2 * at_rest + 2 * live)
    await fill(cache, [1, 2])
    before = cache.bytes
    assert not await cache.set(key_of(3), entry(style="x" * (common + 3 * live)))
    assert (users_in(cache), cache.evictions["too_large"], cache.bytes) == ([1, 2], 1, before)


async def test_what_is_larger_than_everything_removes_what_it_would_have_replaced() -> None:
    common, at_rest, live = await figures()
    cache = cache_of(max_bytes=common + 2 * at_rest + 2 * live)
    await fill(cache, [1, 2])
    await cache.set(key_of(1), entry(style="x" * (common + 3 * live)))
    assert (users_in(cache), cache.bytes) == ([2], common + at_rest + live)


async def test_a_template_that_is_larger_than_everything_is_refused() -> None:
    cache = cache_of(max_bytes=2 * TEMPLATE)
    assert not await cache.set(KEY, entry(SOURCE + "x" * TEMPLATE))
    assert (len(cache), cache.bytes) == (0, 0)


async def test_what_is_past_its_time_is_dropped_when_it_is_met() -> None:
    clock = ManualClock()
    cache = cache_of(clock=clock)
    await fill(cache, [1, 2], ttl=60)
    clock.advance(61)
    assert (len(cache), cache.peek(key_of(1)), len(cache)) == (2, None, 1)
    assert cache.evictions["expired"] == 1


# What is counted


async def test_look_ups_are_counted_by_what_they_found() -> None:
    clock = ManualClock()
    cache = cache_of(clock=clock)
    await fill(cache, [1], ttl=60)
    for user in (1, 1, 2):
        cache.peek(key_of(user))
    clock.advance(61)
    cache.peek(key_of(1))
    assert (cache.hits, cache.misses) == (2, 2)


async def test_what_entries_share_is_counted_once_and_released_with_the_last() -> None:
    common, at_rest, live = await figures()
    cache = cache_of()
    await fill(cache, range(10))
    assert cache.bytes == common + 10 * (at_rest + live)
    for user in range(9):
        await cache.delete(key_of(user))
    assert cache.bytes == common + at_rest + live
    await cache.delete(key_of(9))
    assert (cache.bytes, len(cache._shared)) == (0, 0)


async def test_each_template_is_counted() -> None:
    cache = cache_of()
    other = entry(SOURCE + " Be brief.")
    await fill(cache, [1])
    one = cache.bytes
    await cache.set(key_of(2), other)
    assert cache.bytes > one + template_bytes(other.document.template)
    await cache.set(key_of(1), other)
    await cache.delete(key_of(2))
    assert one < cache.bytes < one + template_bytes(other.document.template)


@pytest.mark.parametrize("ending", ["deleted", "cleared", "expired", "replaced and deleted"])
async def test_nothing_is_counted_of_what_is_gone(ending: str) -> None:
    clock = ManualClock()
    cache = cache_of(clock=clock)
    await fill(cache, range(20), ttl=60)
    match ending:
        case "cleared":
            await cache.clear()
        case "expired":
            clock.advance(61)
            assert await cache.multi_get([key_of(user) for user in range(20)]) == [None] * 20
        case _:
            for user in range(20):
                if ending != "deleted":
                    await cache.set(key_of(user), entry(SOURCE + str(user % 3), style="x" * user, more="y"), 60)
                await cache.delete(key_of(user))
    assert (len(cache), cache.bytes, len(cache._shared)) == (0, 0, 0)
    assert not cache._shared._more


ENTRIES = [
    entry(source, style=style, other="plain words")
    for source in (SOURCE, SOURCE + " Be brief.", "{% if topic %}{{ style | upper }}{% endif %}")
    for style in ("", "plain words", "style", "<b>" * 500)
] + [
    Entry.of(StaticAnswer(200, (("Content-Type", "text/plain"),), b"x" * 2000), 1.0, 0.0, Policy()),
]
TAG = "7f3a" * 8
KEYS = st.integers(0, 7).map(key_of) | st.sampled_from([key_of(1)._replace(credential=TAG), SettingsKey(1, TAG)])
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.sampled_from(ENTRIES), st.none() | st.floats(0, 100)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("expire"), KEYS, st.floats(0, 100)),
    st.tuples(st.just("clear")),
)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(STEPS, st.sampled_from([0.0, 1.0, 200.0])), max_size=40),
    max_entries=st.integers(1, 6),
    max_bytes=st.integers(0, 4 * TEMPLATE),
)
async def test_whatever_happens_the_bounds_hold_and_what_is_there_is_what_was_last_kept(
    steps: list[tuple[tuple[Any, ...], float]], max_entries: int, max_bytes: int
) -> None:
    clock = ManualClock()
    cache = cache_of(max_entries=max_entries, max_bytes=max_bytes, clock=clock)
    model: OrderedDict[Any, Entry[Any]] = OrderedDict()  # without bounds or times: it says what may be there, and when
    for (name, *arguments), seconds in steps:
        answered = await getattr(cache, name)(*arguments)
        match name:
            case "set":
                model.pop(arguments[0], None)
                model[arguments[0]] = arguments[1]
            case "get":
                assert answered is None or answered == model.get(arguments[0])
                if answered is not None:
                    model.move_to_end(arguments[0])
            case "clear":
                model.clear()
        clock.advance(seconds)
        there = {*cache}
        assert [*cache] == [key for key in model if key in there]
        assert cache.bytes == counted(slots_of(cache)) <= max_bytes
        assert cache._live_bytes == sum(slot.live_bytes for slot in cache._live.values())
        assert cache._live_bytes <= max_bytes // LIVE_SHARE or len(cache._live) == 1
        assert all(slot.entry is None and slot.live_bytes == 0 for slot in cache._packed.values())
        assert len(cache) <= max_entries


# What is at rest


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        pytest.param(KEY, entry(), id="a document"),
        pytest.param(
            KEY,
            Entry.of(entry("{{ b }}{{ topic }}{{ a }}", b="<b>", unused="x", a="é").document, 5.5, -0.3, Policy(), 7),
            id="a document of an order of its own",
        ),
        pytest.param(
            SettingsKey(1), Entry.of(UserSettings({"b": "2", "a": "1"}), 5.5, 0.3, Policy(), 2), id="settings"
        ),
        pytest.param(KEY._replace(credential=TAG), entry(), id="a credential's document"),
        pytest.param(
            SettingsKey(1, TAG), Entry.of(UserSettings({"a": "1"}), 5.5, 0.3, Policy(), 2), id="a credential's settings"
        ),
        pytest.param(
            ("h", "/t", None), Entry.of(StaticAnswer(404, (("A", "b"),), b"x"), 5.5, 0.3, Policy()), id="an answer"
        ),
    ],
)
async def test_what_was_at_rest_is_as_it_was(key: Any, kept: Entry[Any]) -> None:
    cache = cache_of(max_bytes=ROOM)
    await cache.set(key, kept)
    cache._max_live_bytes = 0
    await fill(cache, range(100, 102))
    assert cache._packed[key].entry is None
    woken = cache.peek(tuple(key))
    assert woken is not None
    assert woken is not kept
    assert (woken.policy, woken.confirmed_at, woken.spread, woken.hit_until, woken.epoch) == (
        kept.policy,
        kept.confirmed_at,
        kept.spread,
        kept.hit_until,
        kept.epoch,
    )
    assert woken.policy is kept.policy
    old, new = kept.document, woken.document
    match old:
        case Document():
            assert new == old
            assert new.template is old.template
            assert [*new.settings.items()] == [*old.settings.items()]
            assert [*new.used.items()] == [*old.used.items()]
            assert new.static.filled == old.static.filled
        case UserSettings():
            assert [*new.values.items()] == [*old.values.items()]
        case _:
            assert new is old
    assert cache.peek(key) is woken


async def test_a_change_under_a_lock_is_made_although_what_it_replaces_was_at_rest_meanwhile() -> None:
    cache = cache_of()
    cache._max_live_bytes = 0
    await fill(cache, [1])
    token = await cache._gets(key_of(1))
    await fill(cache, [2])
    assert await cache._set(key_of(1), entry(style="verse"), _cas_token=token)
    assert not await cache._set(key_of(1), entry(style="prose"), _cas_token=token)


async def test_the_text_of_a_key_counts() -> None:
    cache = cache_of()
    await fill(cache, [1])
    before = cache.bytes
    await cache.set(PromptKey(1, "x" * 10_000), entry())
    assert cache.bytes > before + 10_000
    for key in (PromptKey(1, "explain", "x" * 10_001), SettingsKey(1, "x" * 10_002)):
        before = cache.bytes
        await cache.set(key, entry())
        assert cache.bytes > before + 10_000
    before = cache.bytes
    answer = Entry.of(StaticAnswer(200, (), b""), 0.0, 0.0, Policy())
    await cache.set(("host", "/" * 10_000, None), answer)
    assert cache.bytes > before + 10_000


# What it costs


def calls_in(work: Callable[[], object]) -> int:
    """Count the calls, Python's and C's, that some work makes."""
    count = 0

    def called(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_to_look_up_to_keep_and_to_make_room_cost_the_same_however_many_there_are() -> None:
    kept = entry()

    def costs(entries: int) -> list[int]:
        clock = ManualClock()
        cache = cache_of(max_entries=entries, max_bytes=1 << 40, clock=clock)
        cache._max_live_bytes = 0  # all but one at rest
        for user in range(entries):
            cache._keep(key_of(user), kept, 60)
        cache.peek(key_of(entries - 1))
        look_up = calls_in(lambda: cache.peek(key_of(entries - 1)))
        make_room = calls_in(lambda: cache._keep(key_of(-1), kept, 60))
        clock.advance(61)
        drop = calls_in(lambda: cache.peek(key_of(entries // 2)))
        assert cache.evictions == {"entries": 1, "bytes": 0, "expired": 1, "too_large": 0}
        return [look_up, make_room, drop]

    assert costs(1_000) == costs(100_000)


def test_a_look_up_awaits_nothing() -> None:
    look_up = cache_of().get(KEY)
    with pytest.raises(StopIteration):
        look_up.send(None)
