"""The group: what makes data void is told to Redis and to the other sidecars, by a stream.

A stream and not pub/sub: after a disconnect it says what was missed, or that something was (contract §4 promise 8).
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import msgspec

from sidecar.cache.outbox import Message, Outbox
from sidecar.cache.redis_client import RedisCache, closed, read_stream
from sidecar.cache.redis_keys import ALL, CHANGE, Keyspace
from sidecar.cache.redis_link import TROUBLES, RedisLink, StoreDownError, word_for
from sidecar.cache.redis_store import LONGEST_WRITE
from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from sidecar.core.events import Crashed, RecordDropped
from sidecar.core.retry import Rng
from sidecar.service.ports import Clock, Observer

STREAM_LENGTH = 10_000
"""Messages that stay in the stream, about: minutes of a busy group's."""
BLOCK_SECONDS = 2.0
"""How long one reading of the stream waits for a message."""
LOOK_SECONDS = 2.0
"""Between two looks at whether the stream and the eras are still those that we know: FLUSHALL breaks no connection, and
redis makes a new one by itself where an idle one was broken."""
MOST_HEARD = 10_000
"""Changes of the others', not to be heard twice."""
REPLICATION_SECONDS = 10.0
"""What was told in the last seconds before a failure may not have reached the server that took over."""
AT_ONCE = 8
"""Calls at once while telling: half of the connections, so that reads find one."""
REST = 10
"""Loss windows from the beginning of one to that of the next, at least: where the connection comes and goes, what is
kept must be trusted as where Redis is away, or an outage of the service would find nothing to stand in for it."""
START_PATIENCE = 0.5
"""Seconds that the start waits for the group: until then nothing can be recalled."""
FIRST = b"0-0"
"""Before any message."""
_FIELD, _FROM = b"m", b"from"


class Listener(Protocol):
    """Who hears what the others tell."""

    def heard(self, changes: Iterable[Change]) -> None:
        """Make void what changes made void elsewhere."""
        ...

    def doubt(self, seconds: float) -> None:
        """Trust nothing from before now for a while: something may have gone unheard."""
        ...

    def lost_track(self) -> None:
        """Make all void: something went unheard for good."""
        ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Message])


class RedisGroup:
    """Tells the group of our changes, at once or as soon as Redis is back; hears of the others'."""

    def __init__(
        self,
        link: RedisLink,
        connect_reader: Callable[[], Any],
        keys: Keyspace,
        *,
        sender: str,
        owner_tag: Callable[[int | None], bytes],
        node_tag: Callable[[str], bytes],
        reconnect: float,
        loss_window: float,
        gather: float,
        remember: float,
        timeout: float,
        clock: Clock,
        rng: Rng,
        observer: Observer,
    ) -> None:
        """`connect_reader`: makes a client for the stream; `sender`: this process; the rest as in the settings."""
        self._link = link
        self._connect_reader = connect_reader
        self._reader: Any = None
        self._keys = keys
        self._sender = sender
        self._owner_tag = owner_tag
        self._outbox = Outbox(owner_tag, remember, clock)
        self._node_tag = node_tag
        self._reconnect = reconnect
        self._loss_window = loss_window
        self._gather = gather
        self._remember = remember
        self._timeout = timeout
        self._clock = clock
        self._rng = rng
        self._observe = observer
        self._listener: Listener | None = None
        self.forget_tokens: Callable[[Iterable[bytes] | None], None] = lambda _: None
        self._eras: dict[bytes, bytes] = {}
        self._last = b""  # the message that was read last
        self._heard_at = 0.0
        self._looked_at = 0.0
        self._is_connected = False
        self._is_known = asyncio.Event()
        self._doubted_until = 0.0
        self._no_doubt_before = 0.0
        self._ahead = (0.0, 0.0)  # by how much Redis's clock is before ours, at the least and at the most
        self._heard: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        link.on_recovery.append(lambda: self._say_again(REPLICATION_SECONDS))

    async def open(self, listener: Listener) -> None:
        """Begin to listen; waits a little, so that the first request finds what is kept."""
        self._listener = listener
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._tell())]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(START_PATIENCE):
                await self._is_known.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Say what is still to be said, if Redis takes it, and stop."""
        if self._outbox and self._is_connected:
            await self._until_told(1.0)
        for task in self._tasks:
            while not task.done():
                task.cancel()  # once is not always enough: redis takes it for a timeout where both come together
                await asyncio.wait({task}, timeout=0.1)
        await self._link.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._link.trouble("crashed", "group")
            self._observe(Crashed("redis-group", error))

    @property
    def is_connected(self) -> bool:
        """Whether others are heard now."""
        return self._is_connected

    @property
    def pending(self) -> int:
        """How many changes Redis does not know of yet."""
        return len(self._outbox)

    def current(self) -> dict[bytes, bytes] | None:
        """Return the eras; None where they are not known, or others may still be saying what Redis has lost."""
        return self._eras if ALL in self._eras and self._clock() >= self._doubted_until else None

    def is_forgetting(self, owner: bytes) -> bool:
        """Return whether a change of this owner's is not yet known to Redis."""
        return self._outbox.concerns(owner)

    def earliest(self, at: float) -> float:
        """Return what Redis's clock showed at an instant of ours, at the earliest."""
        return at + self._ahead[0]

    def latest(self, at: float) -> float:
        """Return what Redis's clock showed at an instant of ours, at the latest."""
        return at + self._ahead[1]

    async def tell(self, change: Change) -> bool:
        """Tell of a change; returns when Redis knows of it. False: it does not take it in time, and is told later."""
        self.tell_soon(change)
        return await self._until_told(self._timeout * 2)

    def tell_soon(self, change: Change) -> None:
        """Tell of a change; returns at once."""
        era = b""
        if isinstance(change, NodeVoid | AllVoid):
            era = secrets.token_bytes(8)
            self._eras = self._eras | {self._era_of(change): era}
        self._outbox.add(change, era)
        self._waits(change)

    def _waits(self, *changes: Change) -> None:
        """Have changes told that came to wait; too many are told as one."""
        if self._outbox.is_full and changes != (AllVoid(),):
            self._outbox.clear()
            self.tell_soon(AllVoid())
            return
        owners = [self._owner_tag(change.owner) for change in changes if isinstance(change, WriteBegan | WriteEnded)]
        self.forget_tokens(owners)
        self._told.clear()
        self._wake.set()

    def _say_again(self, seconds: float) -> None:
        """Say again what Redis may have lost: what was told in the last `seconds`."""
        if again := self._outbox.say_again(seconds):
            self._waits(*again)

    async def _until_told(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._told.wait()
        except TimeoutError:
            return False

    def _era_of(self, change: NodeVoid | AllVoid) -> bytes:
        return self._node_tag(change.node) if isinstance(change, NodeVoid) else ALL

    # Telling

    async def _tell(self) -> None:
        """Say what is pending, for ever; what Redis does not take is said again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = self._outbox.batch()
            if not batch:
                continue
            messages = [told.message for told in batch]
            try:
                for first in range(0, len(messages), AT_ONCE):
                    await asyncio.gather(*map(self._void, messages[first : first + AT_ONCE]))
                await self._link.call(partial(self._append, _encoder.encode(messages)))
            except StoreDownError:
                self._wake.set()
                await asyncio.sleep(self._pause())
                continue
            except Exception as error:  # noqa: BLE001 — whatever it is, the others must be told
                self._observe(Crashed("redis-group", error))
                self._outbox.clear()
                self.tell_soon(AllVoid())  # says more than what could not be said
                await asyncio.sleep(self._pause())
                continue
            self._outbox.note_told(batch)
            if not self._outbox:
                self._told.set()

    async def _void(self, message: Message) -> None:
        """Have Redis forget what a change made void."""
        change = message.change
        match change:
            case WriteBegan() | WriteEnded():
                owner = self._owner_tag(change.owner)
                settles_in = max(0.001, change.settles_in) if isinstance(change, WriteBegan) else 0.0
                words = (CHANGE, 2, self._keys.token(owner), self._keys.writes(owner), change.write)
                try:
                    await self._link.call(lambda redis: redis.raw("eval", *words, int(settles_in * 1000)))
                except StoreDownError as error:
                    if str(error) != "full":
                        raise
                    await self._link.call(lambda redis: redis.delete(words[2]))  # what is full still deletes
            case NodeVoid() | AllVoid():
                field = self._era_of(change)
                await self._link.call(lambda redis: redis.raw("hset", self._keys.eras, field, message.era))

    async def _append(self, content: bytes, redis: RedisCache) -> None:
        fields = {_FROM: self._sender.encode(), _FIELD: content}
        await redis.raw("xadd", self._keys.changes, fields, maxlen=STREAM_LENGTH, approximate=True)

    # Hearing

    async def _listen(self) -> None:
        """Hear the others, for ever."""
        while True:
            self._reader = self._connect_reader()  # a new one knows nothing of servers that are gone
            try:
                await self._catch_up()
                while True:
                    await self._hear(BLOCK_SECONDS)
                    if self._clock() - self._looked_at >= LOOK_SECONDS:
                        await self._look()
            except Exception as error:  # noqa: BLE001 — whatever it is, the others must be heard again
                self._is_connected = False
                self._link.trouble(word_for(error), "group")
                if not isinstance(error, TROUBLES):
                    self._observe(Crashed("redis-group", error))
            finally:
                await closed(self._reader)
            await asyncio.sleep(self._pause())

    async def _catch_up(self) -> None:
        """Find out what was missed since the last message, or that it cannot be known."""
        await self._read_eras()
        is_back = bool(self._last)
        if is_back:
            await self._lost_data()
        else:
            self._last = await self._newest()
        await self._hear(None)
        if is_back:
            self._doubt()
        self._is_connected = True
        self._is_known.set()
        self._wake.set()
        self._link.fine("group")

    async def _hear(self, block: float | None) -> None:
        """Apply what came since the last message, waiting so long for it."""
        milliseconds = None if block is None else int(block * 1000)
        answer = await read_stream(self._reader, self._keys.changes, self._last, count=100, block=milliseconds)
        changes: list[Change] = []
        for _, entries in answer or ():
            for number, fields in entries:
                self._last = number
                changes += self._read(fields.get(_FROM, b""), fields.get(_FIELD, b""))
        if changes:
            self._to.heard(changes)
        self._heard_at = self._clock()
        if answer:
            await asyncio.sleep(self._gather)

    def _read(self, sender: bytes, content: bytes) -> Iterator[Change]:
        """Yield what another's message says; one that is no message of ours changes nothing but a count."""
        if sender == self._sender.encode():
            return
        try:
            messages = _decoder.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._observe(RecordDropped("message"))
            return
        for message in messages:
            if isinstance(message.change, WriteBegan) and not 0 <= message.change.settles_in <= LONGEST_WRITE:
                self._observe(RecordDropped("message"))
                continue
            if (sender, message.number) in self._heard:
                continue
            self._heard[sender, message.number] = None
            if len(self._heard) > MOST_HEARD:
                self._heard.popitem(last=False)
            change = message.change
            match change:
                case WriteBegan() | WriteEnded():
                    self.forget_tokens((self._owner_tag(change.owner),))
                case NodeVoid() | AllVoid():
                    self._eras = self._eras | {self._era_of(change): message.era}
            yield change

    async def _look(self) -> None:
        """Find out whether Redis has lost its data though the connection held."""
        await self._read_eras()
        if await self._lost_data():
            self._doubt()

    async def _lost_data(self) -> bool:
        """Find out whether the message that was read last is gone; if so, begin anew with what there is."""
        if await self._reader.xrange(self._keys.changes, self._last, self._last, count=1):
            return False
        length = await self._reader.xlen(self._keys.changes)
        if length >= STREAM_LENGTH or self._clock() - self._heard_at > self._remember:
            self._to.lost_track()
        if not length:
            await self._begin_stream()
        self._last = FIRST
        self._say_again(self._remember)
        return True

    def _doubt(self) -> None:
        """Give the others a while to say what they could not say before."""
        now = self._clock()
        if now < self._no_doubt_before:
            return
        self._no_doubt_before = now + REST * self._loss_window
        self._doubted_until = now + self._loss_window
        self._to.doubt(self._loss_window)

    async def _read_eras(self) -> None:
        """Take over the eras that Redis has; where it has none, it takes ours."""
        asked_at = self._clock()
        seconds, micros = await self._reader.eval("return redis.call('TIME')", 1, self._keys.eras)
        redis_time = int(seconds) + int(micros) / 1e6
        self._ahead = (redis_time - self._clock(), redis_time - asked_at)
        found = await self._reader.hgetall(self._keys.eras)
        if ALL not in found:
            known = self._eras or {ALL: secrets.token_bytes(8)}
            for field, era in known.items():
                await self._reader.hsetnx(self._keys.eras, field, era)
            found = await self._reader.hgetall(self._keys.eras)
        pending = {self._era_of(change): era for change, era in self._outbox.eras()}
        self._eras = found | pending
        self._looked_at = self._clock()

    async def _newest(self) -> bytes:
        """Return the last message's number."""
        entries = await self._reader.xrevrange(self._keys.changes, count=1)
        if entries:
            number: bytes = entries[0][0]
            return number
        await self._begin_stream()
        return FIRST

    async def _begin_stream(self) -> None:
        """Put a message of ours into an empty stream, so that its loss can be seen.

        Who does so reads from the stream's beginning: another's message may have come just before it.
        """
        fields = {_FROM: self._sender.encode(), _FIELD: _encoder.encode([])}
        await self._reader.xadd(self._keys.changes, fields)

    @property
    def _to(self) -> Listener:
        assert self._listener is not None
        return self._listener

    def _pause(self) -> float:
        return self._reconnect * self._rng.uniform(0.5, 1.0)
