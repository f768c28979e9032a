import asyncio
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.service import GENERATE_PROMPT, PROMPT_DATA, create_app
from sidecar.demo.reference.state import STATE, ReferenceOptions, State

Client = TestClient[web.Request, web.Application]
HELLO = {"user_id": 7, "node_name": "hello", "context": {"who": "Ann"}}


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(
        create_app(ReferenceOptions(templates={"hello": "Hello {{ who }}, in {{ language }}."}))
    )


@pytest.fixture
def state(client: Client) -> State:
    assert client.app is not None
    return client.app[STATE]


async def arrived(state: State, calls: int = 1) -> None:
    """Wait until so many requests are with the service."""
    while state.in_flight < calls:  # noqa: ASYNC110 - the service has no event for a test to wait for
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("mode", "status", "content_type"),
    [
        (Mode.ERROR, 500, "application/json"),
        (Mode.UNAVAILABLE, 503, "application/json"),
        (Mode.TOO_MANY, 429, "application/json"),
        (Mode.UNAUTHORIZED, 401, "application/json"),
        (Mode.GARBAGE, 200, "text/html"),
        (Mode.EMPTY, 200, "application/json"),
        (Mode.WRONG_SHAPE, 200, "application/json"),
    ],
)
async def test_a_ready_made_answer_replaces_every_answer(
    client: Client, state: State, mode: Mode, status: int, content_type: str
) -> None:
    state.fault = Fault(mode, retry_after=3)
    for path in (PROMPT_DATA, GENERATE_PROMPT):
        answer = await client.post(path, json=HELLO)
        assert (answer.status, answer.content_type) == (status, content_type)
        assert answer.headers.get("Retry-After") == ("3" if status in {429, 503} else None)
    assert (await client.get("/health")).status == status


async def test_a_fault_with_a_count_ends_by_itself(client: Client, state: State) -> None:
    state.fault = Fault(Mode.ERROR, count=2)
    assert [(await client.post(PROMPT_DATA, json=HELLO)).status for _ in range(4)] == [500, 500, 200, 200]
    assert state.answers == {"prompt-data 500": 2, "prompt-data 200": 2}


async def test_a_fault_of_one_endpoint_leaves_the_others_alone(client: Client, state: State) -> None:
    state.fault = Fault(Mode.ERROR, count=1, endpoint="prompt-data")
    assert (await client.post(GENERATE_PROMPT, json=HELLO)).status == 200
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 500
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 200


async def test_a_hanging_request_is_answered_when_the_fault_is_lifted(client: Client, state: State) -> None:
    state.fault = Fault(Mode.HANG)
    asking = asyncio.create_task(client.post(PROMPT_DATA, json=HELLO))
    await arrived(state)
    assert state.calls["prompt-data"] == 1
    state.fault = Fault()
    assert (await asking).status == 200


async def test_a_client_that_leaves_ends_its_hanging_request(client: Client, state: State) -> None:
    state.fault = Fault(Mode.HANG)
    asking = asyncio.create_task(client.post(PROMPT_DATA, json=HELLO))
    await arrived(state)
    asking.cancel()
    async with asyncio.timeout(5):
        while state.in_flight:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert not state.answers


async def test_the_service_stops_while_requests_hang(client: Client, state: State) -> None:
    state.fault = Fault(Mode.HANG)
    asking = asyncio.create_task(client.post(PROMPT_DATA, json=HELLO))
    await arrived(state)
    began = time.perf_counter()
    await client.server.close()
    assert time.perf_counter() - began < 10
    with pytest.raises(aiohttp.ClientConnectionError):
        await asking


async def test_a_reset_is_a_tcp_reset(client: Client, state: State) -> None:
    state.fault = Fault(Mode.RESET)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_slow_answer_is_the_right_one_and_late(client: Client, state: State) -> None:
    state.fault = Fault(Mode.SLOW, delay=0.02)
    began = time.perf_counter()
    answer = await client.post(GENERATE_PROMPT, json=HELLO)
    assert (await answer.json())["prompt"] == "Hello Ann, in English."
    assert time.perf_counter() - began >= 0.02


async def test_lifting_the_fault_ends_every_delay(client: Client, state: State) -> None:
    state.fault = Fault(Mode.SLOW, delay=3600)
    asking = asyncio.create_task(client.post(GENERATE_PROMPT, json=HELLO))
    await arrived(state)
    state.fault = Fault()
    assert (await asking).status == 200


async def test_a_dripping_answer_comes_byte_by_byte_and_whole(client: Client, state: State) -> None:
    whole = await (await client.post(PROMPT_DATA, json=HELLO)).read()
    state.fault = Fault(Mode.DRIP, delay=3600)
    answer = await client.post(PROMPT_DATA, json=HELLO)  # its headers come at once
    assert int(answer.headers["Content-Length"]) == len(whole)
    state.fault = Fault()
    assert await answer.read() == whole


async def test_half_an_answer_is_cut_in_its_body(client: Client, state: State) -> None:
    whole = await (await client.post(PROMPT_DATA, json=HELLO)).read()
    state.fault = Fault(Mode.HALF)
    answer = await client.post(PROMPT_DATA, json=HELLO)
    assert answer.headers["Content-Length"] == str(len(whole))
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()


@pytest.mark.parametrize(
    ("mode", "template"),
    [
        (Mode.EMPTY_TEMPLATE, ""),
        (Mode.BAD_TEMPLATE, "{% if language %}\nThis block never ends: {{ input_content }}\n"),
        (Mode.HUGE_TEMPLATE, "{{ 'a'*200000000 }}"),
    ],
)
async def test_a_template_fault_is_a_changed_document(client: Client, state: State, mode: Mode, template: str) -> None:
    tag = (await client.post(PROMPT_DATA, json=HELLO)).headers["ETag"]
    state.fault = Fault(mode)
    answer = await client.post(PROMPT_DATA, json=HELLO, headers={"If-None-Match": tag})
    document: dict[str, Any] = await answer.json()
    assert (document["template"], document["template_version"]) == (template, f"1-{mode}")


async def test_generate_prompt_renders_an_empty_template_and_refuses_a_bad_one(client: Client, state: State) -> None:
    state.fault = Fault(Mode.EMPTY_TEMPLATE)
    assert (await (await client.post(GENERATE_PROMPT, json=HELLO)).json())["prompt"] == ""
    for mode in (Mode.BAD_TEMPLATE, Mode.HUGE_TEMPLATE):
        state.fault = Fault(mode)
        assert (await client.post(GENERATE_PROMPT, json=HELLO)).status == 500


async def test_with_its_database_down_the_service_fails_as_todays_does(client: Client, state: State) -> None:
    state.set_template("settings", "Write in {{ language }}.")
    state.render = type(state.render)(undefined="empty")
    state.fault = Fault(Mode.DATABASE_DOWN)
    answer = await client.post(GENERATE_PROMPT, json=HELLO | {"node_name": "settings"})
    assert (answer.status, (await answer.json())["prompt"]) == (200, "Write in .")
    assert (await client.get("/api/v1/users/7/placeholders")).status == 500
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 500
    assert (await client.get("/health")).status == 200
