from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from sidecar.demo.reference.service import GENERATE_PROMPT, PROMPT_DATA, create_app
from sidecar.demo.reference.state import ReferenceOptions

Client = TestClient[web.Request, web.Application]
HELLO = {"user_id": 7, "node_name": "hello"}


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_app(ReferenceOptions(templates={"hello": "Write in {{ language }}."})))


async def control(client: Client, method: str, path: str, body: object = None) -> dict[str, Any]:
    answer = await client.request(method, f"/_reference{path}", json=body)
    document: dict[str, Any] = await answer.json()
    assert answer.status == 200, document
    return document


async def test_the_state_counts_calls_and_shows_the_fault(client: Client) -> None:
    await client.post(PROMPT_DATA, json=HELLO)
    await client.get(PROMPT_DATA)
    state = await control(client, "GET", "")
    assert "never for production" in state["note"]
    assert state["calls"] == {"prompt-data": 1, "probe": 1}
    assert state["answers"] == {"prompt-data 200": 1, "probe 405": 1}
    assert (state["fault"]["mode"], state["in_flight"], state["peak_in_flight"]) == ("none", 0, 1)
    assert (await control(client, "DELETE", "/calls"))["calls"] == {}


async def test_a_fault_is_set_counted_down_and_lifted_while_the_controls_still_work(client: Client) -> None:
    await control(client, "PUT", "/fault", {"mode": "500", "count": 5})
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 500
    fault = (await control(client, "GET", ""))["fault"]
    assert (fault["mode"], fault["count"], fault["left"]) == ("500", 5, 4)
    await control(client, "PUT", "/fault", {"mode": "none"})
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 200


@pytest.mark.parametrize(
    "body", [{"mode": "meteor"}, {"mode": "slow", "delay": -1}, {"mode": "500", "count": 0}, {"x": 1}]
)
async def test_a_fault_that_makes_no_sense_is_refused(client: Client, body: object) -> None:
    answer = await client.put("/_reference/fault", json=body)
    assert answer.status == 422
    assert (await answer.json())["detail"]


async def test_a_template_is_changed_and_counts_its_version_up(client: Client) -> None:
    assert (await control(client, "PUT", "/template/hello", {"template": "New."}))["nodes"] == {"hello": "2"}
    assert (await (await client.post(GENERATE_PROMPT, json=HELLO)).json())["prompt"] == "New."
    await control(client, "PUT", "/template/hello", {"template": "Newer.", "version": "2026-11"})
    assert (await (await client.post(PROMPT_DATA, json=HELLO)).json())["template_version"] == "2026-11"


async def test_a_removed_template_is_an_unknown_node(client: Client) -> None:
    await control(client, "DELETE", "/template/hello")
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 404


async def test_a_users_settings_are_replaced_by_put_and_changed_by_patch(client: Client) -> None:
    await control(client, "PUT", "/user/7", {"settings": {"language": "Latin & Greek"}})
    assert (await (await client.post(PROMPT_DATA, json=HELLO)).json())["user_placeholders"] == {
        "language": "Latin & Greek"
    }
    await control(client, "PATCH", "/user/7", {"settings": {"mood": "calm"}})
    shown = (await (await client.get("/api/v1/users/7/placeholders")).json())["placeholders"]
    assert {name: each["value"] for name, each in shown.items()} == {"language": "Latin & Greek", "mood": "calm"}
    assert shown["mood"]["display_name"] == "calm"


async def test_the_stated_lifetime_is_changed(client: Client) -> None:
    await control(client, "PUT", "/cache-ttl", {"cache_ttl": 1.5})
    assert (await (await client.post(PROMPT_DATA, json=HELLO)).json())["cache_ttl"] == 1.5


async def test_the_service_is_rolled_back_and_upgraded(client: Client) -> None:
    await control(client, "PUT", "/generation", {"generation": "passthrough"})
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 404
    await control(client, "PUT", "/generation", {"generation": "prompt-data", "batch": False})
    assert (await client.post(PROMPT_DATA, json=HELLO)).status == 200
    assert (await client.post(f"{PROMPT_DATA}/batch", json={"requests": []})).status == 404
