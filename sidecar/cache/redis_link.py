"""Calls to Redis: bounded in time and in number, behind a circuit breaker of their own."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

from redis import exceptions

from sidecar.cache.redis_client import RedisCache
from sidecar.core.errors import UpstreamFailure, Verdict
from sidecar.core.events import Crashed, StoreChanged
from sidecar.service.ports import Observer

T = TypeVar("T")
CALL_SECONDS = 1.0
"""A call goes on for so long though its caller has gone: a new connection, or a new map of the cluster, is of use."""

TROUBLES = (exceptions.RedisError, OSError, TimeoutError)

_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "auth"),
    (exceptions.AuthorizationError, "auth"),
    (exceptions.NoPermissionError, "permission"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.ReadOnlyError, "read-only"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.MasterDownError, "no-primary"),
    (exceptions.ClusterDownError, "cluster-down"),
    (exceptions.ResponseError, "refused"),
    (exceptions.TimeoutError, "slow"),
    (TimeoutError, "slow"),
)
_NOBODYS_FAULT = frozenset({"full", "refused", "permission"})
"""It answered, and at once: no reason not to ask it again."""


class StoreDownError(Exception):
    """Redis does not answer in time, or not as it should; says why in a word of a closed set."""


class Permit(Protocol):
    """The right to make one call."""

    def tell(self, verdict: Verdict) -> None:
        """Say how the call ended."""
        ...


class Circuit(Protocol):
    """The breaker; see `upstream.breaker`."""

    def permit(self) -> AbstractContextManager[Permit]:
        """Return the right to make one call, to be told how it ended; raises `UpstreamFailure`."""
        ...


class RedisLink:
    """Calls that never take longer than their caller's patience, and are not made where they are of no use."""

    def __init__(self, client: Any, circuit: Circuit, *, max_calls: int, observer: Observer) -> None:
        """`max_calls`: at once; one more waits its turn."""
        self._cache = RedisCache(client)
        self._circuit = circuit
        self._slots = asyncio.Semaphore(max_calls)
        self._observe = observer
        self._calls: set[asyncio.Task[Any]] = set()
        self._errors: dict[str, str] = {}
        self.on_recovery: list[Callable[[], None]] = []

    async def call(self, work: Callable[[RedisCache], Awaitable[T]], patience: float = CALL_SECONDS) -> T:
        """Return what the work returns, within `patience` seconds; raises `StoreDownError`."""
        until = asyncio.get_running_loop().time() + patience
        try:
            permission = self._circuit.permit()
        except UpstreamFailure as failure:
            raise StoreDownError("circuit") from failure
        with permission as permit:
            try:
                async with asyncio.timeout_at(until):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise StoreDownError("busy") from error
            task = asyncio.ensure_future(self._bounded(work))
            self._calls.add(task)
            task.add_done_callback(self._ended)
            await asyncio.wait({task}, timeout=until - asyncio.get_running_loop().time())
            try:
                if not task.done():
                    raise TimeoutError
                result = task.result()
            except Exception as error:
                if not isinstance(error, TROUBLES):
                    self._observe(Crashed("redis", error))  # nobody foresaw it; the store is optional all the same
                word = word_for(error)
                permit.tell(Verdict.NEUTRAL if word in _NOBODYS_FAULT else Verdict.FAILURE)
                self.trouble(word)
                raise StoreDownError(word) from error
            permit.tell(Verdict.SUCCESS)
        self.fine()
        return result

    @property
    def error(self) -> str | None:
        """What is wrong with Redis, in a word of a closed set; None: nothing."""
        return next(iter(self._errors.values()), None)

    def trouble(self, word: str, part: str = "calls") -> None:
        """Note that something is wrong with a part of what Redis is used for, and tell of it once."""
        before = self.error
        self._errors[part] = word
        if self.error != before:
            self._observe(StoreChanged(self.error))

    def fine(self, part: str = "calls") -> None:
        """Note that nothing is wrong with a part any more."""
        if self._errors.pop(part, None) is not None and not self._errors:
            self._observe(StoreChanged(None))
            for told in self.on_recovery:
                told()

    async def close(self) -> None:
        """Let go of all connections."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        with suppress(*TROUBLES):
            await self._cache.close()

    async def _bounded(self, work: Callable[[RedisCache], Awaitable[T]]) -> T:
        async with asyncio.timeout(CALL_SECONDS):
            return await work(self._cache)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._slots.release()
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone


def word_for(error: BaseException) -> str:
    """Return one of a closed set of words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return next((word for kind, word in _WORDS if isinstance(error, kind)), "unreachable")
