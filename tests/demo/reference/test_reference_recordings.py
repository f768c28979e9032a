"""The fixture answers as LearnFlow's own config service was recorded to answer."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient
from yarl import URL

from sidecar.demo.reference.reading import read_integer
from sidecar.demo.reference.service import GENERATE_PROMPT, create_app
from sidecar.demo.reference.state import STATE, TODAY, Generation, ReferenceOptions

LEARNFLOW = Path(os.environ.get("LEARNFLOW_DATA", Path(__file__).parents[4] / "shared" / "learnflow"))
Recording = dict[str, Any]
Client = TestClient[web.Request, web.Application]
NOT_REPEATED = {
    "generate/ctx_surrogate_key": "pydantic writes a lone surrogate as three U+FFFD; no client of ours sends one",
    "profiles/noslash_xff": "uvicorn trusts X-Forwarded-Proto from loopback; aiohttp does not",
    "profiles/noslash_follow": "two calls in one row",
    "service/redoc": "no documentation page",
    "transport/gp_double_slash": "aiohttp's client removes the second slash",
}


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    if not (LEARNFLOW / "recordings.jsonl").exists():
        reason = f"no recordings in {LEARNFLOW}; LEARNFLOW_DATA names their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    rows = [json.loads(line) for line in (LEARNFLOW / "recordings.jsonl").read_text("utf-8").splitlines()]
    return [row for row in rows if row["id"] not in NOT_REPEATED]


@pytest.fixture
async def learnflow(recordings: list[Recording], aiohttp_client: AiohttpClient) -> Client:
    assert recordings
    options = ReferenceOptions(
        templates=LEARNFLOW / "prompts.yaml", generation=Generation.PLACEHOLDERS, render=TODAY, cache_ttl=0
    )
    return await aiohttp_client(create_app(options))


def prompts_asked(recordings: list[Recording]) -> Iterator[tuple[Recording, bytes, dict[str, str]]]:
    for row in recordings:
        request = row["request"]
        if (request["method"], request["path"].partition("?")[0]) != ("POST", GENERATE_PROMPT):
            continue
        body = request["body"] or {"text": ""}
        raw = body["text"].encode() if "text" in body else base64.b64decode(body["base64"])
        headers = dict(line.split(": ", 1) for line in request["headers"])
        yield row, raw, {"Content-Type": headers.get("Content-Type", "application/json")}


async def test_every_recorded_prompt_comes_out_the_same(recordings: list[Recording], learnflow: Client) -> None:
    app = learnflow.app
    assert app is not None
    compared = 0
    for row, raw, headers in prompts_asked(recordings):
        if row["response"]["status"] != 200:
            continue
        if row.get("user_settings") is not None:
            app[STATE].database.replace(read_integer(json.loads(raw)["user_id"]), row["user_settings"])
        answer = await learnflow.post(GENERATE_PROMPT, data=raw, headers=headers)
        expected = json.loads(row["response"]["body"]["text"])
        assert answer.status == 200, row["id"]
        document = await answer.json()
        assert document["prompt"].encode() == expected["prompt"].encode(), row["id"]
        assert document["used_placeholders"] == expected["used_placeholders"], row["id"]
        compared += 1
    assert compared >= 45


async def test_every_recorded_refusal_has_the_same_status(recordings: list[Recording], learnflow: Client) -> None:
    compared = 0
    for row, raw, headers in prompts_asked(recordings):
        if row["response"]["status"] == 200:
            continue
        answer = await learnflow.post(GENERATE_PROMPT, data=raw, headers=headers)
        assert answer.status == row["response"]["status"], row["id"]
        compared += 1
    assert compared >= 30


async def test_an_unknown_node_is_refused_in_the_recorded_words(recordings: list[Recording], learnflow: Client) -> None:
    compared = 0
    for row, raw, headers in prompts_asked(recordings):
        if "Template not found" in row["response"]["body"]["text"]:
            answer = await learnflow.post(GENERATE_PROMPT, data=raw, headers=headers)
            assert await answer.text() == row["response"]["body"]["text"], row["id"]
            compared += 1
    assert compared >= 5


async def test_every_recorded_read_has_the_same_status_and_shape(
    recordings: list[Recording], learnflow: Client
) -> None:
    compared = 0
    for row in recordings:
        request, recorded = row["request"], row["response"]
        if request["method"] not in {"GET", "HEAD"} or "-" in request["path"].removeprefix("/api/v1/users/-"):
            continue  # the ids in recorded paths are those of another database
        host = dict(line.split(": ", 1) for line in request["headers"])["Host"]
        url = URL(str(learnflow.make_url("/")).rstrip("/") + request["path"], encoded=True)
        answer = await learnflow.session.request(request["method"], url, headers={"Host": host}, allow_redirects=False)
        assert answer.status == recorded["status"], row["id"]
        assert answer.headers.get("Location") == dict(recorded["headers"]).get("location"), row["id"]
        if answer.status == 200 and request["path"].startswith("/api/"):
            assert shape(await answer.json()) == shape(json.loads(recorded["body"]["text"])), row["id"]
        elif answer.status in {400, 404, 405}:
            assert await answer.text() == recorded["body"]["text"], row["id"]
        compared += 1
    assert compared >= 25


def shape(document: Any) -> Any:
    """Reduce a document to its keys and types: of a list, and of the settings by name, to the first."""
    if isinstance(document, list):
        return [shape(document[0])]
    if isinstance(document, dict) and "placeholders" in document:
        first = next(iter(document["placeholders"].values()))
        return {name: shape(first) if name == "placeholders" else shape(each) for name, each in document.items()}
    if isinstance(document, dict):
        return {name: shape(each) for name, each in document.items()}
    return type(document).__name__
