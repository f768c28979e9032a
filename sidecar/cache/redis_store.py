"""The Redis store: what one sidecar fetched serves all of its group, and nothing that a change made void comes back."""

import asyncio
import secrets
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from sidecar.cache.records import Place
from sidecar.cache.redis_client import RedisCache, primaries, read_all, scan
from sidecar.cache.redis_keys import HEAD_BYTES, LEARN, MARK, NO_RECORDS, PLACE_AT, STORE, TOKEN_BYTES, Keyspace, packed
from sidecar.cache.redis_link import RedisLink, StoreDownError
from sidecar.cache.tiered import Found
from sidecar.service.ports import Clock, StoreAwayError, Unsettled

TOKEN_SECONDS = 86_400.0
"""A token outlives the records under it, and goes when its owner is not asked for any more."""
MOST_TOKENS = 100_000
"""Owners whose token is remembered (about 200 bytes each); beyond, it is asked for again."""
MOST_WAITING = 10_000
"""Records that wait to be written; with more, the oldest are not written: they can be fetched again."""
AT_ONCE = 8
"""Records written at once: half of the connections, so that reads find one."""
LONGEST_WRITE = 3600.0
"""Seconds that another's write may be said to take: who can write to Redis shall not switch caching off for ever."""
READ_AT_ONCE = 100
"""Records read by one call while all of them are."""


class _Ticket(NamedTuple):
    token: bytes
    key: str


class _Waiting(NamedTuple):
    place: Place
    record: bytes
    fetched_at: float
    """By our clock."""
    ttl: float
    ticket: _Ticket | None


class Eras(Protocol):
    """What the group knows of its eras, and of the time; see `redis_group`."""

    def earliest(self, at: float) -> float:
        """Return what Redis's clock showed at an instant of ours, at the earliest."""
        ...

    def latest(self, at: float) -> float:
        """Return what Redis's clock showed at an instant of ours, at the latest."""
        ...

    def current(self) -> dict[bytes, bytes] | None:
        """Return the eras, None where they are not known now."""
        ...

    def is_forgetting(self, owner: bytes) -> bool:
        """Return whether a change of this owner's is not yet known to Redis."""
        ...


class RedisStore:
    """Records under their owner's token; a change of his settings takes the token away, and all under it is void.

    A fetch notes the token before the upstream is asked, and what it brings is kept only under that token: so a fetch
    that was overtaken by a change puts nothing old back, whichever sidecar made it.

    Ages are by Redis's clock, which all have in common, and never less than the true ones.
    """

    kind = "redis"
    is_shared = True

    def __init__(self, link: RedisLink, keys: Keyspace, eras: Eras, *, timeout: float, clock: Clock) -> None:
        """`timeout`: seconds that a request waits for Redis."""
        self._link = link
        self._keys = keys
        self._eras = eras
        self._timeout = timeout
        self._clock = clock
        link.on_recovery.append(self._write_soon)
        self._tokens: OrderedDict[bytes, bytes] = OrderedDict()
        self._waiting: dict[bytes, _Waiting] = {}
        self._dropping: OrderedDict[bytes, str] = OrderedDict()
        self._writing: asyncio.Task[None] | None = None
        self.entries: int | None = None
        self.bytes: int | None = None
        self.lost = 0
        """Records that were not written, for want of a working Redis."""

    @property
    def error(self) -> str | None:
        """What is wrong with Redis; None: nothing."""
        return self._link.error

    async def get(self, place: Place) -> Found | Unsettled | None:
        """Return a record, None where there is none or Redis does not answer in time."""
        owner, eras = place.owner, self._eras.current()
        try:
            if owner is None:
                note = await self._link.call(lambda redis: redis.get(self._keys.note(place)), self._timeout)
                return None if note is None else Found(note)
            if eras is None or self._eras.is_forgetting(owner) or place.key in self._dropping:
                return None
            key = self._keys.record(place, eras)
            return await self._link.call(lambda redis: self._found(redis, owner, key), self._timeout)
        except StoreDownError:
            return None

    async def _found(self, redis: RedisCache, owner: bytes, key: str) -> Found | Unsettled | None:
        token, value = await redis.multi_get([self._keys.token(owner), key])
        if token is None:
            await self._learn(redis, owner)
            return None
        if token.startswith(MARK) and len(token) != TOKEN_BYTES:
            left = await redis.raw("pttl", self._keys.token(owner)) / 1000
            write = token.removeprefix(MARK).decode("ascii", "replace")
            return Unsettled(write, min(left, LONGEST_WRITE)) if left > 0 else None
        if not self._note(owner, token) or value is None or value[:TOKEN_BYTES] != token or len(value) <= HEAD_BYTES:
            return None
        (fetched_at,) = struct.unpack(">d", value[TOKEN_BYTES:PLACE_AT])
        return Found(value[HEAD_BYTES:], self._eras.latest(self._clock()) - fetched_at)

    def ticket(self, place: Place) -> _Ticket | None:
        """Return the owner's token and the key of now; None where they are not known."""
        owner, eras = place.owner, self._eras.current()
        if owner is None or eras is None or self._eras.is_forgetting(owner):
            return None
        token = self._tokens.get(owner)
        return None if token is None else _Ticket(token, self._keys.record(place, eras))

    def put(self, place: Place, record: bytes, *, age: float, ttl: float, ticket: object = None) -> None:
        """Keep a record, if its ticket still holds; without one, ask for the owner's token, for the next time."""
        self._waiting.pop(place.key, None)
        known = ticket if isinstance(ticket, _Ticket) else None
        self._waiting[place.key] = _Waiting(place, record, self._clock() - age, ttl, known)
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        self._write_soon()

    async def drop(self, place: Place) -> None:
        """Forget a record that is of no use: here at once, in Redis as soon as it takes it."""
        self._waiting.pop(place.key, None)
        eras = self._eras.current()
        if place.owner is not None and eras is not None:
            self._dropping[place.key] = self._keys.record(place, eras)
            if len(self._dropping) > MOST_WAITING:
                self._dropping.popitem(last=False)
            self._write_soon()

    async def forget(self, *, owner: bytes | None = None, node: bytes | None = None, everything: bool = False) -> int:
        """Do nothing: the group is told, and tells Redis; see `redis_group`."""
        _ = owner, node, everything
        return 0

    def forget_tokens(self, owners: Iterable[bytes] | None) -> None:
        """Forget what is remembered of owners whose data changed; None: of all."""
        if owners is None:
            self._tokens.clear()
            return
        for owner in owners:
            self._tokens.pop(owner, None)

    async def walk(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the key of each record's place, and the record; those of an older era as well; see `Store.walk`."""
        try:
            for server in await self._link.call(lambda redis: primaries(redis.client)):
                cursor = 0
                while True:
                    cursor, values = await self._link.call(partial(self._some, server, cursor))
                    for value in values:
                        if value is not None and len(value) > HEAD_BYTES:
                            yield value[PLACE_AT:HEAD_BYTES], value[HEAD_BYTES:]
                    if not cursor:
                        break
        except StoreDownError as error:
            raise StoreAwayError(self.error or str(error)) from error

    async def _some(self, server: Any, cursor: int, redis: RedisCache) -> tuple[int, list[bytes | None]]:
        after, keys = await scan(redis.client, server, cursor, self._keys.pattern, count=READ_AT_ONCE)
        return after, await read_all(redis.client, [key for key in keys if not key.endswith(NO_RECORDS)])

    async def flush(self) -> None:
        """Write what waits."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def close(self) -> None:
        """Write what waits."""
        await self.flush()

    def _write_soon(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while self._waiting or self._dropping:
            if not await self._drop_all() and not self._waiting:
                return  # until Redis is back
            batch = [self._waiting.pop(key) for key in list(self._waiting)[:AT_ONCE]]
            await asyncio.gather(*map(self._write_one, batch))

    async def _drop_all(self) -> bool:
        """Delete what is to be dropped; say whether Redis has taken all of it."""
        while self._dropping:
            place, key = next(iter(self._dropping.items()))
            if not await self._try(lambda redis, key=key: redis.delete(key)):
                return False
            self._dropping.pop(place, None)
        return True

    async def _write_one(self, waiting: _Waiting) -> None:
        place, ticket, owner = waiting.place, waiting.ticket, waiting.place.owner
        milliseconds = max(1, int(waiting.ttl * 1000))
        if owner is None:
            note = self._keys.note(place)
            await self._try(lambda redis: redis.set(note, waiting.record, ttl=milliseconds / 1000))
        elif ticket is None:
            await self._try(lambda redis: self._learn(redis, owner))
        else:
            fetched_at = self._eras.earliest(waiting.fetched_at)
            value = packed(ticket.token, fetched_at, place.key, waiting.record)
            token_key = self._keys.token(owner)

            async def store(redis: RedisCache) -> None:
                if await redis.raw("eval", STORE, 2, token_key, ticket.key, ticket.token, value, milliseconds) == 0:
                    await self._learn(redis, owner)

            self.lost += not await self._try(store)

    async def _learn(self, redis: RedisCache, owner: bytes) -> None:
        new = secrets.token_bytes(TOKEN_BYTES)
        token = await redis.raw("eval", LEARN, 1, self._keys.token(owner), new, int(TOKEN_SECONDS * 1000))
        self._note(owner, token)

    def _note(self, owner: bytes, token: bytes) -> bool:
        """Remember an owner's token; return False where a write is on its way, and nothing of his is to be kept."""
        if len(token) != TOKEN_BYTES or self._eras.is_forgetting(owner):
            self._tokens.pop(owner, None)
            return False
        self._tokens[owner] = token
        self._tokens.move_to_end(owner)
        if len(self._tokens) > MOST_TOKENS:
            self._tokens.popitem(last=False)
        return True

    async def _try(self, work: Any) -> bool:
        try:
            await self._link.call(work)
        except StoreDownError:
            return False
        return True
