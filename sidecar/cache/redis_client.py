"""Redis or Valkey: one server, Sentinel or Cluster; TLS, an ACL user, a password that may change; aiocache over it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiocache.backends.redis import RedisBackend
from aiocache.base import BaseCache
from aiocache.serializers import BaseSerializer
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError

from sidecar.secret_file import SecretFileError, read_secret
from sidecar.settings import RedisMode, RedisSettings

CONNECT_SECONDS = 1.0
PROTOCOL = 2  # RESP; the one that every Redis and Valkey speaks, and whose answers look the same in all of them


class _PasswordFile(CredentialProvider):
    """Who we are, read for each new connection: a rotated password needs no restart."""

    def __init__(self, username: str | None, path: Path | None) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return user and password; a trailing newline is none of the password."""
        if self._path is None:
            return (self._username or "default", "")
        try:
            password = read_secret(self._path)
        except SecretFileError as error:
            raise AuthenticationError("the password file cannot be read") from error
        return (self._username, password) if self._username else (password,)


def connect(settings: RedisSettings, *, read_seconds: float, max_connections: int) -> Any:
    """Return a client that connects when it is used, and never tries a call twice.

    `read_seconds`: how long an answer may take; what a request waits is for the caller to bound.
    """
    options: dict[str, Any] = {
        "socket_timeout": read_seconds,
        "socket_connect_timeout": CONNECT_SECONDS,
        "max_connections": max_connections,
        "protocol": PROTOCOL,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
    }
    if settings.username is not None or settings.password_file is not None:
        options["credential_provider"] = _PasswordFile(settings.username, settings.password_file)
    if settings.url.is_tls:
        # redis makes the context of each connection by create_default_context(), which has all its keys written there.
        os.environ.pop("SSLKEYLOGFILE", None)
        options |= {
            "ssl": True,
            "ssl_ca_certs": _text(settings.tls_ca_file),
            "ssl_certfile": _text(settings.tls_cert_file),
            "ssl_keyfile": _text(settings.tls_key_file),
            "ssl_check_hostname": True,
        }
    hosts = settings.url.hosts
    match settings.mode:
        case RedisMode.CLUSTER:
            nodes = [ClusterNode(host, port) for host, port in hosts]
            return RedisCluster(startup_nodes=nodes, **options | {"retry": Retry(NoBackoff(), 1)})  # to follow a move
        case RedisMode.SENTINEL:
            asks = {key: value for key, value in options.items() if key != "credential_provider"}
            if settings.sentinel_password_file is not None:
                asks["credential_provider"] = _PasswordFile(None, settings.sentinel_password_file)
            sentinel = Sentinel(hosts, sentinel_kwargs=asks, db=settings.url.database, **options)  # type: ignore[no-untyped-call]
            return sentinel.master_for(settings.sentinel_service)
        case RedisMode.SINGLE:
            host, port = hosts[0]
            return Redis(host=host, port=port, db=settings.url.database, **options)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def closed(client: Any) -> None:
    """Let go of a client's connections, its sentinels' included: redis leaves those open."""
    sentinel = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for each in (client, *(sentinel.sentinels if sentinel is not None else ())):
        with suppress(RedisError, OSError):
            await each.aclose()


async def read_stream(client: Any, stream: str, after: bytes, *, count: int, block: int | None) -> Any:
    """Return what came after a message; waits `block` ms for it, None: not at all.

    In a cluster, redis would ask any one server first which of the words are keys, each time, and fail with that one.
    """
    if not isinstance(client, RedisCluster):
        return await client.xread({stream: after}, count=count, block=block)
    await client.initialize()
    node = client.get_node_from_key(stream)
    wait = () if block is None else ("BLOCK", block)
    words = ("XREAD", "COUNT", count, *wait, "STREAMS", stream, after)
    return await client.execute_command(*words, target_nodes=node)


async def primaries(client: Any) -> list[Any]:
    """Return the servers that have all keys between them; None stands for the only one."""
    if not isinstance(client, RedisCluster):
        return [None]
    await client.initialize()
    return list(client.get_primaries())


async def scan(client: Any, server: Any, cursor: int, pattern: str, *, count: int) -> tuple[int, list[bytes]]:
    """Return some of a server's keys that match, and where to go on; 0: these were the last."""
    if server is None:
        after, keys = await client.scan(cursor, pattern, count)
    else:
        cursors, keys = await client.scan(cursor, pattern, count, target_nodes=server)
        (after,) = cursors.values()
    return after, keys


async def read_all(client: Any, keys: list[bytes]) -> list[bytes | None]:
    """Return what stands under some keys, read together; in a cluster, they may be of many slots."""
    if not keys:
        return []
    values: list[bytes | None] = await (client.mget_nonatomic if isinstance(client, RedisCluster) else client.mget)(
        keys
    )
    return values


class _Bytes(BaseSerializer):  # type: ignore[misc] # aiocache carries no types
    """What is kept is bytes and comes back as bytes: nothing that could be executed."""

    DEFAULT_ENCODING = None

    def dumps(self, value: bytes) -> bytes:
        """Return the bytes."""
        return value

    def loads(self, value: bytes | None) -> bytes | None:
        """Return the bytes."""
        return value


def _as_is(key: str, namespace: str | None = None) -> str:  # noqa: ARG001 — aiocache passes it by name
    return key


class RedisCache(RedisBackend):  # type: ignore[misc] # aiocache carries no types
    """aiocache's Redis backend over a client of ours: its own knows neither Sentinel nor Cluster."""

    NAME = "redis"

    def __init__(self, client: Any) -> None:
        BaseCache.__init__(self, serializer=_Bytes(), timeout=None, key_builder=_as_is)
        self.client = client

    async def _close(self, *_: Any, **__: Any) -> None:
        await closed(self.client)
