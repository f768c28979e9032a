"""What an answer of the config service can be that is no document: named by its kind, never by its content."""

import json
from enum import StrEnum
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from sidecar.core.errors import FAILURE_TABLE, Answer, FailureKind, UpstreamFailure, kind_of_status
from sidecar.core.prompt import Profile, RenderLimits, TemplateRejected
from sidecar.upstream.answers import bad, decoded, endpoint_gone, may_be_no_endpoint, not_json, refused
from sidecar.upstream.prompt_data import GENERATION_OPTIONS
from sidecar.upstream.templates import Templates

CANARY = "canary-7f3a"
K = FailureKind


def rejection_of(source: str) -> TemplateRejected:
    templates = Templates(profile=Profile.STRICT, limits=RenderLimits(max_template_bytes=1000), clock=lambda: 0.0)
    with pytest.raises(TemplateRejected) as caught:
        templates.get(source, GENERATION_OPTIONS)
    return caught.value


def answered(status: int, body: bytes | None) -> UpstreamFailure:
    answer = None if body is None else Answer(status, body, "application/json")
    return UpstreamFailure(kind_of_status(status), "no", status=status, answer=answer)


def test_a_bad_document_is_named_by_what_is_wrong_with_it() -> None:
    failure = bad("an empty prompt")
    assert (failure.kind, failure.detail) == (K.BAD_DOCUMENT, "the config service answered with an empty prompt")
    assert (failure.status, failure.answer, failure.retry_after) == (None, None, None)


def test_what_cannot_be_read_at_all_is_garbage() -> None:
    assert not_json().kind is K.GARBAGE
    assert not_json().detail == "the config service answered with what is not JSON"


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        pytest.param(
            f"{CANARY}\n{{{{ {CANARY[:6]} ",
            K.BAD_DOCUMENT,
            "a template that does not compile (line 2: the syntax is refused: ",
            id="open at its end",
        ),
        pytest.param("{% nonsense %}", K.BAD_DOCUMENT, "a template that does not compile (line 1: ", id="no such tag"),
        pytest.param("{% if a %}", K.BAD_DOCUMENT, "a template that does not compile (line 1: ", id="no end"),
        pytest.param("\n\n\ud800", K.BAD_DOCUMENT, "a template that does not compile (line 3: ", id="a lone surrogate"),
        pytest.param(
            f"{CANARY}\n{{{{ a | center(9) }}}}",
            K.NOT_ADMITTED,
            "a template that is not admitted (line 2: ",
            id="a filter that is not admitted",
        ),
        pytest.param("{{ a.b.c() }}", K.NOT_ADMITTED, "a template that is not admitted (line 1: ", id="a call"),
        pytest.param(
            CANARY * 1000,
            K.NOT_ADMITTED,
            "a template that is not admitted (a template this large is refused: 1000 bytes",
            id="too large",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_bad_where_it_is_broken_and_else_not_admitted(
    source: str, kind: FailureKind, says: str
) -> None:
    failure = refused(rejection_of(source))
    assert failure.kind is kind
    assert failure.detail.startswith(f"the config service answered with {says}")
    assert CANARY not in failure.detail


@pytest.mark.parametrize(
    ("failure", "may_be"),
    [
        pytest.param(answered(404, b'{"detail":"Not Found"}'), True, id="FastAPI's 404"),
        pytest.param(answered(404, b' {"detail": "Not Found", "path": "/"} \n'), True, id="the same, with more"),
        pytest.param(answered(404, b"<html>404</html>"), True, id="HTML"),
        pytest.param(answered(404, b""), True, id="nothing"),
        pytest.param(answered(404, b"\xff"), True, id="not text"),
        pytest.param(answered(404, b"null"), True, id="null"),
        pytest.param(answered(404, b"[]"), True, id="a list"),
        pytest.param(answered(404, b'["detail"]'), True, id="a list with the word in it"),
        pytest.param(answered(404, b'"detail"'), True, id="a text"),
        pytest.param(answered(404, b'{"error":"Not Found"}'), True, id="another key"),
        pytest.param(answered(404, b"[" * 100_000), True, id="deep nesting"),
        pytest.param(answered(404, b'{"detail":"Template not found for node: explain"}'), False, id="a node"),
        pytest.param(answered(404, b'{"detail":"not found"}'), False, id="in lower case"),
        pytest.param(answered(404, b'{"detail":["Not Found"]}'), False, id="a list of details"),
        pytest.param(answered(404, b'{"detail":null}'), False, id="a detail that is null"),
        pytest.param(answered(404, None), False, id="a 404 whose body is not known"),
        pytest.param(answered(405, b""), True, id="405"),
        pytest.param(answered(405, None), True, id="405 whose body is not known"),
        *[
            pytest.param(answered(status, b'{"detail":"Not Found"}'), False, id=str(status))
            for status in (400, 401, 403, 410, 422, 429, 500, 501, 503)
        ],
        pytest.param(UpstreamFailure(K.GARBAGE, "a redirect", status=307), False, id="a redirect"),
        pytest.param(UpstreamFailure(K.CONNECT_ERROR, "no connection"), False, id="no answer"),
    ],
)
def test_a_refusal_may_mean_the_endpoint_where_it_does_not_tell_of_what_was_asked(
    failure: UpstreamFailure, may_be: bool
) -> None:
    assert may_be_no_endpoint(failure) is may_be


@pytest.mark.parametrize("status", [404, 405])
def test_a_missing_endpoint_is_named_and_stale_data_may_stand_in(status: int) -> None:
    failure = endpoint_gone(answered(status, b"{}"), "/api/v1/prompt-data")
    assert (failure.kind, failure.status) == (K.ENDPOINT_GONE, status)
    assert failure.detail == "what answers at the config service's address has no /api/v1/prompt-data"
    assert failure.answer is None  # nobody is told that his node is unknown
    assert (failure.rule.stale, failure.rule.evicts) == (True, False)


def test_each_failure_that_is_made_here_has_its_row() -> None:
    rejected = cast(TemplateRejected, SimpleNamespace(is_broken=False))
    made = [bad("x"), not_json(), refused(rejected), endpoint_gone(answered(404, None), "/")]
    assert [failure.rule for failure in made] == [FAILURE_TABLE[failure.kind] for failure in made]


class _Option(StrEnum):
    KNOWN = "known"


@pytest.mark.parametrize("value", ["geheim", "it's geheim", 'say "geheim"', "two\nlines geheim"])
def test_what_is_of_the_wrong_shape_is_told_by_its_place_and_never_by_its_value(value: str) -> None:
    decoder = msgspec.json.Decoder(dict[str, _Option])
    with pytest.raises(UpstreamFailure) as caught:
        decoded(decoder, json.dumps({"geheim": value}).encode())
    assert caught.value.detail == (
        "the config service answered with JSON of the wrong shape (Invalid enum value … - at `$[...]`)"
    )
