"""`prompt-data`: what the config service says → a document, or a failure that names the mistake."""

import json
from typing import Any, cast

import pytest

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.model import Document, PromptKey
from sidecar.core.prompt import Profile, RenderLimits, RenderOptions, Undefined
from sidecar.upstream.client import Response, UpstreamClient
from sidecar.upstream.prompt_data import PromptDataSource
from sidecar.upstream.templates import Templates
from tests.fakes import document

KEY = PromptKey(7, "explain")
CANARY = "canary-7f3a"
GOOD: dict[str, Any] = {
    "template": f"{CANARY} Explain {{{{ topic }}}} in {{{{ style }}}}.",
    "user_placeholders": {"style": f"plain {CANARY} words", "unused": CANARY},
    "required_dynamic_placeholders": ["topic"],
    "cache_ttl": 300,
}
STRICT, EMPTY = Undefined.STRICT, Undefined.EMPTY
LEFT_OUT = object()


class Answering:
    """A client whose calls all end alike; notes what it was asked."""

    def __init__(self, response: Response | UpstreamFailure) -> None:
        self.response = response
        self.asked: list[tuple[str, Any, str | None]] = []
        self.names: list[str | None] = []

    async def post(
        self, path: str, body: bytes, *, if_none_match: str | None = None, authorization: str | None = None
    ) -> Response:
        self.names.append(authorization)
        self.asked.append((path, json.loads(body), if_none_match))
        if isinstance(self.response, UpstreamFailure):
            raise self.response
        return self.response


def source_of(
    client: Answering, *, autoescape: bool | None = None, undefined: Undefined | None = None
) -> PromptDataSource:
    limits = RenderLimits(max_template_bytes=10_000)
    templates = Templates(profile=Profile.STRICT, limits=limits, clock=lambda: 0.0)
    return PromptDataSource(cast(UpstreamClient, client), templates, autoescape=autoescape, undefined=undefined)


def body_of(**changes: object) -> bytes:
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not LEFT_OUT}).encode()


async def read(
    body: bytes, *, headers: dict[str, str] | None = None, known: Document | None = None, **settings: Any
) -> Document:
    """Return the document that an answer of this body is."""
    client = Answering(Response(200, headers or {}, body))
    return await source_of(client, **settings).fetch(KEY, known)


# A document


async def test_a_user_and_a_node_are_asked_for() -> None:
    client = Answering(Response(200, {}, body_of()))
    await source_of(client).fetch(KEY, None)
    assert client.asked == [("/api/v1/prompt-data", {"user_id": 7, "node_name": "explain"}, None)]


async def test_they_are_asked_for_in_the_name_of_who_asks() -> None:
    client = Answering(Response(200, {}, body_of()))
    await source_of(client).fetch(KEY, None, "Bearer a")
    await source_of(client).fetch(KEY, None, None)
    assert client.names == ["Bearer a", None]


async def test_an_answer_becomes_a_document() -> None:
    found = await read(body_of(), headers={"ETag": 'W/"v1"'})
    assert found.settings == GOOD["user_placeholders"]
    assert found.required == {"topic"}
    assert found.stated_ttl == 300
    assert found.etag == 'W/"v1"'
    assert found.used == {"style": f"plain {CANARY} words"}
    assert found.template.render(found.static, {"topic": "tides"}) == f"{CANARY} Explain tides in plain {CANARY} words."


@pytest.mark.parametrize(
    ("cache_ttl", "stated"),
    [(300, 300), (0.5, 0.5), (0, 0), pytest.param(None, None, id="null: none is stated")],
)
async def test_the_stated_lifetime_is_kept(cache_ttl: float | None, stated: float | None) -> None:
    assert (await read(body_of(cache_ttl=cache_ttl))).stated_ttl == stated


async def test_without_an_etag_there_is_none() -> None:
    assert (await read(body_of())).etag is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"user_placeholders": {}}, id="no settings"),
        pytest.param({"required_dynamic_placeholders": []}, id="nothing required"),
        pytest.param({"template": "No placeholder at all."}, id="a template of nothing but text"),
        pytest.param({"user_placeholders": {"style": ""}}, id="an empty setting"),
        pytest.param({"template_version": "v7", "tags": [1, {"a": None}], "cacheTtl": "soon"}, id="unknown fields"),
        pytest.param({"render": None}, id="render: null"),
        pytest.param({"render": {}}, id="render: nothing said"),
        pytest.param({"render": {"undefined": None, "newline": "keep"}}, id="render: unknown fields"),
    ],
)
async def test_what_is_unusual_and_whole_is_a_document(changes: dict[str, Any]) -> None:
    assert (await read(body_of(**changes))).template.options == RenderOptions(undefined=STRICT)


# Confirming


async def test_a_304_confirms_the_known_document_itself() -> None:
    known = document(etag='"v1"')
    client = Answering(Response(304, {"ETag": '"v1"'}, b""))
    assert await source_of(client).fetch(KEY, known) is known
    assert client.asked[0][2] == '"v1"'


async def test_a_known_document_without_an_etag_cannot_be_confirmed() -> None:
    client = Answering(Response(200, {}, body_of()))
    found = await source_of(client).fetch(KEY, document(etag=None))
    assert client.asked[0][2] is None
    assert found.stated_ttl == 300


async def test_a_changed_document_replaces_the_known_one() -> None:
    found = await read(body_of(), headers={"ETag": '"v2"'}, known=document(etag='"v1"'))
    assert found.etag == '"v2"'


# How it is rendered


@pytest.mark.parametrize(
    ("render", "settings", "options"),
    [
        pytest.param(
            LEFT_OUT, {}, RenderOptions(True, True, True, STRICT), id="nothing said: as today, and nothing unseen"
        ),
        pytest.param(
            {"autoescape": False, "trim_blocks": False, "lstrip_blocks": False, "undefined": "empty"},
            {},
            RenderOptions(False, False, False, EMPTY),
            id="the document's word",
        ),
        pytest.param(
            {"trim_blocks": False}, {}, RenderOptions(True, False, True, STRICT), id="the document's word on one"
        ),
        pytest.param(
            {"autoescape": True, "undefined": "strict"},
            {"autoescape": False, "undefined": EMPTY},
            RenderOptions(False, True, True, EMPTY),
            id="the settings' word over the document's",
        ),
        pytest.param(
            {"autoescape": False, "undefined": "empty"},
            {"autoescape": True, "undefined": STRICT},
            RenderOptions(True, True, True, STRICT),
            id="the settings' word over the document's, the other way",
        ),
        pytest.param(
            LEFT_OUT, {"autoescape": False}, RenderOptions(False, True, True, STRICT), id="the settings' word alone"
        ),
    ],
)
async def test_a_template_is_rendered_as_the_settings_say_else_the_document_else_the_generation(
    render: object, settings: dict[str, Any], options: RenderOptions
) -> None:
    assert (await read(body_of(render=render), **settings)).template.options == options


# Mistakes

WRONG_SHAPES: dict[str, dict[str, Any]] = {
    **{f"no {name}": {name: LEFT_OUT} for name in GOOD},
    "template: null": {"template": None},
    "template: a number": {"template": 5},
    "template: a list": {"template": [GOOD["template"]]},
    "template: empty": {"template": ""},
    "template: blank": {"template": " \r\n\t "},
    "settings: null": {"user_placeholders": None},
    "settings: a list": {"user_placeholders": [CANARY]},
    "settings: text": {"user_placeholders": CANARY},
    "a setting: null": {"user_placeholders": {CANARY: None}},
    "a setting: a number": {"user_placeholders": {CANARY: 1}},
    "a setting: true": {"user_placeholders": {CANARY: True}},
    "a setting: an object": {"user_placeholders": {CANARY: {CANARY: CANARY}}},
    "required: null": {"required_dynamic_placeholders": None},
    "required: text": {"required_dynamic_placeholders": CANARY},
    "required: numbers": {"required_dynamic_placeholders": [1]},
    "cache_ttl: negative": {"cache_ttl": -1},
    "cache_ttl: a little negative": {"cache_ttl": -0.001},
    "cache_ttl: text": {"cache_ttl": "300"},
    "cache_ttl: true": {"cache_ttl": True},
    "cache_ttl: beyond all numbers": {"cache_ttl": 10**400},
    "render: text": {"render": CANARY},
    "render: a word for a flag": {"render": {"autoescape": CANARY}},
    "render: a number for a flag": {"render": {"trim_blocks": 1}},
    "render: an unknown word": {"render": {"undefined": "loud"}},
    "template: an open expression": {"template": f"{CANARY} {{{{ topic"},
    "template: an open string": {"template": f"{{{{ '{CANARY}"},
    "template: a block without its end": {"template": f"{CANARY} {{% if topic %}} {CANARY}"},
    "template: an end without its block": {"template": f"{CANARY} {{% endfor %}}"},
}
NOT_ADMITTED: dict[str, dict[str, Any]] = {
    "template: a private attribute": {"template": f"{CANARY} {{{{ topic.__class__ }}}}"},
    "template: another file": {"template": f"{{% include '{CANARY}' %}}"},
    "template: a repetition": {"template": f"{{{{ '{CANARY}' * 1000000 }}}}"},
    "template: too large": {"template": CANARY * 1000},
}


@pytest.mark.parametrize("changes", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
async def test_json_of_the_wrong_shape_is_a_bad_document_and_nothing_of_it_is_told(changes: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await read(body_of(**changes))
    assert caught.value.kind is FailureKind.BAD_DOCUMENT
    assert caught.value.detail.startswith("the config service answered with ")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("changes", NOT_ADMITTED.values(), ids=NOT_ADMITTED)
async def test_a_template_beyond_what_is_rendered_here_is_told_apart_from_a_broken_one(changes: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await read(body_of(**changes))
    assert caught.value.kind is FailureKind.NOT_ADMITTED
    assert CANARY not in str(caught.value)


WHOSE: dict[str, tuple[dict[str, Any], str]] = {
    "another user": ({"user_id": 8}, "another user"),
    "another user, as text": ({"user_id": "8"}, "another user"),
    "another node": ({"node_name": "other"}, "another node"),
}


@pytest.mark.parametrize(("changes", "whose"), WHOSE.values(), ids=WHOSE)
async def test_a_document_that_says_it_is_anothers_is_refused(changes: dict[str, Any], whose: str) -> None:
    with pytest.raises(UpstreamFailure, match=whose) as caught:
        await read(body_of(**changes))
    assert caught.value.kind is FailureKind.BAD_DOCUMENT


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"canary-7f3a"', b"true", b"{}", b"[" * 100_000])
async def test_json_that_is_no_object_of_ours_is_a_bad_document(body: bytes) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await read(body)
    assert (caught.value.kind, CANARY in str(caught.value)) == (FailureKind.BAD_DOCUMENT, False)


def nested(opening: bytes, closing: bytes) -> bytes:
    """Return a good document with an unknown field 100,000 levels deep."""
    return body_of()[:-1] + b', "more": ' + opening * 100_000 + b"1" + closing * 100_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="blank"),
        pytest.param(b"<html><body>canary-7f3a</body></html>", id="HTML"),
        pytest.param(body_of()[:-20], id="half a document"),
        pytest.param(body_of() + body_of(), id="two documents"),
        pytest.param(body_of() + b"\0", id="a byte too many"),
        pytest.param(b"\xef\xbb\xbf" + body_of(), id="a byte order mark"),
        pytest.param(body_of().decode().encode("utf-16"), id="UTF-16"),
        pytest.param(body_of().replace(b"Explain", b"\xff"), id="bytes that are no text"),
        pytest.param(body_of().replace(b"Explain", b"\\ud800"), id="a lone surrogate"),
        pytest.param(body_of().replace(b"300", b"NaN"), id="NaN"),
        pytest.param(body_of().replace(b"300", b"300,"), id="a comma too many"),
        pytest.param(nested(b"[", b"]"), id="100,000 lists"),
        pytest.param(nested(b'{"a":', b"}"), id="100,000 objects"),
    ],
)
async def test_what_is_not_json_is_garbage_and_nothing_of_it_is_told(body: bytes) -> None:
    with pytest.raises(UpstreamFailure) as caught:
        await read(body)
    assert (caught.value.kind, CANARY in str(caught.value)) == (FailureKind.GARBAGE, False)


async def test_a_failure_of_the_client_is_passed_on() -> None:
    failure = UpstreamFailure(FailureKind.RESET, "the connection broke")
    with pytest.raises(UpstreamFailure) as caught:
        await source_of(Answering(failure)).fetch(KEY, None)
    assert caught.value is failure
