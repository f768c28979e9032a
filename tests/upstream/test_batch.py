"""The batch call: each result on its own, in the order asked; what does not match what was asked is a failure."""

import json
from typing import Any, cast

import pytest

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.model import PromptKey
from sidecar.upstream.batch import BATCH_PATH, BatchSource
from sidecar.upstream.client import Response, UpstreamClient
from sidecar.upstream.guarded import Confirmation, Guard
from tests.fakes import answered
from tests.upstream.test_prompt_data import GOOD, Answering, source_of

KEYS = [PromptKey(1, "explain"), PromptKey(12, "explain"), PromptKey(1, "quiz")]


class Unguarded:
    """A guard that lets everything through, and notes what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, float | None]] = []

    async def call(self, endpoint: str, attempt: Any, deadline_at: float, *, per_try_timeout: float | None) -> Any:
        self.told.append((endpoint, deadline_at, per_try_timeout))
        return Confirmation(await attempt(), 5.0)


def result(key: PromptKey, **changes: Any) -> dict[str, Any]:
    return {"user_id": key.user_id, "node_name": key.node_name, "status": 200, "data": GOOD, **changes}


async def fetched(answer: Any) -> list[Any]:
    client = Answering(answer if isinstance(answer, UpstreamFailure) else Response(200, {}, answer))
    guard = Unguarded()
    source = BatchSource(cast(UpstreamClient, client), cast(Guard, guard), source_of(client), timeout=10.0)
    found = await source.fetch(KEYS, 100.0)
    asked = [{"user_id": key.user_id, "node_name": key.node_name} for key in KEYS]
    assert client.asked == [(BATCH_PATH, {"requests": asked}, None)]
    assert guard.told == [("prompt-data-batch", 100.0, 10.0)]
    return found


def body_of(*results: Any) -> bytes:
    return json.dumps({"results": results, "unknown": 1}).encode()


async def test_each_document_comes_in_the_order_of_its_key_with_the_instant_of_the_call() -> None:
    texts = ["a {{ topic }}", "b {{ topic }}", "c {{ topic }}"]
    found = await fetched(body_of(*(result(k, data={**GOOD, "template": t}) for k, t in zip(KEYS, texts, strict=True))))
    assert [each.document.template.source for each in found] == texts
    assert {each.confirmed_at for each in found} == {5.0}


async def test_one_that_is_unknown_or_bad_does_not_spoil_the_others() -> None:
    unknown = {"user_id": 1, "node_name": "explain", "status": 404, "detail": "Node not found"}
    bad = result(KEYS[1], data={**GOOD, "template": "{% if %}"})
    first, second, third = await fetched(body_of(unknown, bad, result(KEYS[2])))
    assert isinstance(first, UpstreamFailure)
    assert (first.kind, first.status) == (FailureKind.GONE, 404)
    assert first.answer is not None
    assert json.loads(first.answer.body) == {"detail": "Node not found"}
    assert isinstance(second, UpstreamFailure)
    assert second.kind is FailureKind.BAD_DOCUMENT
    assert third.document.settings == GOOD["user_placeholders"]


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": 2},
        {"user_id": "12"},
        {"node_name": "other"},
        {"data": None},
        {"data": {**GOOD, "user_id": 2}},
        {"data": {}},
        {"data": []},
        {"status": 500, "data": None},
        {"status": 302},
    ],
)
async def test_a_result_that_is_not_what_was_asked_is_that_pairs_failure(changes: dict[str, Any]) -> None:
    first, second, third = await fetched(body_of(result(KEYS[0], **changes), result(KEYS[1]), result(KEYS[2])))
    assert isinstance(first, UpstreamFailure)
    assert isinstance(second, Confirmation)
    assert isinstance(third, Confirmation)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", FailureKind.GARBAGE),
        (b"<html>", FailureKind.GARBAGE),
        (b"[]", FailureKind.BAD_DOCUMENT),
        (b'{"results": {}}', FailureKind.BAD_DOCUMENT),
        (body_of(), FailureKind.BAD_DOCUMENT),
        (body_of(result(KEYS[0])), FailureKind.BAD_DOCUMENT),
        (body_of(*map(result, KEYS), result(KEYS[0])), FailureKind.BAD_DOCUMENT),
        (body_of(result(KEYS[0]), result(KEYS[1]), {"status": 200}), FailureKind.BAD_DOCUMENT),
    ],
)
async def test_an_answer_that_is_no_batch_fails_as_a_whole(body: bytes, kind: FailureKind) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await fetched(body)
    assert caught.value.kind is kind


async def test_results_in_another_order_are_nobodys() -> None:
    found = await fetched(body_of(result(KEYS[1]), result(KEYS[0]), result(KEYS[2])))
    assert [isinstance(each, UpstreamFailure) for each in found] == [True, True, False]


async def test_a_service_without_the_endpoint_is_told_by_its_status() -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await fetched(answered(404))
    assert caught.value.status == 404
