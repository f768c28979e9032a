"""Reload: settings are read again and checked first; what can change while it runs does, the rest waits and says so."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from hypothesis import HealthCheck, given
from structlog.testing import capture_logs

import sidecar.app
import sidecar.server.generate_prompt
import sidecar.watch
from sidecar.app import running
from sidecar.config_file import ConfigError, Problem, load
from sidecar.core.events import Crashed, Event, Reloaded
from sidecar.core.policy import Policy, Strategy
from sidecar.demo.processes import child
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY
from sidecar.reload import LIVE, Origin, Reloader, is_live, merged
from sidecar.sd_notify import Notifier
from sidecar.server.body import read_body
from sidecar.settings import (
    ANY,
    Address,
    BreakerSettings,
    CacheSettings,
    KeyPath,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    RetrySettings,
    RolloutSettings,
    Settings,
    UpstreamApi,
    UpstreamSettings,
    keys,
)
from sidecar.telemetry.log_setup import Logs
from sidecar.watch import identity, watch
from tests.harness import (
    PATH,
    Client,
    Reference,
    Sidecar,
    client_of,
    eventually,
    quick_settings,
    reference,
    settings_for,
)
from tests.test_config_file import any_of
from tests.wire import post, until, wire

POLL = 0.01
"""Seconds between two looks at the file."""
SUCCESSFUL = "prompt_sidecar_config_last_reload_successful"


class World:
    """A reloader of settings that a test gives it; `serves`: what is read, or raised."""

    def __init__(self) -> None:
        self.serves: Settings | Exception = Settings()
        self.in_force = Settings()
        self.adopted: list[Settings] = []
        self.events: list[Event] = []
        self.reload = Reloader(self.load, lambda: self.in_force, self.adopt, self.events.append)

    def load(self) -> Settings:
        if isinstance(self.serves, Exception):
            raise self.serves
        return self.serves

    def adopt(self, settings: Settings) -> None:
        self.in_force = settings
        self.adopted.append(settings)

    async def told(self) -> Reloaded:
        """Reload, and return what was told of it."""
        before = time.time()
        await self.reload()
        event = self.events.pop()
        assert isinstance(event, Reloaded)
        assert self.events == []
        assert before <= event.at <= time.time()
        return event


@pytest.fixture
def world() -> World:
    return World()


# What is put into force


def valued(settings: Any, at: KeyPath) -> Any:
    """Return what stands at a place of the settings; a section of free names is one value."""
    for part in at:
        settings = getattr(settings, part)
    return settings


PLACES = sorted({key.path[: key.path.index(ANY)] if ANY in key.path else key.path for key in keys()})
LATER = [place for place in PLACES if not is_live(place)]


async def test_settings_that_did_not_change_are_told_of_and_nothing_is_other_than_it_was(world: World) -> None:
    event = await world.told()
    assert (event.problems, event.restart) == ((), ())
    assert world.adopted == []


@hypothesis.settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(now=any_of(Settings()), read=any_of(Settings()))
def test_each_key_is_in_force_at_once_or_named_and_as_it_was(now: Settings, read: Settings) -> None:
    settings, waiting = merged(now, read)
    for place in PLACES:
        assert valued(settings, place) == valued(read if is_live(place) else now, place), place
    assert set(waiting) == {".".join(each) for each in LATER if valued(now, each) != valued(read, each)}


def test_every_live_place_is_one_of_the_settings_and_what_is_unknown_waits_for_a_restart() -> None:
    for place in LIVE:
        valued(Settings(), place)
    assert ("listen",) in LATER
    assert ("upstream", "url") in LATER
    assert not is_live(("something", "new"))


def test_what_is_equal_stays_the_same_object() -> None:
    now, read = Settings(), replace(Settings(), deadline=3.0)
    settings = merged(now, read).settings
    assert settings.policy is now.policy  # by which an entry knows that it was decided under the policy in force


async def test_of_a_change_of_both_kinds_each_part_is_done_what_can_be(world: World) -> None:
    live: dict[str, Any] = {"deadline": 3.0, "rollout": RolloutSettings(percent=0.0)}
    upstream = UpstreamSettings(url="http://another", max_in_flight=7)
    world.serves = replace(Settings(), listen=Address("127.0.0.1", 1), upstream=upstream, **live)
    event = await world.told()
    assert event.restart == ("listen", "upstream.url")
    assert world.in_force == replace(Settings(), upstream=UpstreamSettings(max_in_flight=7), **live)
    assert len(world.adopted) == 1  # whole, never one section after another


async def test_what_waits_is_named_as_long_as_it_does(world: World) -> None:
    world.serves = replace(Settings(), listen=Address("127.0.0.1", 1))
    assert [(await world.told()).restart for _ in range(2)] == [("listen",)] * 2
    assert world.adopted == []
    world.serves = Settings()
    assert (await world.told()).restart == ()


async def test_what_was_put_into_force_can_be_taken_back(world: World) -> None:
    for percent in (0.0, 1.0, 0.25):
        world.serves = replace(Settings(), rollout=RolloutSettings(percent=percent))
        await world.told()
        assert world.in_force.rollout.percent == percent


# A mistake


async def test_a_mistake_leaves_everything_as_it_is_and_each_problem_is_told(world: World) -> None:
    problems = (
        Problem("deadline", "'4'", "a duration", "s.yaml line 1"),
        Problem("nonsense", "", "listen, ops", "s.yaml line 2", "is no known key"),
    )
    world.serves = ConfigError(problems)
    event = await world.told()
    assert event.problems == (
        "deadline: '4' is not allowed (s.yaml line 1); allowed: a duration",
        "nonsense: is no known key (s.yaml line 2); allowed: listen, ops",
    )
    assert event.restart == ()
    assert world.adopted == []
    world.serves = replace(Settings(), rollout=RolloutSettings(percent=0.0))
    assert (await world.told()).problems == ()
    assert world.in_force.rollout.percent == 0.0


async def test_what_nobody_foresaw_leaves_everything_as_it_is_and_is_told_like_a_mistake(world: World) -> None:
    world.serves = ZeroDivisionError("with a secret")
    await world.reload()
    crashed, told = world.events
    assert isinstance(crashed, Crashed)
    assert isinstance(told, Reloaded)
    assert told.problems == ("config: ZeroDivisionError while it was read; the log says where",)
    assert world.adopted == []
    world.events.clear()
    world.serves = replace(Settings(), deadline=3.0)
    assert (await world.told()).problems == ()
    assert world.in_force.deadline == 3.0


BAD = [
    pytest.param("rollout: {percent: 101}", "rollout.percent", id="not allowed"),
    pytest.param("rollouts: {percent: 0}", "rollouts", id="unknown"),
    pytest.param("rollout: {percent: 0", "config", id="not YAML"),
    pytest.param("- rollout", "config", id="a list"),
    pytest.param(b"rollout: {percent: 0}\xff", "config", id="not UTF-8"),
    pytest.param("rollout: {percent: 0}\nretry: {per_try_timeout: 5s}", "retry.per_try_timeout", id="a contradiction"),
    pytest.param("rollout: {percent: 0}\nrollout: {percent: 0}", "rollout", id="twice"),
    pytest.param('rollout: {percent: "\\UFFFFFFFF"}', "config", id="no such character"),
    pytest.param(f"%YAML 1.{'1' * 5000}\n---\nrollout: {{percent: 0}}", "config", id="no such version"),
]


@pytest.mark.parametrize(("content", "key"), BAD)
async def test_a_bad_file_keeps_the_old_settings_and_names_the_key(
    world: World, tmp_path: Path, content: str | bytes, key: str
) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reload = Reloader(
        lambda: load(path, environ={}, flags={}), lambda: world.in_force, world.adopt, world.events.append
    )
    await reload()
    (event,) = world.events
    assert isinstance(event, Reloaded)
    assert len(event.problems) == 1
    assert event.problems[0].startswith(f"{key}: ")
    assert world.adopted == []


async def test_a_file_that_is_gone_keeps_the_old_settings(world: World, tmp_path: Path) -> None:
    reload = Reloader(
        lambda: load(tmp_path / "gone.yaml", environ={}, flags={}),
        lambda: world.in_force,
        world.adopt,
        world.events.append,
    )
    await reload()
    (event,) = world.events
    assert isinstance(event, Reloaded)
    assert "No such file" in event.problems[0]
    assert world.adopted == []


# Several at once


async def test_reloads_that_are_asked_for_at_once_are_done_one_after_the_other() -> None:
    world = World()
    inside = most = 0
    lock = threading.Lock()
    gate = threading.Barrier(2, timeout=0.02)

    def slow() -> Settings:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            gate.wait()  # a second one beside this one would pass it
        except threading.BrokenBarrierError:
            gate.reset()
        with lock:
            inside -= 1
        return replace(Settings(), deadline=4.0 + len(world.adopted))

    world.reload = Reloader(slow, lambda: world.in_force, world.adopt, world.events.append)
    await asyncio.gather(*(world.reload() for _ in range(3)))
    assert most == 1
    assert len(world.events) == 3


async def test_the_last_one_that_was_asked_for_counts() -> None:
    world = World()
    shares = iter([0.1, 0.2, 0.3])
    world.reload = Reloader(
        lambda: replace(Settings(), rollout=RolloutSettings(percent=next(shares))),
        lambda: world.in_force,
        world.adopt,
        world.events.append,
    )
    await asyncio.gather(*(world.reload() for _ in range(3)))
    assert [each.rollout.percent for each in world.adopted] == [0.1, 0.2, 0.3]


async def test_while_settings_are_read_nobody_waits_for_them() -> None:
    world, reading, go_on = World(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> Settings:
        loop.call_soon_threadsafe(reading.set)
        assert go_on.wait(10)
        return replace(Settings(), deadline=3.0)

    world.reload = Reloader(slow, lambda: world.in_force, world.adopt, world.events.append)
    reloading = asyncio.ensure_future(world.reload())
    await reading.wait()  # which the loop could not tell of, if it stood still
    assert world.adopted == []
    go_on.set()
    await reloading
    assert len(world.adopted) == 1


# In a running sidecar


class Here(Sidecar):
    """A sidecar whose settings are those of a function."""

    def __init__(self, client: Client, of: sidecar.app.Sidecar) -> None:
        super().__init__(client, of.core)
        self.reload = of.reload

    async def status(self) -> Any:
        async with self.session.get(f"{self.ops}/status") as response:
            return await response.json()

    async def rollout(self) -> str:
        return str((await self.status())["rollout"]["percent"])

    async def successful(self) -> str:
        (line,) = [each for each in (await self.metrics()).splitlines() if each.startswith(f"{SUCCESSFUL} ")]
        return line.removeprefix(f"{SUCCESSFUL} ")


@asynccontextmanager
async def here(settings: Settings, origin: Origin | None, logs: Logs | None = None) -> AsyncIterator[Here]:
    async with (
        running(settings, origin=origin, logs=logs) as of,
        client_of(f"http://{of.listen}", f"http://{of.ops}") as client,
    ):
        yield Here(client, of)


@pytest.fixture
async def service() -> AsyncIterator[Reference]:
    async with reference(render=TODAY, templates={"explain": "Explain {{ topic }}."}) as made:
        yield made


async def test_a_reload_says_what_it_did_and_requests_from_then_on_follow_it(service: Reference) -> None:
    now = settings_for(service.url)
    async with here(now, Origin(lambda: now, None)) as sidecar:
        assert "fwd=miss" in (await sidecar.ask()).how
        now = replace(now, rollout=RolloutSettings(percent=0.0), listen=Address("127.0.0.1", 1))
        with capture_logs() as logged:
            await sidecar.reload()
        (said,) = [each for each in logged if each["event"] == "settings_reloaded"]
        assert (said["log_level"], said["waiting_for_restart"]) == ("info", ("listen",))
        assert (await sidecar.ask()).how == "prompt-sidecar; fwd=bypass; detail=rollout"
        assert (await sidecar.rollout(), await sidecar.successful()) == ("0%", "1.0")
        assert (await sidecar.status())["reload"].items() >= {"problems": [], "waiting_for_restart": ["listen"]}.items()


async def test_another_level_of_the_log_is_in_force_at_once_and_what_was_counted_is_told(service: Reference) -> None:
    now, stream = settings_for(service.url, log=LogSettings(format=LogFormat.JSON)), StringIO()
    logs = Logs(now.log, stream, environ={})

    def lines() -> list[tuple[str, int]]:
        said = [json.loads(line) for line in stream.getvalue().splitlines()]
        stream.seek(0)
        stream.truncate()
        return [(each["event"], each.get("repeated", 1)) for each in said]

    try:
        async with here(now, Origin(lambda: now, None), logs) as sidecar:
            for _ in range(3):
                assert (await sidecar.ask(node="unknown")).status == 404
            assert lines() == [("started", 1), ("fetch_failed", 1), ("prompt_refused", 1)]
            now = replace(now, log=LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG))
            await sidecar.reload()
            assert lines() == [("fetch_failed", 2), ("prompt_refused", 2), ("settings_reloaded", 1)]
            for _ in range(2):
                assert (await sidecar.ask(node="unknown")).status == 404
            assert lines() == [("upstream_called", 1), ("fetch_failed", 1), ("prompt_refused", 1)] * 2
            now = replace(now, log=LogSettings(format=LogFormat.JSON, level=LogLevel.ERROR))
            await sidecar.reload()
            assert (await sidecar.ask(node="unknown")).status == 404
            assert lines() == []
    finally:
        structlog.reset_defaults()


async def test_a_mistake_is_told_in_log_metric_and_status_until_it_is_put_right(service: Reference) -> None:
    now = settings_for(service.url)
    fails = False

    def read() -> Settings:
        if fails:
            raise ConfigError((Problem("deadline", "'4'", "a duration", "s.yaml line 1"),))
        return now

    async with here(now, Origin(read, None)) as sidecar:
        assert await sidecar.successful() == "1.0"
        fails = True
        with capture_logs() as logged:
            await sidecar.reload()
        (said,) = [each for each in logged if each["event"] == "settings_not_reloaded"]
        assert said["log_level"] == "error"
        assert said["problems"] == ("deadline: '4' is not allowed (s.yaml line 1); allowed: a duration",)
        assert await sidecar.successful() == "0.0"
        (problem,) = (await sidecar.status())["reload"]["problems"]
        assert problem == said["problems"][0]
        assert (await sidecar.ask()).status == 200
        fails = False
        await sidecar.reload()
        assert await sidecar.successful() == "1.0"


async def test_without_an_origin_a_reload_finds_what_there_is(service: Reference) -> None:
    async with here(settings_for(service.url), None) as sidecar:
        await sidecar.reload()
        assert (await sidecar.rollout(), await sidecar.successful()) == ("100%", "1.0")


async def test_a_static_read_is_kept_from_the_reload_on_that_says_so(service: Reference) -> None:
    now = settings_for(service.url, routes={})
    async with here(now, Origin(lambda: now, None)) as sidecar:

        async def how() -> str | None:
            async with sidecar.session.get(f"{sidecar.base}/api/v1/profiles/") as response:
                assert response.status == 200
                return response.headers.get("Cache-Status")

        assert await how() is None
        now = replace(now, routes={"/api/v1/profiles*": Policy(strategy=Strategy.CACHE_FIRST, ttl=60.0)})
        await sidecar.reload()
        assert await how() == "prompt-sidecar; fwd=miss; stored"
        assert (await how() or "").startswith("prompt-sidecar; hit; ttl=")
        now = replace(now, routes={})
        await sidecar.reload()
        assert await how() is None


async def test_a_request_in_flight_keeps_the_settings_that_it_began_with(service: Reference) -> None:
    patient = RetrySettings(per_try_timeout=5.0)
    now = settings_for(service.url, retry=patient, deadline=5.0)
    async with here(now, Origin(lambda: now, None)) as sidecar:
        assert (await sidecar.ask()).status == 200  # the generation is known
        service.fails(Mode.HANG)
        began_before = asyncio.ensure_future(sidecar.ask(user=2))
        await until(lambda: service.state.in_flight == 1)
        now = replace(now, deadline=0.2, retry=RetrySettings(per_try_timeout=0.1, attempts=1))
        await sidecar.reload()
        assert (await sidecar.ask(user=3)).status == 504
        assert not began_before.done()
        service.fails(Mode.NONE)
        assert (await began_before).status == 200


async def test_a_request_whose_body_is_still_coming_keeps_them_too(
    service: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = settings_for(service.url)
    body = json.dumps({"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}).encode()
    reading = asyncio.Event()

    async def read(*given: Any, **how: Any) -> bytes:
        reading.set()
        return await read_body(*given, **how)

    monkeypatch.setattr(sidecar.server.generate_prompt, "read_body", read)
    async with here(now, Origin(lambda: now, None)) as running_one, wire(running_one.address[1]) as client:
        head, _, rest = post(body, "Content-Type: application/json").partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        await asyncio.wait_for(reading.wait(), 10)
        now = replace(now, rollout=RolloutSettings(percent=0.0), limits=LimitSettings(max_body=1024))
        await running_one.reload()
        assert (await client.ask(rest)).header("Cache-Status") == "prompt-sidecar; fwd=miss; stored"
        assert (await running_one.ask()).how == "prompt-sidecar; fwd=bypass; detail=rollout"
        assert (await running_one.ask(context={"topic": "x" * 2000})).status == 413


async def test_what_guards_the_upstream_is_changed_and_what_it_counted_stays(service: Reference) -> None:
    now = settings_for(service.url, retry=RetrySettings(attempts=1), breaker=BreakerSettings(fail_max=100))
    async with here(now, Origin(lambda: now, None)) as sidecar:
        assert (await sidecar.ask()).status == 200
        service.fails(Mode.UNAVAILABLE)
        for user in range(2, 5):
            assert (await sidecar.ask(user=user)).status == 503
        assert (await sidecar.status())["upstream"]["circuit"] == "closed"
        calls = service.calls
        now = replace(now, retry=RetrySettings(attempts=3, backoff=0.0), breaker=BreakerSettings(fail_max=6))
        await sidecar.reload()
        assert (await sidecar.ask(user=5)).status == 503
        assert service.calls == calls + 3
        assert (await sidecar.status())["upstream"]["circuit"] == "open"


async def test_a_smaller_cache_makes_room_at_once(service: Reference) -> None:
    now = settings_for(service.url)
    async with here(now, Origin(lambda: now, None)) as sidecar:
        for user in range(1, 6):
            await sidecar.ask(user=user)
        now = replace(now, cache=CacheSettings(max_entries=2))
        await sidecar.reload()
        assert (await sidecar.status())["cache"]["entries"] == 2


async def test_an_admin_token_is_asked_for_from_the_reload_on_that_names_its_file(
    service: Reference, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    now = settings_for(service.url)
    async with here(now, Origin(lambda: now, None)) as sidecar:

        async def status(given: str | None) -> int:
            headers = {} if given is None else {"Authorization": f"Bearer {given}"}
            async with sidecar.session.post(
                f"{sidecar.ops}/admin/parity", data=b'{"reset": null}', headers=headers
            ) as response:
                return response.status

        assert await status(None) == 200
        now = replace(now, ops=replace(now.ops, admin_token_file=token))
        await sidecar.reload()
        assert await status("sesame") == 503  # the file is not there
        token.write_text("sesame\n")
        assert [await status(each) for each in (None, "other", "sesame")] == [401, 401, 200]
        token.write_text("another")
        assert [await status(each) for each in ("sesame", "another")] == [401, 200]


def rewrite(path: Path, content: str) -> None:
    path.write_text(content)


def replace_it(path: Path, content: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(content)
    beside.rename(path)


@pytest.mark.parametrize("change", [rewrite, replace_it])
async def test_a_change_of_the_file_is_noticed_without_a_signal(
    service: Reference, tmp_path: Path, change: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def look(path: Path) -> object:
        found = identity(path)
        looked.set()
        return found

    monkeypatch.setattr(sidecar.app, "watch", partial(watch, poll_seconds=POLL))
    monkeypatch.setattr(sidecar.watch, "identity", look)
    path = tmp_path / "sidecar.yaml"
    path.write_text("rollout: {percent: 100}")
    flags = {"listen": "127.0.0.1:0", "ops.listen": "127.0.0.1:0", "upstream.url": service.url}
    origin = Origin(lambda: load(path, environ={}, flags=flags), path)
    async with here(origin.load(), origin) as running_one:

        async def rollout_is(percent: str, successful: str) -> bool:
            return (await running_one.rollout(), await running_one.successful()) == (percent, successful)

        await until(looked.is_set)
        change(path, "rollout: {percent: 0}")
        await eventually(lambda: rollout_is("0%", "1.0"))
        change(path, "rollout: {percent: 1000}")
        await eventually(lambda: rollout_is("0%", "0.0"))
        change(path, "rollout: {percent: 25}  # put right")
        await eventually(lambda: rollout_is("25%", "1.0"))
        path.unlink()
        await eventually(lambda: rollout_is("25%", "0.0"))
        path.write_text("rollout: {percent: 50}")
        await eventually(lambda: rollout_is("50%", "1.0"))


async def test_systemd_hears_of_a_reload_that_a_change_of_the_file_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar.app, "watch", partial(watch, poll_seconds=POLL))
    path, at = tmp_path / "sidecar.yaml", str(tmp_path / "notify")
    path.write_text("rollout: {percent: 100}")
    flags = {"listen": "127.0.0.1:0", "ops.listen": "127.0.0.1:0", "store.kind": "none"}
    origin = Origin(lambda: load(path, environ={}, flags=flags), path, identity(path))
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(at)
        manager.setblocking(False)
        notifier = Notifier.of({"NOTIFY_SOCKET": at})
        async with asyncio.timeout(10), running(origin.load(), origin=origin, around_reload=notifier.reloading) as of:
            replace_it(path, "rollout: {percent: 0}")
            assert (await loop.sock_recv(manager, 4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await loop.sock_recv(manager, 4096) == b"READY=1"
            assert of.core.settings.rollout.percent == 0.0


async def test_reloads_that_find_nothing_new_change_nothing(service: Reference) -> None:
    settings = quick_settings(service.url, upstream={"api": UpstreamApi.PROMPT_DATA})
    async with here(settings, Origin(lambda: settings, None)) as sidecar:
        for _ in range(3):
            await sidecar.reload()
        assert sidecar.core.settings == settings
        assert (await sidecar.send(b"{}", path=PATH)).status == 422


# In a process of its own


@asynccontextmanager
async def process(url: str, path: Path) -> AsyncIterator[tuple[Client, int]]:
    """Run a sidecar that reads this file; yield a client of it and its id."""
    arguments = ("run", "--config", str(path), "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
    async with child(*arguments, settings={"SIDECAR_UPSTREAM__URL": url}) as running_one:
        started = json.loads(running_one.first_line)
        async with client_of(f"http://{started['listen']}", f"http://{started['ops']}") as client:
            yield client, running_one.pid


async def test_sighup_reads_the_file_again_a_bad_one_too_and_the_process_goes_on(
    service: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text("upstream: {api: prompt-data}\nrollout: {percent: 100}\n")
    async with process(service.url, path) as (client, pid):

        async def is_served(how: str, successful: str) -> bool:
            answered = await client.ask()
            assert answered.status == 200
            return how in answered.how and f"{SUCCESSFUL} {successful}" in (await client.metrics()).splitlines()

        await eventually(lambda: is_served("; hit; ", "1.0"))
        path.write_text("upstream: {api: prompt-data}\nrollout: {percent: 0}\n")
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("fwd=bypass; detail=rollout", "1.0"))
        path.write_text("rollout: {percent: 100\n")
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("fwd=bypass; detail=rollout", "0.0"))
        path.write_text("{}")
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("; hit; ", "1.0"))
        path.write_text("rollout: {percent: 0}\n")
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("fwd=bypass; detail=rollout", "1.0"))
        path.write_text("")  # a full disk, or an editor that is not done
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("fwd=bypass; detail=rollout", "0.0"))
        path.write_text("upstream: {api: prompt-data}\nrollout: {percent: 100}\ndeadline: 3s\n")
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("; hit; ", "1.0"))
