"""The traffic, before sidecars that lie, are silent, or are as they should be."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.demo.drill.oracle import Oracle
from sidecar.demo.drill.tally import Asked, Kind
from sidecar.demo.drill.traffic import Traffic
from sidecar.demo.reference.state import State
from sidecar.settings import Settings
from tests.demo.drill.plans import plan_of
from tests.wire import serving, until

Answering = Callable[[web.BaseRequest, State], Awaitable[web.StreamResponse]]


def asked_as_the_service(body: dict[str, Any], state: State) -> Any:
    return state.prompt(body["user_id"], body["node_name"], body["context"])


async def honest(request: web.BaseRequest, state: State) -> web.StreamResponse:
    headers = {"Cache-Status": "prompt-sidecar; hit; ttl=1", "Age": "1"}
    return web.json_response(asked_as_the_service(await request.json(), state), headers=headers)


async def stale(request: web.BaseRequest, state: State) -> web.StreamResponse:
    headers = {"Cache-Status": "prompt-sidecar; hit; ttl=-3; detail=stale-if-error", "Age": "7"}
    return web.json_response(asked_as_the_service(await request.json(), state), headers=headers)


async def of_another_user(request: web.BaseRequest, state: State) -> web.StreamResponse:
    body = await request.json()
    return web.json_response(asked_as_the_service(body | {"user_id": body["user_id"] + 1}, state))


async def of_another_request(request: web.BaseRequest, state: State) -> web.StreamResponse:
    body = await request.json()
    changed = {name: text.replace("request-0", "request-1") for name, text in body["context"].items()}
    return web.json_response(asked_as_the_service(body | {"context": changed}, state))


async def refusing(_: web.BaseRequest, __: State) -> web.StreamResponse:
    return web.json_response({"detail": "no"}, status=503)


async def garbage(_: web.BaseRequest, __: State) -> web.StreamResponse:
    return web.Response(text="<p>It works!</p>", content_type="text/html")


async def hanging_up(request: web.BaseRequest, _: State) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def measured(tmp_path: Path, answering: Answering, *, revise: bool = False) -> list[Asked]:
    """Let traffic flow to such a sidecar until some of it was answered."""
    plan = plan_of(Settings(), rate=500)
    oracle = Oracle(plan, str(tmp_path / "users.db"))
    state = State(plan.reference(oracle.database))
    if revise:
        kept = {user: state.settings(user) for user, _ in plan.pairs}
        oracle.revise()
        oracle._replaced_at[0] -= 50.0
        for user, settings in kept.items():
            state.database.replace(user, settings)
    async with serving(lambda request: answering(request, state)) as served:
        address = f"127.0.0.1:{served.port}"
        traffic = Traffic(plan, oracle, sidecar=address, service=address)
        flow = asyncio.ensure_future(traffic.flow())
        await until(lambda: len(traffic.asked) >= 2 * len(plan.pairs))
        traffic.stop()
        await flow
    state.database.close()
    oracle.close()
    assert len(traffic.asked) == len(traffic.direct)  # nothing that was under way is dropped
    assert {(each.user, each.node) for each in traffic.asked} == set(plan.pairs)
    return traffic.asked


@pytest.mark.parametrize(
    ("answering", "kind", "age", "status"),
    [
        (honest, Kind.FRESH, 1, 200),
        (stale, Kind.STALE, 7, 200),
        (of_another_user, Kind.WRONG, 0, 200),
        (of_another_request, Kind.WRONG, 0, 200),
        (refusing, Kind.REFUSED, 0, 503),
        (garbage, Kind.REFUSED, 0, 200),
        (hanging_up, Kind.UNANSWERED, 0, None),
    ],
)
async def test_each_answer_is_taken_for_what_it_is(
    tmp_path: Path, answering: Answering, kind: Kind, age: float, status: int | None
) -> None:
    found = await measured(tmp_path, answering)
    assert {(each.kind, each.age, each.status) for each in found} == {(kind, age, status)}


async def test_an_old_prompt_that_calls_itself_young_is_dated_by_what_it_says(tmp_path: Path) -> None:
    found = await measured(tmp_path, honest, revise=True)
    assert {each.kind for each in found} == {Kind.FRESH}
    assert not any(each.is_newest for each in found)
    assert all(50 <= each.age < 80 for each in found)
