"""The connections of one listener: how many there may be, and how long a slow client may hold one."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

from sidecar.core.events import Refused, Shed
from sidecar.server.responses import raw_problem
from sidecar.service.ports import Observer

LINGER_SECONDS = 1.0
"""How long what a refused client still sends is read and dropped, so that it gets the answer and not a reset."""
LOOKS_PER_TIMEOUT = 4
"""How often slow clients are looked for: a timeout is late by a quarter of the shortest one at most."""

FULL = raw_problem(503, "There are too many connections to the sidecar.", headers={"Retry-After": "1"})
SLOW_HEAD = raw_problem(408, "The head of the request did not arrive in time.")


class ConnectionLimits(NamedTuple):
    """What clients may take of a listener; seconds."""

    max_connections: int
    head_timeout: float
    """From connecting until the head of the first request is whole."""
    keep_alive: float
    """Between an answer and the head of the next request."""
    write_timeout: float
    """How long a client may take nothing of its answer."""
    shed_as: str = "connections"
    """What telemetry calls it when there are too many."""


class Connection(Protocol):
    """One connection, as it is watched."""

    @property
    def is_silent(self) -> bool:
        """Whether no request has come yet."""
        ...

    def force_close(self) -> None:
        """Close it, whatever it does."""
        ...


class _Seen(NamedTuple):
    first_at: float
    unsent: int
    stuck_since: float


class SlowClients:
    """Ends connections whose clients do not send a head, or do not read, in time.

    It looks at all of them now and then: a timer for each would cost each request more.
    """

    def __init__(
        self, connections: Mapping[Connection, asyncio.Transport], limits: ConnectionLimits, observer: Observer
    ) -> None:
        self._connections = connections
        self._limits = limits
        self._observe = observer
        self._seen: dict[Connection, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._interval = min(limits.head_timeout, limits.write_timeout) / LOOKS_PER_TIMEOUT
        self._looked_at: float | None = None
        self._now = 0.0

    def watch(self) -> None:
        """Look from now on, until there is no connection."""
        if self._timer is None:
            self._again()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self, at: float) -> None:
        """Note how each connection stands, and end those whose time is up.

        Time in which this process was held up does not count: what came meanwhile is not read yet.
        """
        since = 0.0 if self._looked_at is None else at - self._looked_at
        self._looked_at = at
        self._now = now = self._now + min(since, 2 * self._interval)
        seen: dict[Connection, _Seen] = {}
        for connection, transport in [*self._connections.items()]:
            unsent = transport.get_write_buffer_size()
            before = self._seen.get(connection, _Seen(now, 0, now))
            stuck_since = before.stuck_since if unsent and unsent == before.unsent else now
            seen[connection] = _Seen(before.first_at, unsent, stuck_since)
            if connection.is_silent and now - before.first_at >= self._limits.head_timeout:
                self._observe(Refused("slow_head"))
                transport.write(SLOW_HEAD)
                connection.force_close()
            elif now - stuck_since >= self._limits.write_timeout:
                self._observe(Refused("slow_reader"))
                transport.abort()
        self._seen = seen

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.look(asyncio.get_running_loop().time())
        if self._connections:
            self._again()


class TurnedAway(asyncio.Protocol):
    """A connection too many: it is answered without a look at what it asks, and ended."""

    def __init__(self, lingering: set["TurnedAway"], limits: ConnectionLimits, observer: Observer) -> None:
        """`lingering`: all of them; there are as many at most as connections proper."""
        self._lingering = lingering
        self._limits = limits
        self._observe = observer
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer, and wait for the client to take it."""
        connection = cast("asyncio.Transport", transport)
        self._observe(Shed(self._limits.shed_as))
        if len(self._lingering) >= self._limits.max_connections:
            connection.abort()
            return
        self._lingering.add(self)
        connection.write(FULL)
        connection.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, connection.abort)

    def connection_lost(self, _: Exception | None) -> None:
        """Make room."""
        self._lingering.discard(self)
        if self._timer is not None:
            self._timer.cancel()
