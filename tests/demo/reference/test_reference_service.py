import io
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from sidecar.demo.reference.service import BATCH, GENERATE_PROMPT, PROMPT_DATA, create_app
from sidecar.demo.reference.state import STATE, TODAY, Generation, ReferenceOptions, RenderOptions, State

Client = TestClient[web.Request, web.Application]
HELLO = {"user_id": 7, "node_name": "hello"}
HELLO_TEMPLATE = {"hello_system_prompt": "Hello {{ who }}, in {{ language }}.\n", "plain": "Nothing to fill in."}


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_app(ReferenceOptions(templates=HELLO_TEMPLATE)))


@pytest.fixture
def state(client: Client) -> State:
    assert client.app is not None
    return client.app[STATE]


async def call(client: Client, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    answer = await client.request(method, path, json=body, headers=headers, allow_redirects=False)
    text = await answer.text()
    return answer.status, json.loads(text) if text else None


async def test_generate_prompt_renders_settings_and_context_escaped(client: Client) -> None:
    status, answer = await call(client, "POST", GENERATE_PROMPT, HELLO | {"context": {"who": "<Ann>", "more": "x"}})
    assert status == 200
    assert answer == {
        "prompt": "Hello &lt;Ann&gt;, in English.",
        "used_placeholders": {"language": "English", "who": "<Ann>", "more": "x"},
    }


async def test_the_context_wins_over_a_setting(client: Client) -> None:
    context = {"who": "Ann", "language": "Latin"}
    assert (await call(client, "POST", GENERATE_PROMPT, HELLO | {"context": context}))[1][
        "prompt"
    ] == "Hello Ann, in Latin."


async def test_strict_rendering_refuses_a_missing_placeholder(client: Client) -> None:
    assert await call(client, "POST", GENERATE_PROMPT, HELLO) == (
        422,
        {"detail": "Placeholders without a value in node hello: who"},
    )


async def test_todays_rendering_leaves_a_missing_placeholder_empty(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(ReferenceOptions(templates=HELLO_TEMPLATE, render=TODAY)))
    answer = (await call(client, "POST", GENERATE_PROMPT, HELLO))[1]
    assert answer == {"prompt": "Hello , in English.", "used_placeholders": {"language": "English", "who": ""}}
    assert (await call(client, "POST", PROMPT_DATA, HELLO))[1]["required_dynamic_placeholders"] == []


async def test_text_is_not_escaped_without_autoescape(aiohttp_client: AiohttpClient) -> None:
    options = ReferenceOptions(templates=HELLO_TEMPLATE, render=RenderOptions(autoescape=False))
    client = await aiohttp_client(create_app(options))
    answer = (await call(client, "POST", GENERATE_PROMPT, HELLO | {"context": {"who": "<Ann>"}}))[1]
    assert answer["prompt"] == "Hello <Ann>, in English."


async def test_prompt_data_holds_everything_that_rendering_needs(client: Client, state: State) -> None:
    status, document = await call(client, "POST", PROMPT_DATA, HELLO)
    assert status == 200
    assert document == {
        "template": "Hello {{ who }}, in {{ language }}.\n",
        "user_placeholders": state.vocabulary.defaults(),
        "required_dynamic_placeholders": ["who"],
        "cache_ttl": 300,
        "template_version": "1",
        "render": {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": "strict"},
    }


async def test_optional_fields_and_the_etag_can_be_left_out(aiohttp_client: AiohttpClient) -> None:
    options = ReferenceOptions(templates=HELLO_TEMPLATE, announce_render=False, announce_version=False, etag=False)
    client = await aiohttp_client(create_app(options))
    answer = await client.post(PROMPT_DATA, json=HELLO)
    assert "ETag" not in answer.headers
    assert not {"render", "template_version"} & (await answer.json()).keys()


async def test_an_unchanged_document_is_304_and_a_changed_one_is_not(client: Client, state: State) -> None:
    tag = (await client.post(PROMPT_DATA, json=HELLO)).headers["ETag"]
    again = await client.post(PROMPT_DATA, json=HELLO, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status, again.headers["ETag"], await again.read()) == (304, tag, b"")
    state.database.change(7, {"language": "Latin"})
    changed = await client.post(PROMPT_DATA, json=HELLO, headers={"If-None-Match": tag})
    assert changed.status == 200
    assert changed.headers["ETag"] != tag
    assert state.answers == {"prompt-data 200": 2, "prompt-data 304": 1}


async def test_an_unknown_node_is_404_with_prompt_data_and_400_with_generate_prompt(client: Client) -> None:
    detail = {"detail": "Template not found for node: nope"}
    assert await call(client, "POST", PROMPT_DATA, HELLO | {"node_name": "nope"}) == (404, detail)
    assert await call(client, "POST", GENERATE_PROMPT, HELLO | {"node_name": "nope"}) == (400, detail)


async def test_a_batch_answers_each_request_in_the_order_asked(client: Client) -> None:
    wanted = [{"user_id": 1, "node_name": "plain"}, {"user_id": 1, "node_name": "nope"}, HELLO]
    status, answer = await call(client, "POST", BATCH, {"requests": wanted})
    assert status == 200
    assert [(each["node_name"], each["status"]) for each in answer["results"]] == [
        ("plain", 200),
        ("nope", 404),
        ("hello", 200),
    ]
    assert answer["results"][1]["detail"] == "Template not found for node: nope"
    assert answer["results"][2]["data"] == (await call(client, "POST", PROMPT_DATA, HELLO))[1]


async def test_a_batch_of_more_than_500_is_refused(client: Client) -> None:
    assert (await call(client, "POST", BATCH, {"requests": [HELLO] * 500}))[0] == 200
    assert (await call(client, "POST", BATCH, {"requests": [HELLO] * 501}))[0] == 422


@pytest.mark.parametrize("path", [PROMPT_DATA, GENERATE_PROMPT])
@pytest.mark.parametrize(
    "body", [{}, [], HELLO | {"user_id": 0}, HELLO | {"user_id": "x"}, HELLO | {"node_name": ""}, {"user_id": 1}]
)
async def test_bad_input_is_422_with_a_detail(client: Client, path: str, body: object) -> None:
    status, answer = await call(client, "POST", path, body)
    assert status == 422
    assert answer["detail"]


async def test_a_body_of_more_than_4_mib_is_413(client: Client) -> None:
    body = io.BytesIO(json.dumps(HELLO | {"context": {"who": "x" * 2**22}}).encode())
    assert (await client.post(GENERATE_PROMPT, data=body)).status == 413


async def test_every_generation_has_the_endpoints_of_its_time(client: Client, state: State) -> None:
    found = {}
    for state.generation in Generation:
        paths = [GENERATE_PROMPT, "/api/v1/users/7/placeholders", PROMPT_DATA, BATCH]
        found[state.generation] = [(await client.get(path)).status for path in paths]
    assert found == {
        Generation.PASSTHROUGH: [405, 404, 404, 404],
        Generation.PLACEHOLDERS: [405, 200, 404, 404],
        Generation.PROMPT_DATA: [405, 200, 405, 405],
    }
    assert state.calls == {"probe": 9, "user-placeholders": 3}


async def test_a_generation_without_batch_has_no_batch_endpoint(client: Client, state: State) -> None:
    state.batch = False
    assert await call(client, "POST", BATCH, {"requests": []}) == (404, {"detail": "Not Found"})
    assert (await call(client, "POST", PROMPT_DATA, HELLO))[0] == 200


async def test_a_missing_or_an_extra_slash_redirects_to_the_host_that_was_named(client: Client) -> None:
    for path, target in {
        "/api/v1/profiles?category=style": "/api/v1/profiles/?category=style",
        "/api/v1/placeholders": "/api/v1/placeholders/",
        "/health/": "/health",
    }.items():
        answer = await client.get(path, headers={"Host": "config:9"}, allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (307, f"http://config:9{target}")


async def test_a_changed_setting_shows_everywhere(client: Client) -> None:
    language = next(
        each for each in (await call(client, "GET", "/api/v1/placeholders/"))[1] if each["name"] == "language"
    )
    german = language["values"][1]
    path = f"/api/v1/users/7/placeholders/{language['id']}"
    assert await call(client, "PUT", path, {"value_id": german["id"]}) == (
        200,
        {"message": "Placeholder value updated successfully"},
    )
    shown = (await call(client, "GET", "/api/v1/users/7/placeholders"))[1]["placeholders"]["language"]
    assert (shown["value"], shown["value_id"], shown["placeholder_id"]) == (
        german["value"],
        german["id"],
        language["id"],
    )
    assert (await call(client, "POST", PROMPT_DATA, HELLO))[1]["user_placeholders"]["language"] == german["value"]
    assert (await call(client, "GET", f"/api/v1/placeholders/{language['id']}"))[1] == language
    assert (await call(client, "GET", f"/api/v1/placeholders/{language['id']}/values"))[1] == language["values"]


async def test_a_setting_takes_only_a_value_of_its_own(client: Client) -> None:
    style, language = [
        each
        for each in (await call(client, "GET", "/api/v1/placeholders/"))[1]
        if each["name"] in {"language", "style"}
    ]
    path, nobody = "/api/v1/users/7/placeholders/", "00000000-0000-4000-8000-000000000000"
    refusals = [
        (f"{path}{language['id']}", {"value_id": style["values"][0]["id"]}, 400),
        (f"{path}{language['id']}", {"value_id": nobody}, 404),
        (f"{path}{nobody}", {"value_id": style["values"][0]["id"]}, 404),
        (f"{path}language", {"value_id": nobody}, 422),
        (f"{path}{language['id']}", {"value_id": "x"}, 422),
        (f"{path}{language['id']}", {}, 422),
    ]
    for target, body, status in refusals:
        assert (await call(client, "PUT", target, body))[0] == status


async def test_a_profile_is_applied_and_reset(client: Client) -> None:
    before = (await call(client, "GET", "/api/v1/users/7/placeholders"))[1]["placeholders"]
    exam = next(each for each in (await call(client, "GET", "/api/v1/profiles/"))[1] if each["name"] == "exam")
    assert (await call(client, "GET", f"/api/v1/profiles/{exam['id']}"))[1] == exam
    status, applied = await call(client, "POST", f"/api/v1/users/7/apply-profile/{exam['id']}")
    assert status == 200
    assert applied["active_profile_id"] == exam["id"]
    for each in exam["placeholder_settings"]:
        mine = next(s for s in applied["placeholders"].values() if s["placeholder_id"] == each["placeholder_id"])
        assert mine["value_id"] == each["placeholder_value_id"]
    status, after = await call(client, "POST", "/api/v1/users/7/reset")
    assert (status, after["placeholders"], after["active_profile_id"]) == (200, before, None)


async def test_profiles_are_listed_by_category(client: Client) -> None:
    found = (await call(client, "GET", "/api/v1/profiles/?category=subject"))[1]
    assert {each["category"] for each in found} == {"subject"}


async def test_a_database_file_outlives_the_process(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    options = ReferenceOptions(database=str(tmp_path / "users.db"))
    for language in ("English", "Latin"):
        client = await aiohttp_client(create_app(options))
        assert client.app is not None
        assert client.app[STATE].settings(7)["language"] == language
        client.app[STATE].database.change(7, {"language": "Latin"})
        await client.close()


async def test_the_packaged_templates_and_settings_fit_each_other(aiohttp_client: AiohttpClient) -> None:
    app = create_app()
    client = await aiohttp_client(app)
    dynamic = {"input_content", "study_material", "generated_material", "handwritten_notes"}
    assert {"generating_content", "answer_question", "security_guard_detection"} <= app[STATE].templates.keys()
    for node in app[STATE].templates:
        request = {"user_id": 1, "node_name": node, "context": dict.fromkeys(dynamic, "text")}
        status, answer = await call(client, "POST", GENERATE_PROMPT, request)
        assert status == 200
        assert 1000 < len(answer["prompt"]) < 2500
        document = (await call(client, "POST", PROMPT_DATA, request))[1]
        assert set(document["required_dynamic_placeholders"]) <= dynamic


async def test_the_service_says_what_it_is(client: Client) -> None:
    assert "never for production" in (await call(client, "GET", "/"))[1]["note"]
    assert await call(client, "GET", "/health") == (200, {"status": "healthy"})
