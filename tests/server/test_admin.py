"""Admin calls on the wire: who may make them, what they take, what they answer."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.core.events import Event, Refused
from sidecar.secret_file import LARGEST
from sidecar.server import admin
from sidecar.server.admin import BREAKER, INVALIDATE, MAX_BODY, PARITY, admin_routes
from sidecar.server.ops import ops_routes
from sidecar.service.invalidation import Forgotten
from tests.wire import Answer, Wire, get, post, serving, wire

TOKEN = "canary-7f3a"
ALL = b'{"reset": null}'


class Admin(NamedTuple):
    """A connection to the ops listener, and which resets were asked for."""

    client: Wire
    resets: list[str | None]
    invalidated: list[object]
    told: list[Event]
    circuit: "FakeCircuit"

    async def reset(self, body: bytes = ALL, *headers: str) -> Answer:
        return await self.client.ask(post(body, *headers, path=PARITY))

    async def invalidate(self, body: bytes, *headers: str) -> Answer:
        return await self.client.ask(post(body, *headers, path=INVALIDATE))


class FakeCircuit:
    """Notes in which state it is held."""

    def __init__(self) -> None:
        self.state = "closed"
        self.forced: tuple[str, float] | None = None

    def force(self, state: str, seconds: float) -> None:
        self.state, self.forced = ("closed", None) if state == "auto" else (state, (state, seconds))


class FakeInvalidations:
    """Notes what is to be invalidated."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def user(self, user_id: int) -> Forgotten:
        self.asked.append(user_id)
        return Forgotten(2, 1, told=True)

    async def node(self, node_name: str) -> Forgotten:
        self.asked.append(node_name)
        return Forgotten(3, 0, told=False)

    async def everything(self) -> Forgotten:
        self.asked.append(all)
        return Forgotten(9, 9, told=True)


async def nothing(_: str | None) -> tuple[bytes, str]:
    return b"", "text/plain"


@asynccontextmanager
async def administered(*, is_loopback: bool = True, token_file: Path | None = None) -> AsyncIterator[Admin]:
    resets: list[str | None] = []

    def reset(node: str | None) -> list[str]:
        resets.append(node)
        return ["explain", "quiz"] if node is None else [node] * (node == "explain")

    invalidations = FakeInvalidations()
    told: list[Event] = []
    circuit = FakeCircuit()
    calls = admin_routes(
        reset, invalidations, circuit, is_loopback=is_loopback, token_file=token_file, observer=told.append
    )
    routes = ops_routes(ready=lambda: True, metrics=nothing, admin=calls)
    async with serving(routes) as served, wire(served.port) as client:
        yield Admin(client, resets, invalidations.asked, told, circuit)
        assert served.events == []


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


def put(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


SPOILT = {"not UTF-8": b"\xff", "two lines": f"{TOKEN}\n{TOKEN}".encode(), "large": TOKEN.encode() * LARGEST}


def spoil(path: Path, how: str) -> None:
    if how in SPOILT:
        path.write_bytes(SPOILT[how])
    else:
        path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "endless":
        path.symlink_to("/dev/zero")


# What it does


@pytest.mark.parametrize(
    ("body", "asked", "answer"),
    [
        pytest.param(ALL, None, ["explain", "quiz"], id="all nodes"),
        pytest.param(b'{"reset":"explain"}', "explain", ["explain"], id="a node"),
        pytest.param(b'{"reset":"no-such-node"}', "no-such-node", [], id="a node that was not taken back"),
        pytest.param(b'{"reset":""}', "", [], id="an empty name is no word for all"),
        pytest.param('{"reset":"ответ"}'.encode(), "ответ", [], id="any name"),
        pytest.param(b' {"reset" : null} \n', None, ["explain", "quiz"], id="blanks"),
    ],
)
async def test_nodes_are_taken_into_service_again_and_named(body: bytes, asked: str | None, answer: list[str]) -> None:
    async with administered() as here:
        response = await here.reset(body)
        assert (response.status, response.header("Content-Type")) == (200, "application/json")
        assert json.loads(response.body) == {"reset": answer}
        assert here.resets == [asked]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"explain"', id="a text"),
        pytest.param(b'{"reset": 7}', id="a number"),
        pytest.param(b'{"reset": true}', id="true"),
        pytest.param(b'{"reset": ["explain"]}', id="a list of nodes"),
        pytest.param(b'{"Reset": null}', id="in another case"),
        pytest.param(b'{"reset": null, "force": true}', id="an unknown key"),
        pytest.param(b'{"reset": null', id="half"),
        pytest.param(b'{"reset": null}{}', id="more"),
        pytest.param(b'{"reset": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"reset": "\\ud800"}', id="a lone surrogate"),
        pytest.param(b"reset=explain", id="a form"),
        pytest.param(b"[" * 60_000, id="deep nesting"),
    ],
)
async def test_a_body_of_another_kind_is_refused_with_what_is_allowed(body: bytes) -> None:
    async with administered() as here:
        response = await here.reset(body)
        assert response.status == 422
        assert response.problem()["detail"] == 'The body must be {"reset": NODE}, or {"reset": null} for all nodes.'
        assert here.resets == []
        assert (await here.reset()).status == 200  # and the connection goes on


async def test_a_body_too_large_is_refused() -> None:
    async with administered() as here:
        response = await here.reset(b'{"reset":"' + b"x" * MAX_BODY + b'"}')
        assert response.problem()["status"] == 413
        assert here.resets == []


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "BODY_SECONDS", 0.02)
    async with administered() as here:
        await here.client.send(post(ALL, path=PARITY)[:-3])
        assert (await here.client.answer()).problem()["status"] == 408
        assert here.resets == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_it_is_a_post(method: str) -> None:
    async with administered() as here:
        await here.client.send(get(PARITY, "Content-Length: 0", method=method))
        response = await here.client.answer(to_head=method == "HEAD")
        assert (response.status, response.header("Allow")) == (405, "POST")
        assert here.resets == []


# Who may


async def test_on_loopback_no_token_is_needed_and_what_is_given_does_not_matter() -> None:
    async with administered() as here:
        assert (await here.reset()).status == 200
        assert (await here.reset(ALL, "Authorization: Bearer anything")).status == 200


async def test_elsewhere_nothing_is_taken_without_a_token_file() -> None:
    async with administered(is_loopback=False) as here:
        for header in ("X-Any: 1", "Authorization: Bearer ", f"Authorization: Bearer {TOKEN}"):
            response = await here.reset(ALL, header)
            assert response.status == 403
            assert "ops.admin_token_file" in response.problem()["detail"]
        assert here.resets == []


GIVEN = [
    pytest.param(f"Authorization: Bearer {TOKEN}", 200, id="the token"),
    pytest.param(f"authorization: Bearer {TOKEN}  ", 200, id="the token, and blanks that are no part of it"),
    pytest.param("X-Any: 1", 401, id="none"),
    pytest.param("Authorization: ", 401, id="an empty header"),
    pytest.param("Authorization: Bearer", 401, id="no token"),
    pytest.param("Authorization: Bearer x", 401, id="another"),
    pytest.param(f"Authorization: {TOKEN}", 401, id="the token without a scheme"),
    pytest.param(f"Authorization: Bearer{TOKEN}", 401, id="no blank between"),
    pytest.param(f"Authorization: Bearer {TOKEN}x", 401, id="one that begins so"),
    pytest.param(f"Authorization: Bearer {TOKEN[:-1]}", 401, id="the beginning"),
    pytest.param(f"Authorization: Bearer {TOKEN.upper()}", 401, id="in another case"),
    pytest.param(f"Authorization: Bearer Bearer {TOKEN}", 401, id="said twice"),
    pytest.param(f"Authorization: Basic {TOKEN}", 401, id="another scheme"),
    pytest.param(f"X-Token: {TOKEN}", 401, id="in another header"),
]


@pytest.mark.parametrize("is_loopback", [True, False], ids=["on loopback", "elsewhere"])
@pytest.mark.parametrize(("header", "status"), GIVEN)
async def test_where_there_is_a_token_it_is_asked_for_on_loopback_too(
    header: str, status: int, token_file: Path, *, is_loopback: bool
) -> None:
    async with administered(is_loopback=is_loopback, token_file=token_file) as here:
        response = await here.reset(ALL, header)
        assert response.status == status
        assert here.resets == [None] * (status == 200)
        assert here.told == [Refused("token")] * (status == 401)


async def test_every_refusal_is_the_same_and_tells_nothing_of_the_token(token_file: Path) -> None:
    async with administered(token_file=token_file) as here:
        answers = [
            await here.reset(ALL, header)
            for header in ("X-Any: 1", "Authorization: Bearer x", f"Authorization: Bearer {TOKEN}x")
        ]
    assert {response.header("WWW-Authenticate") for response in answers} == {"Bearer"}
    assert len({response.body for response in answers}) == 1
    assert answers[0].problem()["detail"] == "An admin call needs the token."
    assert not any(TOKEN in repr(response) for response in answers)


async def test_who_may_not_is_refused_before_his_body_is_looked_at(token_file: Path) -> None:
    async with administered(token_file=token_file) as here:
        assert (await here.reset(b"nonsense")).status == 401
    async with administered(is_loopback=False) as here:
        assert (await here.reset(b"nonsense")).status == 403


@pytest.mark.parametrize("end", ["\n", "\r\n", " \t\n\n"])
async def test_the_end_of_the_files_line_is_no_part_of_the_token(token_file: Path, end: str) -> None:
    put(token_file, TOKEN + end)
    async with administered(token_file=token_file) as here:
        assert (await here.reset(ALL, f"Authorization: Bearer {TOKEN}")).status == 200


async def test_a_token_that_is_changed_counts_from_the_next_call_on(token_file: Path) -> None:
    async with administered(token_file=token_file) as here:
        assert (await here.reset(ALL, f"Authorization: Bearer {TOKEN}")).status == 200
        put(token_file, "another")
        assert (await here.reset(ALL, f"Authorization: Bearer {TOKEN}")).status == 401
        assert (await here.reset(ALL, "Authorization: Bearer another")).status == 200


@pytest.mark.parametrize("content", [b"", b"\n", b" \t\n"], ids=["empty", "a line's end", "blanks"])
@pytest.mark.parametrize("header", ["X-Any: 1", "Authorization: Bearer ", "Authorization: ", "Authorization: Bearer"])
async def test_an_empty_token_opens_to_nobody(token_file: Path, content: bytes, header: str) -> None:
    put(token_file, content)
    async with administered(token_file=token_file) as here:
        assert (await here.reset(ALL, header)).status == 503
        assert here.resets == []


@pytest.mark.parametrize("how", ["gone", "a folder", "a pipe", "endless", *SPOILT])
async def test_a_token_that_cannot_be_read_opens_to_nobody(token_file: Path, how: str) -> None:
    spoil(token_file, how)
    async with administered(token_file=token_file) as here:
        for header in ("X-Any: 1", f"Authorization: Bearer {TOKEN}"):
            response = await here.reset(ALL, header)
            assert response.status == 503
            assert response.problem()["detail"] == "The file of ops.admin_token_file cannot be read, or holds no token."
            assert str(token_file) not in response.body.decode()
        assert here.resets == []


async def test_a_token_of_any_characters_can_be_given(token_file: Path) -> None:
    put(token_file, "ключ 7")
    async with administered(token_file=token_file) as here:
        given = post(ALL, "Authorization: Bearer ключ 7", path=PARITY)
        assert (await here.client.ask(given)).status == 200
        wrong = given.replace("ключ 7".encode(), b"\xff\xfe")
        assert (await here.client.ask(wrong)).status in {400, 401}
        assert here.resets == [None]


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/parity/", "/admin/warm", "/Admin/parity"])
async def test_there_is_no_other_call(path: str) -> None:
    async with administered() as here:
        assert (await here.client.ask(post(ALL, path=path))).status == 404


async def test_what_is_for_all_needs_no_token(token_file: Path) -> None:
    async with administered(is_loopback=False, token_file=token_file) as here:
        assert (await here.client.ask(get("/livez"))).status == 200
        assert (await here.client.ask(get("/status"))).status == 200


# Invalidation


@pytest.mark.parametrize(
    ("body", "asked", "answer"),
    [
        (b'{"user": 1}', 1, {"memory": 2, "store": 1, "group_told": True}),
        (b'{"node": "explain"}', "explain", {"memory": 3, "store": 0, "group_told": False}),
        (b'{"all": true}', all, {"memory": 9, "store": 9, "group_told": True}),
    ],
)
async def test_a_user_a_node_or_all_is_invalidated_and_what_was_forgotten_is_said(
    body: bytes, asked: object, answer: object
) -> None:
    async with administered() as here:
        said = await here.invalidate(body)
        assert (said.status, json.loads(said.body)) == (200, answer)
        assert here.invalidated == [asked]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"user": 0}',
        b'{"user": -1}',
        b'{"user": "1"}',
        b'{"user": 1.5}',
        b'{"user": null}',
        b'{"node": ""}',
        b'{"node": 1}',
        b'{"all": false}',
        b'{"all": "true"}',
        b'{"user": 1, "node": "explain"}',
        b'{"user": 1, "all": true}',
        b'{"users": [1]}',
        b"\xff",
    ],
)
async def test_what_says_not_exactly_one_thing_invalidates_nothing(body: bytes) -> None:
    async with administered() as here:
        said = await here.invalidate(body)
        assert said.status == 422
        assert json.loads(said.body)["detail"] == (
            'The body must be {"user": 1 to 9223372036854775807}, {"node": NAME} or {"all": true}.'
        )
        assert here.invalidated == []


async def test_without_the_token_nothing_is_invalidated(token_file: Path) -> None:
    async with administered(token_file=token_file) as here:
        assert (await here.invalidate(b'{"all": true}')).status == 401
        assert here.invalidated == []
        assert (await here.invalidate(b'{"all": true}', f"Authorization: Bearer {TOKEN}")).status == 200


@pytest.mark.parametrize(
    ("body", "held", "answer"),
    [
        (b'{"state": "open"}', ("open", 600.0), {"state": "open", "held_for_seconds": 600.0}),
        (b'{"state": "closed", "for": "90s"}', ("closed", 90.0), {"state": "closed", "held_for_seconds": 90.0}),
        (b'{"state": "auto"}', None, {"state": "closed", "held_for_seconds": None}),
    ],
)
async def test_the_circuit_is_held_for_a_while_or_let_go(body: bytes, held: object, answer: object) -> None:
    async with administered() as here:
        said = await here.client.ask(post(body, path=BREAKER))
        assert (said.status, json.loads(said.body)) == (200, answer)
        assert here.circuit.forced == held


@pytest.mark.parametrize(
    "body", [b"{}", b'{"state": "half-open"}', b'{"state": "open", "for": "2h"}', b'{"for": "1m"}']
)
async def test_what_is_no_state_or_too_long_holds_nothing(body: bytes) -> None:
    async with administered() as here:
        said = await here.client.ask(post(body, path=BREAKER))
        assert said.status == 422
        assert "a duration from 1s to 1h" in json.loads(said.body)["detail"]
        assert here.circuit.forced is None
