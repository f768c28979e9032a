"""LearnFlow's own templates and recorded requests: the prompts are those of its config service, byte for byte.

The reference service stands for the config service, with LearnFlow's prompts.yaml, today's render options, and for each
recorded request the settings that its user had.
"""

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.reading import read_integer
from sidecar.demo.reference.state import TODAY
from tests.harness import KEPT, PATH, Answered, Reference, Sidecar, reference, settings_for, sidecar_with

LEARNFLOW = Path(os.environ.get("LEARNFLOW_DATA", Path(__file__).parents[3] / "shared" / "learnflow"))
Recording = dict[str, Any]
AT_LEAST = 45
BEYOND_INT64 = (
    "today's service gives such a user a prompt without any settings; its prompt-data is a 500, and so no prompt"
)
LEFT_OUT = {
    "generate/uid_1e30": BEYOND_INT64,
    "generate/uid_gt_int64": BEYOND_INT64,
    "generate/uid_gt_uint64": BEYOND_INT64,
}


def raw_body(row: Recording) -> bytes:
    body = row["request"]["body"]
    return body["text"].encode() if "text" in body else base64.b64decode(body["base64"])


@pytest.fixture(scope="module")
def prompts() -> list[Recording]:
    """Return the recorded requests that got a prompt."""
    path = LEARNFLOW / "recordings.jsonl"
    if not path.exists():
        reason = f"no recordings in {LEARNFLOW}; LEARNFLOW_DATA names their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    asked = [
        row for row in rows if (row["request"]["method"], row["request"]["path"].partition("?")[0]) == ("POST", PATH)
    ]
    return [row for row in asked if row["response"]["status"] == 200]


@pytest.fixture
async def upstream(prompts: list[Recording]) -> AsyncIterator[Reference]:
    assert prompts
    async with reference(templates=LEARNFLOW / "prompts.yaml", render=TODAY) as running:
        yield running


CALLERS = frozenset({"example.test"})
"""Whose page made one of the recorded requests."""


@pytest.fixture
async def sidecar(upstream: Reference) -> AsyncIterator[Sidecar]:
    async with sidecar_with(settings_for(upstream.url, allowed_hosts=CALLERS)) as running:
        yield running


async def repeat(sidecar: Sidecar, row: Recording, **more: str) -> Answered:
    """Send a recorded request as it was sent, but for where it goes."""
    recorded = dict(line.split(": ", 1) for line in row["request"]["headers"])
    headers = {name: value for name, value in recorded.items() if name not in {"Host", "Content-Length"}}
    return await sidecar.send(raw_body(row), {**headers, **more}, path=row["request"]["path"])


def give_settings(upstream: Reference, row: Recording) -> None:
    if row.get("user_settings") is not None:
        user = read_integer(json.loads(raw_body(row).removeprefix(b"\xef\xbb\xbf"))["user_id"])
        upstream.state.database.replace(user, row["user_settings"])


def assert_same(answered: Answered, row: Recording) -> None:
    expected = json.loads(row["response"]["body"]["text"])
    assert answered.prompt.encode() == expected["prompt"].encode(), row["id"]
    assert answered.document["used_placeholders"] == expected["used_placeholders"], row["id"]
    assert set(answered.document) == set(expected)


async def test_every_recorded_prompt_comes_out_the_same_fetched_and_from_the_cache(
    prompts: list[Recording], upstream: Reference, sidecar: Sidecar
) -> None:
    compared = 0
    for row in prompts:
        if row["id"] in LEFT_OUT:
            continue
        give_settings(upstream, row)
        fetched = await repeat(sidecar, row, **{"Cache-Control": "no-cache"})
        assert_same(fetched, row)
        assert "stored" in fetched.how
        calls = upstream.calls
        kept = await repeat(sidecar, row)
        assert_same(kept, row)
        assert kept.how.startswith("prompt-sidecar; hit; ttl=")
        assert upstream.calls == calls
        compared += 1
    assert compared >= AT_LEAST
    assert compared == len(prompts) - len(LEFT_OUT)


async def test_every_recorded_prompt_comes_out_the_same_while_the_service_is_down(
    prompts: list[Recording], upstream: Reference
) -> None:
    async with sidecar_with(settings_for(upstream.url, policy=KEPT, allowed_hosts=CALLERS)) as sidecar:
        compared = 0
        for row in prompts:
            if row["id"] in LEFT_OUT:
                continue
            upstream.fails(Mode.NONE)
            give_settings(upstream, row)
            await repeat(sidecar, row, **{"Cache-Control": "no-cache"})
            upstream.fails(
                Mode.WRONG_SHAPE
            )  # of all that stale data covers, what is neither retried nor opens the circuit
            covered = await repeat(sidecar, row)
            assert_same(covered, row)
            assert covered.how.endswith("detail=stale-if-error")
            compared += 1
        assert compared >= AT_LEAST


async def test_what_was_left_out_gets_no_wrong_prompt(
    prompts: list[Recording], upstream: Reference, sidecar: Sidecar
) -> None:
    left_out = [row for row in prompts if row["id"] in LEFT_OUT]
    assert len(left_out) == len(LEFT_OUT)
    for row in left_out:
        give_settings(upstream, row)
        answered = await repeat(sidecar, row)
        assert answered.is_problem, row["id"]
        assert answered.status == 503, row["id"]
