"""Redis in trouble: serving goes on, and is never slower than a second for it; then Redis is filled again."""

import asyncio
import itertools
import re
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from sidecar.core.policy import Policy
from sidecar.demo.reference.faults import Mode
from tests.harness import (
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)
from tests.redis_servers import Server, cluster, free_port, sentinel_pair, server
from tests.scenarios.test_redis_shared import LONG, Group, change, group_of, store_at, styles, written

QUICK: dict[str, Any] = {"timeout": 0.05, "reset_timeout": 0.1}


async def served(sidecar: Sidecar, users: range = range(1, 21), *, within: float = 1.0) -> list[str]:
    """Return the prompts of many users, each well within a second."""
    answers = [await sidecar.ask(user=user) for user in users]
    assert max(answer.seconds for answer in answers) < within
    return [answer.prompt for answer in answers]


async def store_error(sidecar: Sidecar) -> str | None:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        error: str | None = (await response.json())["store"]["error"]
        return error


async def fetched_anew(sidecar: Sidecar, user: int) -> None:
    """Have something asked of the upstream that is not in any memory, and wait until it is kept, if it is."""
    await sidecar.ask(user=user)
    await written(sidecar)


async def is_filled(group: Group, user: int) -> bool:
    """Return whether Redis keeps what was fetched of a new user: then the other sidecar asks nobody else."""
    one, two = group.sidecars
    await fetched_anew(one, user)
    calls = group.upstream.calls
    await two.ask(user=user)
    return group.upstream.calls == calls


async def is_filled_again(group: Group) -> None:
    users = iter(range(1000, 100_000))
    await eventually(lambda: is_filled(group, next(users)))
    for sidecar in group.sidecars:
        await eventually(partial(is_well, sidecar))


async def refused(redis: Server) -> Callable[[], Awaitable[None]]:
    await redis.kill()
    return redis.start


async def hanging(redis: Server) -> Callable[[], Awaitable[None]]:
    redis.send(signal.SIGSTOP)

    async def goes_on() -> None:
        redis.send(signal.SIGCONT)

    return goes_on


async def emptied(redis: Server) -> Callable[[], Awaitable[None]]:
    await redis.client.flushall()

    async def nothing() -> None:
        """It is back already."""

    return nothing


async def full(redis: Server) -> Callable[[], Awaitable[None]]:
    await redis.client.config_set("maxmemory-policy", "noeviction")
    await redis.client.config_set("maxmemory", "1")

    async def room() -> None:
        await redis.client.config_set("maxmemory", "0")

    return room


async def locked(redis: Server) -> Callable[[], Awaitable[None]]:
    await redis.client.config_set("requirepass", "another")
    await redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def opened() -> None:
        await redis.client.execute_command("AUTH", "another")
        await redis.client.config_set("requirepass", "")

    return opened


async def read_only(redis: Server) -> Callable[[], Awaitable[None]]:
    await redis.client.execute_command("REPLICAOF", "127.0.0.1", free_port())

    async def primary() -> None:
        await redis.client.execute_command("REPLICAOF", "NO", "ONE")

    return primary


@pytest.mark.parametrize(
    "trouble", [refused, hanging, emptied, full, locked, read_only], ids=lambda each: each.__name__
)
async def test_serving_goes_on_quickly_and_redis_is_filled_again(
    trouble: Callable[[Server], Awaitable[Callable[[], Awaitable[None]]]],
) -> None:
    async with group_of(2, **QUICK) as group:
        one, two = group.sidecars
        known = await served(one)
        heal = await trouble(group.redis)
        assert await served(one) == known, "from memory"
        assert await served(two) == known, "from the upstream, if Redis has nothing to say"
        await served(two, range(101, 111))
        group.upstream.fails(Mode.UNAVAILABLE)
        assert await served(two, within=4.0) == known, "in an outage of both"
        group.upstream.fails(Mode.NONE)
        await heal()
        await is_filled_again(group)


async def test_the_trouble_is_named_and_counted() -> None:
    async with group_of(1, **QUICK) as group:
        (one,) = group.sidecars
        assert await store_error(one) is None
        await group.redis.kill()
        await served(one)
        await eventually(lambda: is_named(one, "unreachable"))
        text = await one.metrics()
        assert re.search(r"^prompt_sidecar_store_ok(\{[^}]*\})? 0\.0$", text, re.MULTILINE)
        assert 'prompt_sidecar_breaker_state{breaker="redis",state="open"}' in text


async def is_named(sidecar: Sidecar, word: str) -> bool:
    await sidecar.ask(user=next(_USERS))
    return await store_error(sidecar) == word


_USERS = iter(range(200_000, 1_000_000))


async def test_a_sidecar_starts_and_serves_without_redis() -> None:
    async with reference(announce_version=False) as upstream:
        settings = settings_for(upstream.url, policy=LONG, store=store_at(f"redis://127.0.0.1:{free_port()}", **QUICK))
        async with sidecar_with(settings) as sidecar:
            await served(sidecar)
            assert await store_error(sidecar) == "unreachable"


async def test_a_write_goes_through_while_redis_is_away_and_the_others_hear_of_it_when_it_is_back() -> None:
    async with group_of(2, **QUICK) as group:
        one, two = group.sidecars
        default, other = styles(group)
        assert default in (await one.ask()).prompt
        assert default in (await two.ask()).prompt
        await written(one)
        await group.redis.kill()
        await change(one, 1, other)
        assert other in (await one.ask()).prompt, "here at once"
        await group.redis.start()
        await eventually(lambda: shows(two, other))


async def shows(sidecar: Sidecar, style: str) -> bool:
    return style in (await sidecar.ask()).prompt


async def test_what_was_changed_while_redis_hung_is_not_brought_back_from_it() -> None:
    """A record from before the change is still in Redis when it goes on; a third sidecar must not serve it."""
    async with group_of(3, **QUICK) as group:
        one, two, three = group.sidecars
        default, other = styles(group)
        assert default in (await one.ask()).prompt
        await written(one)
        group.redis.send(signal.SIGSTOP)
        await change(one, 1, other)
        group.redis.send(signal.SIGCONT)
        await eventually(lambda: nothing_pending(one))
        for sidecar in (one, two, three):
            assert other in (await sidecar.ask()).prompt


async def is_in_trouble(sidecar: Sidecar) -> bool:
    return not await is_well(sidecar)


async def nothing_pending(sidecar: Sidecar) -> bool:
    async with sidecar.session.get(f"{sidecar.ops}/status") as response:
        group = (await response.json())["store"]["group"]
        return bool(group == {"connected": True, "pending": 0})


# Killed in the middle of writes

KILLS = 50


async def stamps(exchange: Exchange) -> None:
    """Answer with a document that says whose it is, and of when."""
    await exchange.answer(prompt_data("{{ topic }}: {{ stamp }}", {"stamp": f"{exchange.user} {time.monotonic()}"}))


async def is_right(sidecar: Sidecar, user: int) -> str:
    """Ask, and check the answer against what the upstream said of itself; return how it was made."""
    began = time.monotonic()
    answer = await sidecar.ask(user=user)
    _, whose, served_at = answer.prompt.split()
    assert int(whose) == user
    assert answer.age <= time.monotonic() - float(served_at) + 0.2, "no more than it was when it came"
    assert began - float(served_at) < answer.age + 1.2, "Age is a whole number of seconds"
    return answer.how


async def test_however_often_redis_is_killed_no_answer_is_corrupt_and_no_age_is_lost() -> None:
    brief = Policy(ttl=0.2, max_ttl=0.2, stale_while_revalidate=0, stale_if_error=5)
    async with server("valkey", "--appendonly", "yes") as redis, raw_upstream(stamps) as upstream:
        store = store_at(redis.url, timeout=0.05, reset_timeout=0.02, reconnect=0.02, loss_window=0.02)
        settings = settings_for(upstream.url, policy=brief, store=store)
        async with sidecar_with(settings) as one, sidecar_with(settings) as two:
            users = itertools.cycle(range(1, 40))
            found = []
            for _ in range(KILLS):
                asking = [asyncio.ensure_future(is_right(each, next(users))) for each in (one, two) * 10]
                await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                await redis.kill()
                found += await asyncio.gather(*asking)
                await redis.start()
            await eventually(partial(is_well_stamped, one))
            assert {each.split(";")[1] for each in found} >= {" fwd=miss"}
            told = [await one.metrics(), await two.metrics()]
            hits = re.findall(r'cache_lookups_total{result="hit",tier="redis"} (\S+)', "".join(told))
            assert sum(map(float, hits)) > 0, "what one fetched was read by the other"


async def is_well_stamped(sidecar: Sidecar) -> bool:
    await is_right(sidecar, next(_USERS))
    return await store_error(sidecar) is None


# Who may use Redis


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_an_acl_user_with_a_password_file_that_is_rotated(kind: str, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("first\n")
    async with server(kind) as redis, reference(announce_version=False) as upstream:
        rights = ("on", ">first", "~mine:*", "+@read", "+@write", "+@scripting", "+@connection", "+time")
        await redis.client.execute_command("ACL", "SETUSER", "sidecar", *rights)
        store = store_at(redis.url, username="sidecar", password_file=password, prefix="mine", **QUICK)
        async with sidecar_with(settings_for(upstream.url, policy=LONG, store=store)) as sidecar:
            await fetched_anew(sidecar, 1)
            assert await redis.client.keys("mine:*")
            assert await redis.client.keys("*") == await redis.client.keys("mine:*")
            assert await store_error(sidecar) is None
            await redis.client.execute_command("ACL", "SETUSER", "sidecar", "resetpass", ">second")
            await redis.client.execute_command("CLIENT", "KILL", "USER", "sidecar")
            await eventually(lambda: is_named(sidecar, "auth"))
            password.write_text("second")
            await eventually(lambda: is_well(sidecar))


async def is_well(sidecar: Sidecar) -> bool:
    await sidecar.ask(user=next(_USERS))
    return await store_error(sidecar) is None


async def test_a_missing_password_file_is_a_sentence_at_the_start(tmp_path: Path) -> None:
    store = store_at("redis://127.0.0.1:1", password_file=tmp_path / "nothing")
    with pytest.raises(OSError, match=r"store\.redis\.password_file: .*nothing cannot be read"):
        async with sidecar_with(settings_for("http://127.0.0.1:1", store=store)):
            pass


# Failing over


async def test_sentinel_fails_over_and_redis_is_used_again() -> None:
    async with sentinel_pair() as (primary, _, sentinel), reference(announce_version=False) as upstream:
        store = store_at(f"redis://127.0.0.1:{sentinel.port}", mode="sentinel", **QUICK)
        settings = settings_for(upstream.url, policy=LONG, store=store)
        async with sidecar_with(settings) as one, sidecar_with(settings) as two:
            group = Group(upstream, primary, [one, two])
            await is_filled_again(group)
            await primary.kill()
            await served(one)
            await is_filled_again(group)


async def test_a_cluster_fails_over_and_redis_is_used_again() -> None:
    async with cluster() as nodes, reference(announce_version=False) as upstream:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:3])
        settings = settings_for(upstream.url, policy=LONG, store=store_at(f"redis://{hosts}", mode="cluster", **QUICK))
        async with sidecar_with(settings) as one, sidecar_with(settings) as two:
            group = Group(upstream, nodes[0], [one, two])
            known = await served(one)
            await is_filled_again(group)
            keys = [len(await node.client.keys("*")) for node in nodes[:3]]
            assert min(keys) > 0, "records are on all nodes"
            await nodes[0].kill()
            assert await served(two) == known
            default, other = styles(group)
            assert default in (await two.ask()).prompt
            await change(one, 1, other)
            await eventually(lambda: shows(two, other))
            await is_filled_again(group)


# TLS


@asynccontextmanager
async def tls_before(redis: Server, authority: trustme.CA, *, asks_for: trustme.CA | None = None) -> AsyncIterator[str]:
    """Listen with TLS before a server whose wheel is built without; yields the URL.

    `asks_for`: whose client certificates are wanted.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    if asks_for is not None:
        asks_for.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    connections: set[asyncio.Task[Any]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", redis.port)
        try:
            await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
        finally:
            for each in (writer, inner_writer):
                each.close()
            connections.discard(task)

    listener = await asyncio.start_server(connected, "localhost", 0, ssl=context, family=socket.AF_INET)
    try:
        yield f"rediss://localhost:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in [*connections]:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@asynccontextmanager
async def sidecar_by_tls(url: str, **redis: Any) -> AsyncIterator[Sidecar]:
    async with reference(announce_version=False) as upstream:
        settings = settings_for(upstream.url, policy=LONG, store=store_at(url, **{**QUICK, **redis}))
        async with sidecar_with(settings) as sidecar:
            yield sidecar


def in_file(path: Path, blob: trustme.Blob) -> Path:
    blob.write_to_path(path)
    return path


async def test_tls_with_the_right_authority_works_and_with_another_it_does_not(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    right, wrong = in_file(tmp_path / "right.pem", ours.cert_pem), in_file(tmp_path / "wrong.pem", theirs.cert_pem)
    async with server() as redis, tls_before(redis, ours) as url:
        async with sidecar_by_tls(url, tls_ca_file=right) as sidecar:
            await eventually(lambda: is_well(sidecar))
            await fetched_anew(sidecar, 1)
            assert await redis.client.keys("*")
        async with sidecar_by_tls(url, tls_ca_file=wrong) as sidecar:
            await served(sidecar)
            assert await store_error(sidecar) == "tls"
        async with sidecar_by_tls(url.replace("rediss", "redis")) as sidecar:
            await served(sidecar)
            await eventually(lambda: is_in_trouble(sidecar))


async def test_a_server_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    trusted = in_file(tmp_path / "ca.pem", authority.cert_pem)
    async with (
        server() as redis,
        tls_before(redis, authority) as url,
        sidecar_by_tls(url.replace("localhost", "127.0.0.1"), tls_ca_file=trusted) as sidecar,
    ):
        await served(sidecar)
        assert await store_error(sidecar) == "tls"


async def test_no_variable_of_the_environment_has_the_connections_keys_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, keys = trustme.CA(), tmp_path / "keys.log"
    trusted = in_file(tmp_path / "ca.pem", authority.cert_pem)
    async with server() as redis, tls_before(redis, authority) as url:
        monkeypatch.setenv("SSLKEYLOGFILE", str(keys))  # from here on: Python's servers heed it, too
        async with sidecar_by_tls(url, tls_ca_file=trusted) as sidecar:
            await eventually(lambda: is_well(sidecar))
    assert not keys.exists()


async def test_mutual_tls_shows_our_own_certificate(tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    certificate = clients.issue_cert("sidecar")
    given = {
        "tls_ca_file": in_file(tmp_path / "ca.pem", authority.cert_pem),
        "tls_cert_file": in_file(tmp_path / "cert.pem", certificate.cert_chain_pems[0]),
        "tls_key_file": in_file(tmp_path / "key.pem", certificate.private_key_pem),
    }
    async with server() as redis, tls_before(redis, authority, asks_for=clients) as url:
        async with sidecar_by_tls(url, **given) as sidecar:
            await eventually(lambda: is_well(sidecar))
        async with sidecar_by_tls(url, tls_ca_file=given["tls_ca_file"]) as sidecar:
            await served(sidecar)
            await eventually(lambda: is_in_trouble(sidecar))
