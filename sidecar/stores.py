"""The store behind the memory, as the settings name it. Names the concrete classes."""

import secrets

from sidecar.cache.file import FileStore, StoreBusyError
from sidecar.cache.records import node_tag, owner_tag
from sidecar.cache.redis_client import connect
from sidecar.cache.redis_group import BLOCK_SECONDS, RedisGroup
from sidecar.cache.redis_keys import Keyspace
from sidecar.cache.redis_link import CALL_SECONDS, RedisLink
from sidecar.cache.redis_store import RedisStore
from sidecar.cache.seals import Encrypted, KeyFileError, Seal, Signed, Summed, read_keys
from sidecar.cache.tiered import Store
from sidecar.core.credential import Credentials
from sidecar.core.retry import Rng
from sidecar.secret_file import SecretFileError, read_file, read_secret
from sidecar.service.ports import Clock, Observer
from sidecar.settings import Settings, StoreKind
from sidecar.upstream.breaker import Breaker


class StartError(OSError):
    """The sidecar cannot start here; says what and where."""

    exit_code = 1


class FileMistakeError(StartError):
    """A file that the settings name is a mistake, as a wrong value would be (contract §5)."""

    exit_code = 2


def open_seal(settings: Settings) -> Seal:
    """Return how records are closed; raises `StartError`."""
    store = settings.store
    try:
        if store.encryption_key_file is not None:
            return Encrypted(read_keys(store.encryption_key_file))
        if store.signing_key_file is not None:
            return Signed(read_keys(store.signing_key_file))
    except KeyFileError as error:
        key = "signing_key_file" if store.encryption_key_file is None else "encryption_key_file"
        raise StartError(f"store.{key}: {error}.") from error
    return Summed()


def open_credentials(settings: Settings) -> Credentials | None:
    """Return what tells the credentials of requests apart; None: nobody reads them. Raises `StartError`.

    What is kept outlives the process only with a key that does, and that is not kept beside it.
    """
    store = settings.store
    if not settings.upstream.forward_authorization:
        return None
    path = store.encryption_key_file or store.signing_key_file
    if path is None:
        return Credentials(secrets.token_bytes(32))
    try:
        return Credentials(read_keys(path)[0])
    except KeyFileError as error:
        raise StartError(f"{error}.") from error


async def open_store(
    settings: Settings, boot: bytes, *, clock: Clock, rng: Rng, observer: Observer
) -> tuple[Store | None, RedisGroup | None]:
    """Return the store, and the group that shares it, if there is one; raises `StartError`.

    `boot`: this process. The group is not open yet: who listens to it is not made yet.
    """
    match settings.store.kind:
        case StoreKind.NONE:
            return None, None
        case StoreKind.FILE:
            store = FileStore(settings.store.path, max_bytes=settings.store.max_bytes, clock=clock, observer=observer)
            try:
                await store.open()
            except StoreBusyError as error:
                raise StartError(str(error)) from error
            return store, None
        case StoreKind.REDIS:
            return _redis(settings, boot, clock=clock, rng=rng, observer=observer)


def _redis(
    settings: Settings, boot: bytes, *, clock: Clock, rng: Rng, observer: Observer
) -> tuple[RedisStore, RedisGroup]:
    redis, namespace = settings.store.redis, settings.upstream.url
    for key, path, read in (
        ("password_file", redis.password_file, read_secret),
        ("sentinel_password_file", redis.sentinel_password_file, read_secret),
        ("tls_ca_file", redis.tls_ca_file, read_file),
        ("tls_cert_file", redis.tls_cert_file, read_file),
        ("tls_key_file", redis.tls_key_file, read_file),
    ):
        try:
            if path is not None:
                read(path)
        except SecretFileError as error:
            raise FileMistakeError(f"store.redis.{key}: {error}.") from error
    circuit = Breaker(
        "redis",
        fail_max=redis.fail_max,
        reset_timeout=redis.reset_timeout,
        success_threshold=1,
        clock=clock,
        observer=observer,
    )
    client = connect(redis, read_seconds=CALL_SECONDS, max_connections=redis.max_connections + 1)
    link = RedisLink(client, circuit, max_calls=redis.max_connections, observer=observer)
    keys = Keyspace(redis.prefix, namespace)
    group = RedisGroup(
        link,
        lambda: connect(redis, read_seconds=BLOCK_SECONDS + CALL_SECONDS, max_connections=4),
        keys,
        sender=boot.hex(),
        owner_tag=lambda owner: owner_tag(namespace, owner),
        node_tag=lambda node: node_tag(namespace, node),
        reconnect=redis.reconnect,
        loss_window=redis.loss_window,
        gather=redis.gather,
        remember=redis.remember,
        timeout=redis.timeout,
        clock=clock,
        rng=rng,
        observer=observer,
    )
    store = RedisStore(link, keys, group, timeout=redis.timeout, clock=clock)
    group.forget_tokens = store.forget_tokens
    return store, group
