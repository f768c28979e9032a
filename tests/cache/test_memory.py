"""The memory tier: the contract of every cache, and its own bounds in entries and bytes."""

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.memory import MemoryCache, kept_bytes, template_bytes
from sidecar.core.model import Document, Entry, PromptKey
from sidecar.core.policy import Policy
from tests.fakes import compiled
from tests.harness import ManualClock

pytest.register_assert_rewrite("tests.contracts.prompt_cache")
from tests.contracts.prompt_cache import KEY, PromptCacheContract, entry  # noqa: E402 — once its asserts are rewritten

SOURCE = "Explain {{ topic }} in {{ style }}."
SIZE = kept_bytes(entry().document)
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
    return [key[0] for key in cache._slots]


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
    cache = cache_of(max_bytes=TEMPLATE + 3 * SIZE)
    await fill(cache, [1, 2, 3])
    assert (users_in(cache), cache.bytes) == ([1, 2, 3], TEMPLATE + 3 * SIZE)
    large = entry(style="x" * (len("plain words") + SIZE))
    await cache.set(key_of(4), large)
    assert users_in(cache) == [3, 4]
    assert cache.evictions["bytes"] == 2
    assert cache.bytes <= TEMPLATE + 3 * SIZE


async def test_what_is_larger_than_everything_is_refused_and_takes_nobodys_room() -> None:
    cache = cache_of(max_bytes=TEMPLATE + 3 * SIZE)
    await fill(cache, [1, 2])
    assert not await cache.set(key_of(3), entry(style="x" * (3 * SIZE)))
    assert (users_in(cache), cache.evictions["too_large"]) == ([1, 2], 1)


async def test_what_is_larger_than_everything_removes_what_it_would_have_replaced() -> None:
    cache = cache_of(max_bytes=TEMPLATE + 3 * SIZE)
    await fill(cache, [1, 2])
    await cache.set(key_of(1), entry(style="x" * (3 * SIZE)))
    assert (users_in(cache), cache.bytes) == ([2], TEMPLATE + SIZE)


async def test_a_template_that_is_larger_than_everything_is_refused() -> None:
    cache = cache_of(max_bytes=TEMPLATE + 3 * SIZE)
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


async def test_a_template_is_counted_once_for_all_its_users_and_released_with_the_last() -> None:
    cache = cache_of()
    await fill(cache, range(10))
    assert cache.bytes == 10 * SIZE + TEMPLATE
    for user in range(9):
        await cache.delete(key_of(user))
    assert cache.bytes == SIZE + TEMPLATE
    await cache.delete(key_of(9))
    assert cache.bytes == 0


async def test_each_template_is_counted() -> None:
    cache = cache_of()
    other = entry(SOURCE + " Be brief.")
    await fill(cache, [1])
    await cache.set(key_of(2), other)
    both = SIZE + TEMPLATE + kept_bytes(other.document) + template_bytes(other.document.template)
    assert cache.bytes == both
    await cache.set(key_of(1), other)
    assert cache.bytes == both - SIZE - TEMPLATE + kept_bytes(other.document)


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
    assert (len(cache), cache.bytes, len(cache._template_uses)) == (0, 0, 0)


DOCUMENTS = [
    entry(source, style=style)
    for source in (SOURCE, SOURCE + " Be brief.", "{% if topic %}{{ style | upper }}{% endif %}")
    for style in ("", "plain words", "<b>" * 500)
]
KEYS = st.integers(0, 7).map(key_of)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.sampled_from(DOCUMENTS), st.none() | st.floats(0, 100)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("expire"), KEYS, st.floats(0, 100)),
    st.tuples(st.just("clear")),
)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(STEPS, st.sampled_from([0.0, 1.0, 200.0])), max_size=40),
    max_entries=st.integers(1, 6),
    max_bytes=st.integers(0, 8 * (SIZE + TEMPLATE)),
)
async def test_whatever_happens_the_bounds_hold_and_the_bytes_are_those_of_what_is_there(
    steps: list[tuple[tuple[Any, ...], float]], max_entries: int, max_bytes: int
) -> None:
    clock = ManualClock()
    cache = cache_of(max_entries=max_entries, max_bytes=max_bytes, clock=clock)
    for (name, *arguments), seconds in steps:
        await getattr(cache, name)(*arguments)
        clock.advance(seconds)
        documents = [slot.entry.document for slot in cache._slots.values()]
        templates = {document.template.digest: document.template for document in documents}
        assert cache.bytes == sum(map(kept_bytes, documents)) + sum(map(template_bytes, templates.values()))
        assert cache.bytes <= max_bytes
        assert len(cache) <= max_entries


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
        for user in range(entries):
            cache._keep(key_of(user), kept, 60)
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


@pytest.mark.parametrize("count", [0, 1, 10, 50])
def test_the_bytes_counted_are_those_taken_or_up_to_a_quarter_more(count: int) -> None:
    users = 400
    template = compiled(
        "Explain {{ topic }} in " + " ".join(f"{{{{ setting_{n} }}}}" for n in range(count)), autoescape=True
    )
    decode = msgspec.json.Decoder(dict[str, str]).decode
    bodies = [json.dumps({f"setting_{n}": f"value {n} of {user:06d}" for n in range(count)}) for user in range(users)]
    cache, policy = cache_of(max_bytes=1 << 40), Policy()

    def arrive(user: int) -> None:
        key = PromptKey(user + 1000, json.loads('"answer_question"'))
        required = frozenset([f"topic_{user}"])
        document = Document.of(template, decode(bodies[user]), required=required, stated_ttl=300.0 + user, etag=None)
        cache._keep(key, Entry.of(document, 1e6 + user, user / users, policy), 1200.0 + user)

    arrive(0)
    before = cache.bytes
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        for user in range(1, users):
            arrive(user)
        taken = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert 1.0 <= (cache.bytes - before) / taken <= 1.25
