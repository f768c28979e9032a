"""The Redis store and its group, with a real server: versions, gaps, storms; what is void stays void."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest

from sidecar.cache import redis_group, redis_store
from sidecar.cache.outbox import MOST_WAITING, Message
from sidecar.cache.records import Place, place_of
from sidecar.cache.redis_group import RedisGroup
from sidecar.cache.redis_store import RedisStore
from sidecar.cache.tiered import Found
from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from sidecar.core.events import Crashed, Event, RecordDropped, StoreChanged
from sidecar.core.model import PromptKey
from sidecar.core.servers import RedisUrl
from sidecar.service.ports import StoreAwayError, Unsettled
from sidecar.settings import RedisSettings, Settings, StoreKind, StoreSettings
from sidecar.stores import open_store
from tests.harness import Chance, ManualClock, eventually
from tests.redis_servers import Server, server

SPACE = Settings().upstream.url
EXPLAIN, QUIZ, OF_12 = (
    place_of(SPACE, key) for key in (PromptKey(1, "explain"), PromptKey(1, "quiz"), PromptKey(12, "explain"))
)


@dataclass
class Member:
    """A sidecar's part of the group, and what it heard."""

    store: RedisStore
    group: RedisGroup
    clock: ManualClock
    events: list[Event]
    changes: list[Change] = field(default_factory=list)
    doubts: list[float] = field(default_factory=list)
    lost: int = 0

    def heard(self, changes: Iterable[Change]) -> None:
        self.changes.extend(changes)

    def doubt(self, seconds: float) -> None:
        self.doubts.append(seconds)

    def lost_track(self) -> None:
        self.lost += 1

    async def has(self, place: Place) -> bytes | None:
        """Return the record that it finds."""
        found = await self.store.get(place)
        return found.record if isinstance(found, Found) else None

    async def fetches(self, place: Place, record: bytes, *, age: float = 1.0, ttl: float = 60.0) -> None:
        """Do what a fetch does: note the ticket, ask the upstream, keep what it brought."""
        await self.store.get(place)
        self.store.put(place, record, age=age, ttl=ttl, ticket=self.store.ticket(place))
        await self.store.flush()

    async def hears(self, *changes: Change) -> None:
        async def heard_all() -> bool:
            await asyncio.sleep(0)
            return all(change in self.changes for change in changes)

        await eventually(heard_all)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_group, "BLOCK_SECONDS", 0.05)
    monkeypatch.setattr(redis_group, "LOOK_SECONDS", 0.0)


@pytest.fixture
async def redis() -> AsyncIterator[Server]:
    async with server() as found:
        yield found


@asynccontextmanager
async def member_of(redis: Server, name: bytes, **given: Any) -> AsyncIterator[Member]:
    options = {"timeout": 1.0, "reconnect": 0.02, "loss_window": 0.5, "gather": 0.001, "reset_timeout": 0.05, **given}
    settings = Settings(
        store=StoreSettings(kind=StoreKind.REDIS, redis=RedisSettings(url=RedisUrl().parse(redis.url), **options))
    )
    events: list[Event] = []
    clock = ManualClock()
    store, group = await open_store(settings, name, clock=clock, rng=Chance(), observer=events.append)
    assert isinstance(store, RedisStore)
    assert group is not None
    member = Member(store, group, clock, events)
    await group.open(member)
    try:
        yield member
    finally:
        await store.close()
        await group.close()


@asynccontextmanager
async def two_of(redis: Server, **given: Any) -> AsyncIterator[tuple[Member, Member]]:
    async with member_of(redis, b"one", **given) as one, member_of(redis, b"two", **given) as two:
        yield one, two


# Records


async def test_what_one_keeps_the_other_finds_and_only_that(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"\x00record\xff")
        assert await two.has(EXPLAIN) == b"\x00record\xff"
        assert await two.has(QUIZ) is None
        assert await two.has(OF_12) is None


async def test_a_record_goes_by_itself_when_its_time_is_over(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.fetches(EXPLAIN, b"record", ttl=0.05)
        await eventually(lambda: is_gone(one, EXPLAIN))
        await one.fetches(EXPLAIN, b"record", ttl=3600)
        (key,) = [
            each for each in await redis.client.keys("*") if not each.endswith((b":token", b":eras", b":changes"))
        ]
        assert 3_500_000 < await redis.client.pttl(key) <= 3_600_000
        assert await redis.client.pttl(key.rpartition(b":")[0] + b":token") >= await redis.client.pttl(key)


async def is_gone(member: Member, place: Place) -> bool:
    return await member.has(place) is None


async def test_no_user_and_no_node_is_in_a_key(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.fetches(place_of(SPACE, PromptKey(7123456789, "explain")), b"record")
        keys = b" ".join(await redis.client.keys("*"))
        assert b"7123456789" not in keys
        assert b"explain" not in keys


async def test_sidecars_of_another_upstream_or_prefix_share_nothing(redis: Server) -> None:
    async with member_of(redis, b"one") as one, member_of(redis, b"two", prefix="another") as two:
        await one.fetches(EXPLAIN, b"record")
        assert await two.has(EXPLAIN) is None
        await one.group.tell(AllVoid())
        await two.group.tell(NodeVoid("quiz"))
        await one.fetches(QUIZ, b"record")
        assert (one.changes, two.changes) == ([], [])


async def test_an_older_record_never_takes_the_place_of_a_younger_one(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"younger", age=20.0)
        await two.fetches(EXPLAIN, b"older", age=40.0)
        assert await two.has(EXPLAIN) == b"younger"
        await two.fetches(EXPLAIN, b"youngest", age=0.0)
        assert await one.has(EXPLAIN) == b"youngest"


async def test_ages_are_by_the_clock_of_redis_and_never_too_low(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        two.clock.advance(1_000_000)
        await two.group._read_eras()
        await one.fetches(EXPLAIN, b"record", age=20.0)
        found = await two.store.get(EXPLAIN)
        assert isinstance(found, Found)
        assert found.age is not None
        assert 20.0 <= found.age < 30.0


async def test_a_write_that_is_on_its_way_is_seen_by_who_did_not_hear_of_it(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.group.tell(WriteBegan(1, "a", 30.0))
        async with member_of(redis, b"two") as two:
            found = await two.store.get(EXPLAIN)
            assert isinstance(found, Unsettled)
            assert found.write == "a"
            assert 25.0 < found.settles_in <= 30.0
            assert await two.store.get(OF_12) is None
            await one.group.tell(WriteEnded(1, "a"))
            assert await two.store.get(EXPLAIN) is None


async def test_the_end_of_one_write_does_not_hide_another_that_is_on_its_way(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.group.tell(WriteBegan(1, "a", 30.0))
        await two.group.tell(WriteBegan(1, "b", 20.0))
        await two.group.tell(WriteEnded(1, "b"))
        await one.group.tell(WriteEnded(1, ""))  # an invalidation ends no write
        async with member_of(redis, b"three") as three:
            found = await three.store.get(EXPLAIN)
            assert isinstance(found, Unsettled)
            assert (found.write, found.settles_in > 25.0) == ("a", True)


async def test_a_write_without_an_end_is_over_when_its_time_is(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.group.tell(WriteBegan(1, "a", 0.05))

        async def is_over() -> bool:
            await one.store.get(EXPLAIN)
            return one.store.ticket(EXPLAIN) is not None

        await eventually(is_over)
        await one.fetches(EXPLAIN, b"record")
        assert await one.has(EXPLAIN) == b"record"


async def test_a_connection_that_comes_and_goes_keeps_doubt_alive_for_one_window_only(redis: Server) -> None:
    async with member_of(redis, b"one", loss_window=0.5) as one:

        async def is_back() -> bool:
            await asyncio.sleep(0)
            return one.group.is_connected

        for _ in range(5):
            async with away(one):
                pass
            await eventually(is_back)
        assert one.doubts == [0.5]
        one.clock.advance(redis_group.REST * 0.5)
        async with away(one):
            pass
        await eventually(is_back)
        assert one.doubts == [0.5, 0.5]


async def test_what_is_dropped_while_redis_is_away_is_not_read_when_it_is_back(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"record")
        redis.send(signal.SIGSTOP)
        await one.store.drop(EXPLAIN)
        assert await one.has(EXPLAIN) is None
        redis.send(signal.SIGCONT)

        async def is_gone_for_all() -> bool:
            assert await one.has(EXPLAIN) is None
            await one.store.get(QUIZ)  # until a call succeeds
            return await two.has(EXPLAIN) is None

        await eventually(is_gone_for_all)


async def test_what_nobody_foresaw_while_telling_is_told_as_all(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_of(redis) as (one, two):
        monkeypatch.setattr(one.group, "_owner_tag", lambda _: 1 / 0)
        one.group._outbox.add(WriteEnded(1, ""))
        one.group._wake.set()
        await two.hears(AllVoid())
        assert any(isinstance(event, Crashed) for event in one.events)


async def test_what_is_dropped_is_gone_for_all(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"record")
        await one.fetches(QUIZ, b"record")
        await two.store.drop(EXPLAIN)
        await two.store.flush()
        assert await one.has(EXPLAIN) is None
        assert await one.has(QUIZ) == b"record"


async def test_a_walk_reads_a_page_of_records_by_one_call(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "READ_AT_ONCE", 20)
    places = [place_of(SPACE, PromptKey(user, "explain")) for user in range(1, 51)]
    async with member_of(redis, b"one") as one:
        for place in places:
            await one.fetches(place, b"record of " + place.key)
        await redis.client.config_resetstat()
        found = [each async for each in one.store.walk()]
        stats = await redis.client.info("commandstats")
    assert sorted(found) == sorted((place.key, b"record of " + place.key) for place in places)
    assert stats["cmdstat_mget"]["calls"] <= stats["cmdstat_scan"]["calls"] <= 20
    assert "cmdstat_get" not in stats


async def test_a_walk_that_cannot_go_on_says_so(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.fetches(EXPLAIN, b"record")
        await redis.kill()
        with pytest.raises(StoreAwayError, match="unreachable"):
            await anext(one.store.walk())


async def test_a_note_is_kept_for_the_next_sidecar(redis: Server) -> None:
    note = Place(b"n" * 32, None, None)
    async with two_of(redis) as (one, two):
        assert await one.has(note) is None
        one.store.put(note, b"prompt-data", age=0.0, ttl=60.0)
        await one.store.flush()
        await one.group.tell(AllVoid())
        assert await two.has(note) == b"prompt-data"


async def test_something_else_under_our_keys_is_nothing(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"record")
        for key in await redis.client.keys("*"):
            if not key.endswith((b":eras", b":changes")):
                await redis.client.delete(key)
                await redis.client.rpush(key, "a list")
        assert await two.has(EXPLAIN) is None


async def test_eras_that_a_stranger_wrote_are_only_other_keys(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.fetches(EXPLAIN, b"record")
        await redis.client.hset(one.group._keys.eras, mapping={b"*": b"x" * 10_000, b"whatever": b""})

        async def is_other() -> bool:
            await one.fetches(EXPLAIN, b"another")
            return one.group.current() is not None and len((one.group.current() or {})[b"*"]) == 10_000

        await eventually(is_other)
        await one.fetches(EXPLAIN, b"another")
        assert await one.has(EXPLAIN) == b"another"


# Versions


@pytest.mark.parametrize(
    ("change", "void"),
    [
        (WriteEnded(1, ""), {"explain", "quiz"}),
        (NodeVoid("explain"), {"explain", "of 12"}),
        (AllVoid(), {"explain", "quiz", "of 12"}),
    ],
)
async def test_what_a_change_made_void_is_found_by_nobody(redis: Server, change: Change, void: set[str]) -> None:
    places = {"explain": EXPLAIN, "quiz": QUIZ, "of 12": OF_12}
    async with two_of(redis) as (one, two):
        for place in places.values():
            await one.fetches(place, b"record")
        await one.group.tell(change)
        await two.hears(change)
        for member in (one, two):
            assert {name for name, place in places.items() if await member.has(place) is None} == void
        async with member_of(redis, b"three") as three:
            assert {name for name, place in places.items() if await three.has(place) is None} == void


@pytest.mark.parametrize("change", [WriteEnded(1, ""), NodeVoid("explain"), AllVoid()])
@pytest.mark.parametrize("fetched_by", ["the same", "another"])
async def test_a_fetch_that_a_change_overtook_puts_nothing_old_back(
    redis: Server, change: Change, fetched_by: str
) -> None:
    async with two_of(redis) as (one, two):
        fetching = one if fetched_by == "the same" else two
        await fetching.store.get(EXPLAIN)
        ticket = fetching.store.ticket(EXPLAIN)
        assert ticket is not None
        await one.group.tell(change)
        fetching.store.put(EXPLAIN, b"old", age=1.0, ttl=60.0, ticket=ticket)
        await fetching.store.flush()
        await two.hears(change)
        for member in (one, two):
            assert await member.has(EXPLAIN) is None
        await fetching.fetches(EXPLAIN, b"new")
        for member in (one, two):
            assert await member.has(EXPLAIN) == b"new"


async def test_while_a_write_is_under_way_nothing_of_its_user_is_found_or_kept_by_anybody(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"old")
        await one.group.tell(WriteBegan(1, "a", 30.0))
        await two.hears(WriteBegan(1, "a", 30.0))
        for member in (one, two):
            assert await member.has(EXPLAIN) is None
            await member.fetches(EXPLAIN, b"in between")
            assert await member.has(EXPLAIN) is None
        await one.group.tell(WriteEnded(1, "a"))
        await two.hears(WriteEnded(1, "a"))
        assert await two.has(EXPLAIN) is None
        await two.fetches(EXPLAIN, b"new")
        assert await one.has(EXPLAIN) == b"new"


async def test_a_write_whose_sidecar_dies_is_over_in_its_time(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"old")
        await one.group.tell(WriteBegan(1, "a", 0.1))

        async def kept_again() -> bool:
            await two.fetches(EXPLAIN, b"new")
            return await two.has(EXPLAIN) == b"new"

        await eventually(kept_again)


# The group


async def test_a_change_is_heard_by_the_others_and_not_by_oneself(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        changes: list[Change] = [
            WriteBegan(1, "a", 30.0),
            WriteEnded(1, "a"),
            NodeVoid("explain"),
            AllVoid(),
            WriteEnded(None, "b"),
        ]
        for change in changes:
            await one.group.tell(change)
        await two.hears(*changes)
        assert two.changes == changes
        await two.group.tell(WriteEnded(2, ""))
        await one.hears(WriteEnded(2, ""))
        assert one.changes == [WriteEnded(2, "")]


async def test_a_storm_is_told_in_few_messages(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        before = await redis.client.xlen(one.group._keys.changes)
        for user in range(1, MOST_WAITING):
            one.group.tell_soon(WriteEnded(user, ""))
        await two.hears(*(WriteEnded(user, "") for user in range(1, MOST_WAITING)))
        assert await redis.client.xlen(one.group._keys.changes) - before <= 3


async def test_a_greater_storm_makes_all_void(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"record")
        for user in range(100, 100 + 10 * MOST_WAITING):
            one.group.tell_soon(WriteEnded(user, ""))
        await two.hears(AllVoid())
        assert await two.has(EXPLAIN) is None
        assert one.group.pending <= MOST_WAITING


@pytest.mark.parametrize(
    "fields",
    [
        {b"nothing": b"of ours"},
        {b"from": b"someone", b"m": b""},
        {b"from": b"someone", b"m": b"\xff" * 100},
        {b"from": b"someone", b"m": msgspec.msgpack.encode([[1, ["unknown", 1], b""]])},
        {b"from": b"someone", b"m": msgspec.msgpack.encode([[1, ["ended", "1", 5], b""]])},
        {b"from": b"someone", b"m": msgspec.msgpack.encode([[1, ["began", 1, "a", 1e300], b""]])},
    ],
)
async def test_a_message_that_is_none_of_ours_is_counted_and_the_next_is_heard(
    redis: Server, fields: dict[Any, Any]
) -> None:
    async with two_of(redis) as (one, two):
        await redis.client.xadd(one.group._keys.changes, fields)
        await one.group.tell(WriteEnded(1, ""))
        await two.hears(WriteEnded(1, ""))
        assert two.changes == [WriteEnded(1, "")]
        assert [event for event in two.events if isinstance(event, RecordDropped)] == [RecordDropped("message")]


# Gaps


async def reconnected(member: Member) -> None:
    async def doubted() -> bool:
        await asyncio.sleep(0)
        return bool(member.doubts)

    await eventually(doubted)


async def test_what_was_told_during_a_gap_is_heard_after_it(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        redis.send(signal.SIGSTOP)
        for user in (1, 2):
            one.group.tell_soon(WriteEnded(user, ""))
        redis.send(signal.SIGCONT)
        await two.hears(WriteEnded(1, ""), WriteEnded(2, ""))
        await eventually(partial(is_told, one))
        assert two.lost == 0


async def is_told(member: Member) -> bool:
    await asyncio.sleep(0)
    return member.group.pending == 0


async def test_after_a_gap_there_is_doubt_for_the_loss_window_and_no_record_is_trusted(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.fetches(EXPLAIN, b"record")
        async with away(two):
            pass
        await reconnected(two)
        assert two.doubts == [0.5]
        assert await two.has(EXPLAIN) is None, "its invalidation may be on its way"
        two.clock.advance(0.6)
        assert await two.has(EXPLAIN) == b"record"


async def test_redis_that_lost_its_data_is_told_again_and_who_heard_it_does_not_hear_it_twice(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await one.group.tell(WriteEnded(1, ""))
        await two.hears(WriteEnded(1, ""))
        async with away(one), away(two):
            await redis.client.flushall()
        await reconnected(one)
        await reconnected(two)
        async with member_of(redis, b"three") as three:
            await one.group.tell(WriteEnded(2, ""))
            await three.hears(WriteEnded(2, ""))
            await two.hears(WriteEnded(2, ""))
            assert two.changes == [WriteEnded(1, ""), WriteEnded(2, "")]
            assert two.lost == 0


@asynccontextmanager
async def away(member: Member) -> AsyncIterator[None]:
    """Cut a member off, until the block ends."""
    group, gone, may_return = member.group, asyncio.Event(), asyncio.Event()
    catch_up = group._catch_up

    async def is_cut(block: float | None) -> None:
        raise ConnectionError(f"cut, {block}")

    async def returns() -> None:
        gone.set()
        await may_return.wait()
        await catch_up()

    group._hear = is_cut  # type: ignore[method-assign]
    group._catch_up = returns  # type: ignore[method-assign]
    await gone.wait()
    yield
    del group._hear, group._catch_up
    may_return.set()


async def test_who_was_away_hears_what_is_said_again(redis: Server) -> None:
    """The message came while the reader was away, and Redis then lost it: its sender says it again."""
    async with two_of(redis) as (one, two):
        async with away(two):
            await one.group.tell(WriteEnded(1, ""))
            await redis.client.flushall()
        await two.hears(WriteEnded(1, ""))


async def test_a_message_that_comes_into_an_empty_stream_just_before_ones_own_is_heard(
    redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = RedisGroup._begin_stream

    async def begin_late(group: RedisGroup) -> None:
        content = msgspec.msgpack.encode([Message(1, WriteEnded(1, ""), b"")])
        await redis.client.xadd(group._keys.changes, {b"from": b"another", b"m": content})
        await begin(group)

    monkeypatch.setattr(RedisGroup, "_begin_stream", begin_late)
    async with member_of(redis, b"one") as one:
        await one.hears(WriteEnded(1, ""))


async def test_data_lost_behind_a_connection_that_holds_is_noticed(redis: Server) -> None:
    async with two_of(redis) as (one, two):
        await redis.client.flushall()
        await reconnected(two)
        await reconnected(one)
        assert not [event for event in two.events if isinstance(event, StoreChanged)]


async def test_who_was_away_for_too_much_to_be_read_again_trusts_nothing(
    redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_group, "STREAM_LENGTH", 100)
    async with two_of(redis) as (one, two):
        async with away(two):
            for _ in range(150):
                await redis.client.xadd(one.group._keys.changes, {b"from": b"x", b"m": msgspec.msgpack.encode([])})
            await redis.client.xtrim(one.group._keys.changes, maxlen=100, approximate=False)
        await lost_track(two)
        assert one.lost == 0


async def lost_track(member: Member) -> None:
    async def lost() -> bool:
        await asyncio.sleep(0)
        return member.lost > 0

    await eventually(lost)


async def test_who_was_away_for_longer_than_others_remember_trusts_nothing_if_redis_lost_its_data(
    redis: Server,
) -> None:
    async with member_of(redis, b"one", remember=60.0) as one:
        async with away(one):
            await redis.client.flushall()
            one.clock.advance(61.0)
        await lost_track(one)


async def test_a_start_is_no_gap(redis: Server) -> None:
    async with member_of(redis, b"one") as one:
        await one.fetches(EXPLAIN, b"record")
    async with member_of(redis, b"two") as two:
        assert await two.has(EXPLAIN) == b"record"
        assert two.doubts == []


async def test_the_stream_is_bounded(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_group, "STREAM_LENGTH", 100)
    async with member_of(redis, b"one") as one:
        for _ in range(1000):
            await one.group._link.call(partial(one.group._append, b"a message"))
        assert await redis.client.xlen(one.group._keys.changes) <= 300, "Redis trims by the hundred"
