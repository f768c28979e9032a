"""The wired application: how it starts, how it drains, and what it leaves behind, which is nothing."""

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest
from structlog.testing import capture_logs

import sidecar.app
from sidecar.app import Sidecar, StartError, installed_version, open_core, running
from sidecar.core.errors import PromptError
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.drain import Drain
from sidecar.server.generate_prompt import PATH
from sidecar.settings import (
    Address,
    DrainSettings,
    OpsSettings,
    RetrySettings,
    Settings,
    StoreKind,
    StoreSettings,
    UpstreamApi,
    UpstreamSettings,
)
from tests.wire import get, post, reference, refuses, until, wire

ANYWHERE = Address("127.0.0.1", 0)
PATIENT = RetrySettings(per_try_timeout=4.0)
QUESTION = {"user_id": 1, "node_name": "answer_question", "context": {"study_material": "tides", "input_content": "?"}}
ASKED = post(json.dumps(QUESTION).encode())


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with capture_logs() as events:
        yield events


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Address("127.0.0.1", listening.getsockname()[1])


@pytest.fixture(autouse=True)
async def leaves_nothing_behind() -> AsyncIterator[None]:
    """See to it that each test ends with the tasks and the sockets that it began with."""
    sockets = listening_sockets()
    yield
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert listening_sockets() == sockets
    gc.collect()  # what was not closed warns, and warnings are errors


def listening_sockets() -> set[Any]:
    return {each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN}


def settings(url: str = "http://127.0.0.1:9", **changes: Any) -> Settings:
    parts: dict[str, Any] = {
        "listen": ANYWHERE,
        "ops": OpsSettings(listen=ANYWHERE),
        "store": StoreSettings(kind=StoreKind.NONE),
        "upstream": UpstreamSettings(url=url, api=UpstreamApi.PROMPT_DATA),
    }
    return Settings(**(parts | changes))


async def status_of(address: Address, path: str) -> int:
    async with wire(address.port) as client:
        return (await client.ask(get(path))).status


@asynccontextmanager
async def stoppable(of: Settings) -> AsyncIterator[tuple[Sidecar, AsyncExitStack]]:
    """Run a sidecar whose drain a test can begin and watch."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(running(of)), stack


# Start


async def test_it_says_where_it_listens_and_answers_there(logged: list[Any]) -> None:
    async with reference() as (url, _), running(settings(url)) as sidecar, aiohttp.ClientSession() as session:
        async with session.post(f"http://{sidecar.listen}{PATH}", json=QUESTION) as response:
            assert response.status == 200
            assert "tides" in (await response.json())["prompt"]
        assert await status_of(sidecar.ops, "/readyz") == 200
        (started,) = [event for event in logged if event["event"] == "started"]
        assert started["listen"] == str(sidecar.listen)
        assert started["ops"] == str(sidecar.ops)
        assert started["version"] == installed_version()


async def test_it_is_ready_only_when_both_listeners_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = sidecar.app._listen
    seen: list[int] = []
    ops: list[Address] = []

    async def watched(runner: Any, address: Address, key: str, *inherited: Any, **how: Any) -> Address:
        if key == "listen":
            seen.append(await status_of(ops[0], "/readyz"))
            seen.append(await status_of(ops[0], "/livez"))
        bound = await listen(runner, address, key, *inherited, **how)
        ops.append(bound)
        return bound

    monkeypatch.setattr(sidecar.app, "_listen", watched)
    async with running(settings()) as started:
        assert seen == [503, 200]
        assert await status_of(started.ops, "/readyz") == 200


@pytest.mark.parametrize("key", ["listen", "ops.listen"])
async def test_a_taken_address_is_a_start_error_and_everything_is_taken_down(
    key: str, taken: Address, logged: list[Any]
) -> None:
    of = settings(listen=taken) if key == "listen" else settings(ops=OpsSettings(listen=taken))
    with pytest.raises(StartError, match=rf"^{key}: cannot listen on {taken}: Address already in use\. Is another"):
        async with running(of):
            pytest.fail("it started")
    assert logged == []


async def test_an_address_that_is_not_ours_is_a_start_error_without_a_guess() -> None:
    elsewhere = Address("192.0.2.1", 9102)
    with pytest.raises(StartError, match=r"192\.0\.2\.1:9102: Cannot assign requested address\.$"):
        async with running(settings(ops=OpsSettings(listen=elsewhere))):
            pytest.fail("it started")


async def test_a_name_that_is_unknown_is_a_start_error_in_words() -> None:
    with pytest.raises(StartError, match=r"ops\.listen: cannot listen on nowhere\.invalid:1: [A-Z][a-z ]+\.$"):
        async with running(settings(ops=OpsSettings(listen=Address("nowhere.invalid", 1)))):
            pytest.fail("it started")


async def test_it_can_be_started_again_in_the_same_process() -> None:
    for _ in range(2):
        async with running(settings()) as sidecar:
            assert await status_of(sidecar.ops, "/livez") == 200


async def test_an_error_of_its_user_takes_it_down_as_well() -> None:
    with pytest.raises(RuntimeError, match="ours"):
        async with running(settings()) as sidecar:
            raise RuntimeError("ours")
    assert await refuses(sidecar.listen.port)
    assert await refuses(sidecar.ops.port)


# Drain


async def test_while_it_drains_a_request_in_flight_is_answered_and_the_pod_is_live_but_not_ready(
    logged: list[Any],
) -> None:
    async with (
        reference(fault=Fault(Mode.HANG)) as (url, state),
        stoppable(settings(url, retry=PATIENT)) as (sidecar, stack),
        wire(sidecar.listen.port) as client,
    ):
        await client.send(ASKED)
        await until(lambda: state.in_flight == 1)
        draining = asyncio.create_task(stack.aclose())
        await until(lambda: refuses(sidecar.listen.port))
        assert await status_of(sidecar.ops, "/readyz") == 503
        assert await status_of(sidecar.ops, "/livez") == 200
        assert await status_of(sidecar.ops, "/metrics") == 200
        assert not draining.done()
        state.fault = Fault()
        assert (await client.answer()).status == 200
        assert await client.ended()
        await draining
        assert await refuses(sidecar.ops.port)
    told = [event["event"] for event in logged if event["log_level"] != "debug"]
    assert told == ["started", "draining", "stopped"]


async def test_a_fetch_behind_an_answered_request_is_let_finish_before_the_ops_listener_ends() -> None:
    async with (
        reference(fault=Fault(Mode.HANG)) as (url, state),
        stoppable(settings(url, retry=PATIENT)) as (sidecar, stack),
    ):
        async with wire(sidecar.listen.port) as client:
            await client.send(ASKED)
            await until(lambda: state.in_flight == 1)
            client.abort()
        draining = asyncio.create_task(stack.aclose())
        await until(lambda: refuses(sidecar.listen.port))
        assert await status_of(sidecar.ops, "/readyz") == 503
        state.fault = Fault()
        await draining
        assert state.answers["prompt-data 200"] == 1
        assert len(sidecar.core.cache) == 1


async def test_a_request_in_flight_has_its_deadline_and_not_more() -> None:
    deadline = 0.2
    retry = RetrySettings(per_try_timeout=deadline, min_attempt=0.01)
    async with (
        reference(fault=Fault(Mode.HANG)) as (url, state),
        stoppable(settings(url, deadline=deadline, retry=retry)) as (sidecar, stack),
        wire(sidecar.listen.port) as client,
    ):
        await client.send(ASKED)
        await until(lambda: state.in_flight == 1)
        draining = asyncio.create_task(stack.aclose())
        answer = await client.answer()
        assert (answer.status, answer.header("Connection")) == (504, "close")
        client.abort()
        await draining


async def test_what_takes_longer_than_the_drain_is_cut_and_told_of(logged: list[Any]) -> None:
    drain = DrainSettings(timeout=0.2)
    async with (
        reference(fault=Fault(Mode.HANG)) as (url, state),
        stoppable(settings(url, drain=drain, retry=PATIENT)) as (sidecar, stack),
        wire(sidecar.listen.port) as client,
    ):
        await client.send(ASKED)  # which may take the deadline, 4 s
        await until(lambda: state.in_flight == 1)
        began = asyncio.get_running_loop().time()
        await stack.aclose()
        assert asyncio.get_running_loop().time() - began < 3.5
        assert await client.ended()
    assert next(each["step"] for each in logged if each["event"] == "drain_cut") == "requests"


async def test_a_drain_that_is_hastened_cuts_what_is_in_flight() -> None:
    async with (
        reference(fault=Fault(Mode.HANG)) as (url, state),
        AsyncExitStack() as stack,
    ):
        drain = Drain(DrainSettings(delay=300, timeout=300))
        sidecar = await stack.enter_async_context(running(settings(url), drain=drain))
        async with wire(sidecar.listen.port) as client:
            await client.send(ASKED)
            await until(lambda: state.in_flight == 1)
            draining = asyncio.create_task(stack.aclose())
            drain.hasten()
            began = asyncio.get_running_loop().time()
            await draining
            assert asyncio.get_running_loop().time() - began < 2  # the deadline would be 4
            assert await client.ended()


async def test_readiness_goes_before_the_listener_does() -> None:
    drain = Drain(DrainSettings(delay=300))
    async with reference() as (url, _), AsyncExitStack() as stack:
        sidecar = await stack.enter_async_context(running(settings(url), drain=drain))
        draining = asyncio.create_task(stack.aclose())

        async def is_unready() -> bool:
            async with wire(sidecar.ops.port) as ops:
                return (await ops.ask(get("/readyz"))).status == 503

        await until(is_unready)
        async with wire(sidecar.listen.port) as client:
            assert (await client.ask(ASKED)).status == 200
        drain.hasten()
        await draining


async def test_connections_that_were_idle_for_long_do_not_hold_up_the_drain() -> None:
    drain = DrainSettings(idle_grace=0.05)
    async with stoppable(settings(drain=drain)) as (sidecar, stack), wire(sidecar.listen.port) as idle:
        assert (await idle.ask(get("/"))).status == 503  # passed on to where nobody is
        draining = asyncio.create_task(stack.aclose())
        assert await idle.ended()
        idle.abort()
        began = asyncio.get_running_loop().time()
        await draining
        assert asyncio.get_running_loop().time() - began < 10


# Without listeners


async def test_the_manager_can_be_used_in_process_without_listeners(logged: list[Any]) -> None:
    async with reference() as (url, state), open_core(settings(url)) as core:
        before = listening_sockets()
        for topic in ("tides", "ebb"):
            context = {"study_material": topic, "input_content": "?"}
            rendered = await core.manager.get_rendered_prompt(1, "answer_question", context)
            assert topic in rendered.prompt
        assert rendered.provenance.hit
        assert state.calls["prompt-data"] == 1
        assert len(core.cache) == 1
        assert b'outcome="fresh"} 1.0' in core.metrics.expose(None)[0]
        assert listening_sockets() == before
        with pytest.raises(PromptError) as refused:
            await core.manager.get_rendered_prompt(1, "no_such_node", {})
        assert refused.value.status == 404
    assert "started" not in [event["event"] for event in logged]


async def test_leaving_the_core_waits_for_its_fetches_and_closes_its_connections() -> None:
    async with reference(fault=Fault(Mode.HANG)) as (url, state):
        async with open_core(settings(url, retry=PATIENT)) as core:
            asking = asyncio.create_task(core.manager.get_rendered_prompt(1, "answer_question", QUESTION["context"]))  # type: ignore[arg-type]
            await until(lambda: state.in_flight == 1)
            asking.cancel()
            state.fault = Fault()
        assert len(core.cache) == 1
        assert len(core.background) == 0
