"""`placeholders`: what the config service says of a user's settings → settings, or a failure that names the mistake."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sidecar.core.errors import Answer, FailureKind, UpstreamFailure, kind_of_status
from sidecar.core.model import SettingsKey, UserSettings
from sidecar.upstream.client import Response, UpstreamClient
from sidecar.upstream.placeholders import PlaceholdersSource
from tests.harness import Exchange, raw_upstream

KEY = SettingsKey(7)
CANARY = "canary-7f3a"
NOT_FOUND = b'{"detail":"Not Found"}'
K = FailureKind


class Answering:
    """A client whose calls all end alike; notes what it was asked."""

    def __init__(self, response: Response | UpstreamFailure) -> None:
        self.response = response
        self.asked: list[str] = []
        self.names: list[str | None] = []

    async def get(self, path: str, *, authorization: str | None) -> Response:
        self.names.append(authorization)
        self.asked.append(path)
        if isinstance(self.response, UpstreamFailure):
            raise self.response
        return self.response


class Looking:
    """A look whether the endpoint exists, which finds what it is told; counts the looks."""

    def __init__(self, *, finds: bool | None) -> None:
        self.finds = finds
        self.looks = 0

    async def __call__(self) -> bool | None:
        self.looks += 1
        return self.finds


def source_of(client: Answering, exists: Looking | None = None) -> PlaceholdersSource:
    return PlaceholdersSource(cast(UpstreamClient, client), exists=exists)


def setting(name: str, value: object, **others: object) -> dict[str, Any]:
    """Return a setting as today's service tells it."""
    told = {"placeholder_id": f"id-{name}", "placeholder_name": name, "placeholder_display_name": name.title()}
    return {**told, "value_id": "id-of-a-value", "value": value, "display_name": "As recorded", **others}


def body_of(placeholders: object, **others: object) -> bytes:
    document = {"placeholders": placeholders, "active_profile_id": None, "active_profile_name": None}
    return json.dumps({**document, **others}).encode()


STYLE = {"style": setting("style", f"plain {CANARY} words")}


async def read(body: bytes, known: UserSettings | None = None, key: SettingsKey = KEY) -> UserSettings:
    """Return the settings that an answer of this body is."""
    return await source_of(Answering(Response(200, {}, body))).fetch(key, known)


async def refusal_of(body: bytes, key: SettingsKey = KEY) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        await read(body, key=key)
    return caught.value


# Settings


@pytest.mark.parametrize(
    ("user", "path"),
    [
        pytest.param(7, "/api/v1/users/7/placeholders", id="any user"),
        pytest.param(2**63 - 1, "/api/v1/users/9223372036854775807/placeholders", id="the largest"),
    ],
)
async def test_one_call_asks_for_all_settings_of_a_user(user: int, path: str) -> None:
    client = Answering(Response(200, {}, body_of({})))
    await source_of(client).fetch(SettingsKey(user), None)
    assert client.asked == [path]


async def test_they_are_asked_for_in_the_name_of_who_asks() -> None:
    client = Answering(Response(200, {}, body_of({})))
    await source_of(client).fetch(KEY, None, "Bearer a")
    await source_of(client).fetch(KEY, None, None)
    assert client.names == ["Bearer a", None]


async def test_a_setting_is_its_value() -> None:
    found = await read(body_of({**STYLE, "language": setting("language", "русский <b>&amp; \U0001f600")}))
    assert found.values == {"style": f"plain {CANARY} words", "language": "русский <b>&amp; \U0001f600"}
    assert list(found.values) == ["style", "language"]
    assert found.stated_ttl is None


@pytest.mark.parametrize(
    ("body", "values"),
    [
        pytest.param(body_of({}), {}, id="no settings"),
        pytest.param(body_of({"style": setting("style", "")}), {"style": ""}, id="an empty value"),
        pytest.param(b'{"placeholders":{"a":{"value":"1"}}}', {"a": "1"}, id="nothing but the values"),
        pytest.param(body_of({"a": setting("a", "1", placeholder_name=None)}), {"a": "1"}, id="a name that is null"),
        pytest.param(body_of({"": setting("", "1")}), {"": "1"}, id="an empty name"),
        pytest.param(body_of({"a": setting("a", "1", since=[{}])}, next={"a": [1]}), {"a": "1"}, id="unknown fields"),
        pytest.param(body_of({}, user_id=7), {}, id="the user's id"),
        pytest.param(body_of({}, user_id="7"), {}, id="the user's id as text"),
        pytest.param(body_of({}, user_id=None), {}, id="an id that is null"),
        pytest.param(b" \r\n\t" + body_of({}) + b"\n", {}, id="blanks around it"),
        pytest.param(b'{"placeholders":{"a":{"value":"{{ 7*7 }}"}}}', {"a": "{{ 7*7 }}"}, id="what looks like code"),
    ],
)
async def test_what_is_unusual_and_whole_is_settings(body: bytes, values: dict[str, str]) -> None:
    assert (await read(body)).values == values


# The same again


async def test_settings_that_did_not_change_are_the_known_object_itself() -> None:
    known = await read(body_of(STYLE))
    assert await read(body_of(STYLE), known) is known
    of_another_time = body_of({"style": setting("style", known.values["style"], value_id="another")}, extra=1)
    assert await read(of_another_time, known) is known


@pytest.mark.parametrize(
    "placeholders",
    [
        pytest.param({"style": setting("style", "verse")}, id="another value"),
        pytest.param({**STYLE, "language": setting("language", "German")}, id="one more"),
        pytest.param({}, id="none"),
        pytest.param({"Style": setting("Style", f"plain {CANARY} words")}, id="another name"),
    ],
)
async def test_settings_that_changed_are_a_new_object_and_leave_the_known_one_as_it_was(
    placeholders: dict[str, Any],
) -> None:
    known = await read(body_of(STYLE))
    found = await read(body_of(placeholders), known)
    assert found is not known
    assert found.values == {name: each["value"] for name, each in placeholders.items()}
    assert known.values == {"style": f"plain {CANARY} words"}


# The wrong shape


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"null", K.BAD_DOCUMENT, id="null"),
        pytest.param(b"[]", K.BAD_DOCUMENT, id="a list"),
        pytest.param(b'"placeholders"', K.BAD_DOCUMENT, id="a text"),
        pytest.param(b"{}", K.BAD_DOCUMENT, id="an empty object"),
        pytest.param(NOT_FOUND, K.BAD_DOCUMENT, id="an error with status 200"),
        pytest.param(body_of(None), K.BAD_DOCUMENT, id="placeholders: null"),
        pytest.param(body_of([]), K.BAD_DOCUMENT, id="placeholders: a list"),
        pytest.param(body_of("none"), K.BAD_DOCUMENT, id="placeholders: a text"),
        pytest.param(body_of({"style": CANARY}), K.BAD_DOCUMENT, id="a setting: a text"),
        pytest.param(body_of({"style": None}), K.BAD_DOCUMENT, id="a setting: null"),
        pytest.param(body_of({"style": {}}), K.BAD_DOCUMENT, id="a setting without a value"),
        pytest.param(body_of({"style": setting("style", None)}), K.BAD_DOCUMENT, id="a value: null"),
        pytest.param(body_of({"style": setting("style", 7)}), K.BAD_DOCUMENT, id="a value: a number"),
        pytest.param(body_of({"style": setting("style", True)}), K.BAD_DOCUMENT, id="a value: true"),
        pytest.param(body_of({"style": setting("style", [CANARY])}), K.BAD_DOCUMENT, id="a value: a list"),
        pytest.param(body_of({"style": setting("style", {"a": CANARY})}), K.BAD_DOCUMENT, id="a value: an object"),
        pytest.param(body_of({**STYLE, "last": setting("last", 1)}), K.BAD_DOCUMENT, id="one bad value among good"),
        pytest.param(body_of({"style": setting("language", "x")}), K.BAD_DOCUMENT, id="a name that is not its key"),
        pytest.param(body_of({"style": setting("Style", "x")}), K.BAD_DOCUMENT, id="a name in another case"),
        pytest.param(body_of({"style": setting("", "x")}), K.BAD_DOCUMENT, id="a name that is empty"),
        pytest.param(
            body_of({"style": setting("style", "x", placeholder_name=1)}), K.BAD_DOCUMENT, id="a name: a number"
        ),
        pytest.param(body_of(STYLE, user_id=8), K.BAD_DOCUMENT, id="another user"),
        pytest.param(body_of(STYLE, user_id="8"), K.BAD_DOCUMENT, id="another user as text"),
        pytest.param(body_of(STYLE, user_id=-7), K.BAD_DOCUMENT, id="minus the user"),
        pytest.param(body_of(STYLE, user_id=77), K.BAD_DOCUMENT, id="a user that begins alike"),
        pytest.param(body_of(STYLE, user_id=""), K.BAD_DOCUMENT, id="a user that is empty"),
        pytest.param(body_of(STYLE, user_id=7.5), K.BAD_DOCUMENT, id="a user with a fraction"),
        pytest.param(body_of(STYLE, user_id=[7]), K.BAD_DOCUMENT, id="a list of users"),
        pytest.param(b"<html><body>" + CANARY.encode() + b"</body></html>", K.GARBAGE, id="HTML"),
        pytest.param(b"", K.GARBAGE, id="empty"),
        pytest.param(b" \n", K.GARBAGE, id="blank"),
        pytest.param(body_of(STYLE)[:-1], K.GARBAGE, id="half of it"),
        pytest.param(body_of(STYLE) + b"{}", K.GARBAGE, id="more than it"),
        pytest.param(b'{"placeholders":{"a":{"value":NaN}}}', K.GARBAGE, id="NaN"),
        pytest.param(b'{"placeholders":{"a":{"value":"\xff"}}}', K.GARBAGE, id="not UTF-8"),
        pytest.param(b'{"placeholders":{"a":{"value":"\\ud800"}}}', K.GARBAGE, id="a lone surrogate"),
        pytest.param(b"\xef\xbb\xbf" + body_of(STYLE), K.GARBAGE, id="a byte order mark"),
        pytest.param("{}".encode("utf-16"), K.GARBAGE, id="UTF-16"),
        pytest.param(b"[" * 100_000, K.BAD_DOCUMENT, id="deep nesting from the start"),
        pytest.param(
            b'{"placeholders":{},"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            K.GARBAGE,
            id="deep nesting in an unknown field",
        ),
        pytest.param(
            b'{"placeholders":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, K.GARBAGE, id="deep nesting in ours"
        ),
    ],
)
async def test_what_is_no_settings_is_a_failure_that_says_nothing_of_its_content(
    body: bytes, kind: FailureKind
) -> None:
    failure = await refusal_of(body)
    assert failure.kind is kind
    assert failure.detail.startswith("the config service answered with ")
    assert CANARY not in str(failure)
    assert failure.answer is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(body_of(STYLE, user_id=8), "the settings of another user", id="another user"),
        pytest.param(
            body_of({"style": setting("language", "x")}), "a setting under the name of another", id="another name"
        ),
        pytest.param(b"", "what is not JSON", id="empty"),
        pytest.param(body_of({"style": setting("style", None)}), "JSON of the wrong shape (", id="null"),
    ],
)
async def test_the_failure_names_the_mistake(body: bytes, says: str) -> None:
    assert (await refusal_of(body)).detail.startswith(f"the config service answered with {says}")


# An endpoint that is gone


def refused(status: int, body: bytes = NOT_FOUND) -> UpstreamFailure:
    answer = Answer(status, body, "application/json")
    return UpstreamFailure(kind_of_status(status), f"it answered {status}", status=status, answer=answer)


MAY_BE_GONE = [
    pytest.param(refused(404), id="FastAPI's 404"),
    pytest.param(refused(405, b""), id="405"),
    pytest.param(refused(404, b"<html>"), id="a 404 of another"),
    pytest.param(refused(404, b""), id="an empty 404"),
    pytest.param(refused(404, b"[]"), id="a 404 that is a list"),
    pytest.param(refused(404, b'{"error":1}'), id="a 404 without a detail"),
    pytest.param(refused(404, b"[" * 100_000), id="a 404 of deep nesting"),
]
IS_NO_SIGN = [
    pytest.param(refused(404, b'{"detail":"User 7 not found"}'), id="a 404 of the service"),
    pytest.param(refused(404, b'{"detail":null}'), id="a 404 whose detail is null"),
    pytest.param(refused(410), id="410"),
    pytest.param(refused(401), id="401"),
    pytest.param(refused(403), id="403"),
    pytest.param(refused(422), id="422"),
    pytest.param(refused(429), id="429"),
    pytest.param(refused(500), id="500"),
    pytest.param(refused(503), id="503"),
    pytest.param(UpstreamFailure(K.GARBAGE, "a redirect", status=307), id="a redirect"),
    pytest.param(UpstreamFailure(K.CONNECT_ERROR, "no connection"), id="no connection"),
    pytest.param(UpstreamFailure(K.RESET, "it broke"), id="a reset"),
]


@pytest.mark.parametrize("finds", [True, False, None], ids=["found", "not found", "not said"])
@pytest.mark.parametrize("failure", MAY_BE_GONE)
async def test_a_404_of_the_endpoint_itself_has_the_generation_looked_at_again(
    failure: UpstreamFailure, finds: bool | None
) -> None:
    exists = Looking(finds=finds)
    with pytest.raises(UpstreamFailure) as caught:
        await source_of(Answering(failure), exists).fetch(KEY, None)
    assert exists.looks == 1
    assert (caught.value.kind, caught.value.status) == (K.ENDPOINT_GONE, failure.status)
    assert caught.value.detail.endswith("has no /api/v1/users/{user_id}/placeholders")
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize("failure", IS_NO_SIGN)
async def test_any_other_failure_stays_what_it_is_and_nothing_is_looked_at(failure: UpstreamFailure) -> None:
    exists = Looking(finds=False)
    with pytest.raises(UpstreamFailure) as caught:
        await source_of(Answering(failure), exists).fetch(KEY, None)
    assert caught.value is failure
    assert exists.looks == 0


@pytest.mark.parametrize("failure", [*MAY_BE_GONE, *IS_NO_SIGN])
async def test_where_the_generation_is_configured_every_failure_stays_what_it_is(failure: UpstreamFailure) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await source_of(Answering(failure)).fetch(KEY, None)
    assert caught.value is failure


# On the wire


@asynccontextmanager
async def asking(status: int, body: bytes) -> AsyncIterator[tuple[PlaceholdersSource, list[bytes]]]:
    """Run an upstream that answers so, and a source that asks it."""
    heads: list[bytes] = []

    async def plays(exchange: Exchange) -> None:
        heads.append(exchange.head)
        await exchange.answer(body, status=status)

    async with raw_upstream(plays) as upstream:
        client = UpstreamClient(upstream.url, connect_timeout=5.0, max_response=1 << 20)
        try:
            yield PlaceholdersSource(client), heads
        finally:
            await client.close()


async def test_the_call_is_a_get_without_a_body_or_conditions() -> None:
    async with asking(200, body_of(STYLE)) as (source, heads):
        known = await source.fetch(KEY, None)
        assert await source.fetch(KEY, known) is known
    for head in heads:
        assert head.startswith(b"GET /api/v1/users/7/placeholders HTTP/1.1\r\n")
        assert b"content-length" not in head.lower()
        assert b"if-none-match" not in head.lower()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, K.SERVER_ERROR),
        (503, K.SERVER_ERROR),
        (429, K.TOO_MANY_REQUESTS),
        (404, K.GONE),
        (422, K.GONE),
        (401, K.REFUSED),
        (204, K.GARBAGE),
        (307, K.GARBAGE),
    ],
)
async def test_a_status_is_told_with_its_body(status: int, kind: FailureKind) -> None:
    body = b"" if status in {204, 307} else b'{"detail":"no"}'
    async with asking(status, body) as (source, _):
        with pytest.raises(UpstreamFailure) as caught:
            await source.fetch(KEY, None)
    assert caught.value.kind is kind
    assert caught.value.status == status
    if status >= 400:
        assert caught.value.answer == Answer(status, body, "application/json")


async def test_who_leaves_while_it_is_looked_at_again_leaves_at_once() -> None:
    began = asyncio.Event()

    async def look() -> bool | None:
        began.set()
        await asyncio.Event().wait()
        return None

    source = PlaceholdersSource(cast(UpstreamClient, Answering(refused(404))), exists=look)
    asking_ = asyncio.ensure_future(source.fetch(KEY, None))
    await began.wait()
    asking_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking_
