"""Reload: settings are read again and checked first; what can change while it runs does, the rest waits and says so."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

import sidecar.app
import sidecar.watch
from sidecar.app import running
from sidecar.config_file import ConfigError, Problem, load
from sidecar.core.events import Event, Reloaded
from sidecar.core.policy import Policy, Strategy
from sidecar.demo.processes import child
from sidecar.demo.reference.state import TODAY
from sidecar.reload import LIVE, Origin, Reloader
from sidecar.settings import (
    BreakerSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    PolicySettings,
    RolloutSettings,
    Settings,
    ShadowSettings,
    UpstreamApi,
    UpstreamSettings,
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
from tests.wire import until

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

LIVE_CHANGES: dict[str, Any] = {
    "policy": PolicySettings(default=Policy(ttl=7.0)),
    "rollout": RolloutSettings(percent=0.0),
    "shadow": ShadowSettings(sample_rate=0.5),
    "log": LogSettings(level=LogLevel.DEBUG),
    "routes": {"/api/v1/any": Policy(strategy=Strategy.CACHE_FIRST)},
}
LATER_CHANGES: dict[str, Any] = {
    "deadline": 9.0,
    "breaker": BreakerSettings(fail_max=9),
    "upstream": UpstreamSettings(url="http://another"),
}


async def test_settings_that_did_not_change_are_told_of_and_nothing_is_other_than_it_was(world: World) -> None:
    event = await world.told()
    assert (event.problems, event.restart) == ((), ())
    assert world.in_force == Settings()


@pytest.mark.parametrize("section", sorted(LIVE))
async def test_a_section_that_requests_read_when_they_begin_is_in_force_at_once(world: World, section: str) -> None:
    world.serves = replace(Settings(), **{section: LIVE_CHANGES[section]})
    event = await world.told()
    assert (event.problems, event.restart) == ((), ())
    assert getattr(world.in_force, section) == LIVE_CHANGES[section]
    assert world.in_force == world.serves


@pytest.mark.parametrize("section", sorted(LATER_CHANGES))
async def test_any_other_section_is_named_and_waits_for_a_restart(world: World, section: str) -> None:
    world.serves = replace(Settings(), **{section: LATER_CHANGES[section]})
    event = await world.told()
    assert (event.problems, event.restart) == ((), (section,))
    assert world.in_force == Settings()


async def test_of_a_change_of_both_kinds_each_part_is_done_what_can_be(world: World) -> None:
    world.serves = replace(Settings(), **LIVE_CHANGES, **LATER_CHANGES)
    event = await world.told()
    assert event.restart == ("breaker", "deadline", "upstream")
    assert world.in_force == replace(Settings(), **LIVE_CHANGES)
    assert len(world.adopted) == 1  # whole, never one section after another


async def test_what_waits_is_named_as_long_as_it_does(world: World) -> None:
    world.serves = replace(Settings(), deadline=9.0)
    assert [(await world.told()).restart for _ in range(2)] == [("deadline",)] * 2
    world.serves = Settings()
    assert (await world.told()).restart == ()


async def test_what_was_put_into_force_can_be_taken_back(world: World) -> None:
    for percent in (0.0, 1.0, 0.25):
        world.serves = replace(Settings(), rollout=RolloutSettings(percent=percent))
        await world.told()
        assert world.in_force.rollout.percent == percent


def test_every_live_section_is_one() -> None:
    assert {each.name for each in fields(Settings)} >= LIVE
    assert LIVE_CHANGES.keys() == LIVE


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
        return Settings()

    world.reload = Reloader(slow, lambda: world.in_force, world.adopt, world.events.append)
    await asyncio.gather(*(world.reload() for _ in range(3)))
    assert most == 1
    assert len(world.events) == len(world.adopted) == 3


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
        return Settings()

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

    async def rollout(self) -> str:
        async with self.session.get(f"{self.ops}/status") as response:
            return str((await response.json())["rollout"]["percent"])

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
        now = replace(now, rollout=RolloutSettings(percent=0.0), deadline=9.0)
        with capture_logs() as logged:
            await sidecar.reload()
        (said,) = [each for each in logged if each["event"] == "settings_reloaded"]
        assert (said["log_level"], said["waiting_for_restart"]) == ("info", ("deadline",))
        assert (await sidecar.ask()).how == "prompt-sidecar; fwd=bypass; detail=rollout"
        assert (await sidecar.rollout(), await sidecar.successful()) == ("0%", "1.0")


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


async def test_a_mistake_is_told_in_log_and_metric_until_it_is_put_right(service: Reference) -> None:
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
        path.write_text("upstream: {api: prompt-data}\nrollout: {percent: 100}\ndeadline: 3s\n")
        os.kill(pid, signal.SIGHUP)
        await eventually(lambda: is_served("; hit; ", "1.0"))
