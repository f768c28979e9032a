"""Bodies and headers → what is asked; each mistake is named."""

import codecs
import json

import pytest

from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.server.requests import (
    BadRequestError,
    UnreadableBodyError,
    is_json,
    parse_cache_control,
    parse_prompt_request,
)

GOOD = {"user_id": 7, "node_name": "explain", "context": {"topic": "tides"}}


def body(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_a_request_is_read() -> None:
    asked = parse_prompt_request(body())
    assert (asked.user_id, asked.node_name, asked.context) == (7, "explain", {"topic": "tides"})


def test_an_absent_context_is_an_empty_one_and_unknown_members_are_ignored() -> None:
    asked = parse_prompt_request(b'{"user_id": 7, "node_name": "explain", "more": 1}')
    assert asked.context == {}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("1001", 1001), (" 1001 ", 1001), (1001.0, 1001), (1e3, 1000), (True, 1), (2**31 - 1, 2**31 - 1),
        (2**63, 2**63), (2**64, 2**64), (10**30, 10**30), ("1_000", 1000), (7123456789, 7123456789),
    ],
)  # fmt: skip
def test_a_user_id_is_coerced_as_the_config_service_does(given: object, read: int) -> None:
    assert parse_prompt_request(body(user_id=given)).user_id == read


@pytest.mark.parametrize("given", [0, -1, "abc", "", 1.5, None, [1], {}, False, "9" * 500, float("inf"), float("nan")])
def test_what_is_no_user_id_is_named(given: object) -> None:
    with pytest.raises(BadRequestError, match="user_id must be"):
        parse_prompt_request(body(user_id=given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, "node_name must be a string"),
        (None, "node_name must be a string"),
        ("", "node_name must not be empty"),
        ([], "string"),
    ],
)
def test_what_is_no_node_is_named(given: object, says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        parse_prompt_request(body(node_name=given))


@pytest.mark.parametrize("given", [None, 1, "x", []])
def test_a_context_that_is_no_object_is_named(given: object) -> None:
    with pytest.raises(BadRequestError, match="context must be an object"):
        parse_prompt_request(body(context=given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"hello", "not JSON at position 0", id="text"),
        pytest.param(b'{"user_id": 1001, "node_name": ', "not JSON at position", id="cut"),
        pytest.param(b"{'user_id': 1001}", "not JSON at position 1", id="single quotes"),
        pytest.param(b'{"user_id": 1001,}', "not JSON at position", id="trailing comma"),
        pytest.param(b'{"user_id": 1, "node_name": "x", "context": {"a": "\x01"}}', "not JSON", id="control character"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "nested too deeply", id="100,000 lists"),
        pytest.param(b'{"context":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply", id="100,000 objects"),
        pytest.param(b"[]", "must be a JSON object", id="list"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(b"1", "must be a JSON object", id="number"),
        pytest.param(b"{}", "user_id is required; node_name is required", id="all is missing at once"),
        pytest.param(
            b'{"user_id": 1, "node_name": "\\ud800"}', "node_name must be valid Unicode", id="surrogate in node"
        ),
        pytest.param(
            b'{"user_id": 1, "node_name": "x", "context": {"a": "\\ud800"}}',
            "lone surrogate",
            id="surrogate in context",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_never_quoted(given: bytes, says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        parse_prompt_request(given)


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(lambda text: codecs.BOM_UTF8 + text.encode(), id="UTF-8 with a byte order mark"),
        pytest.param(lambda text: text.encode("utf-16"), id="UTF-16"),
        pytest.param(lambda text: text.encode("utf-32"), id="UTF-32"),
    ],
)
def test_other_encodings_of_json_are_read(encode: object) -> None:
    assert callable(encode)
    assert parse_prompt_request(encode(json.dumps(GOOD))).context == {"topic": "tides"}


def test_of_duplicate_keys_the_last_counts() -> None:
    asked = parse_prompt_request(b'{"user_id":1,"node_name":"x","context":{"a":"first","a":"second"}}')
    assert asked.context == {"a": "second"}


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        (None, NO_DIRECTIVES),
        ("", NO_DIRECTIVES),
        ("no-cache", Directives(no_cache=True)),
        ("No-Cache", Directives(no_cache=True)),
        ("max-age=0, no-transform", NO_DIRECTIVES),
        ("only-if-cached", Directives(only_if_cached=True)),
        ("max-stale=60", Directives(max_stale=60)),
        ('max-stale="60"', Directives(max_stale=60)),
        ("max-stale", Directives(max_stale=float("inf"))),
        ("max-stale=60, max-stale=30", Directives(max_stale=30)),
        ("only-if-cached , MAX-STALE = 5", Directives(only_if_cached=True, max_stale=5)),
        ("max-stale=soon", NO_DIRECTIVES),
        ("max-stale=-1", NO_DIRECTIVES),
    ],
)
def test_cache_control_is_read(value: str | None, directives: Directives) -> None:
    assert parse_cache_control(value) == directives


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, True), ("", True), ("application/json", True), ("application/json; charset=utf-8", True),
        ("APPLICATION/JSON", True), ("application/vnd.api+json", True), ("text/plain", False),
        ("application/x-www-form-urlencoded", False), ("text/json", False), ("application/jsonp", False),
    ],
)  # fmt: skip
def test_json_is_read_and_nothing_else(value: str | None, read: bool) -> None:
    assert is_json(value) is read


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"user_id": 1, "node_name": "\xff\xfe"}', id="wrong encoding"),
        pytest.param(b'{"user_id": ' + b"9" * 5000 + b"}", id="a number of 5,000 digits"),
    ],
)
def test_what_python_cannot_read_as_text_is_not_called_a_breach_of_the_schema(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        parse_prompt_request(body)


def test_a_name_with_a_lone_surrogate_is_read_as_the_config_service_answers_with_it() -> None:
    body = rb'{"user_id": 1, "node_name": "explain", "context": {"\ud800": "v"}}'
    assert parse_prompt_request(body).context == {"\ufffd\ufffd\ufffd": "v"}
