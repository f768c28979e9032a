"""The id of a request: its own or ours, in its lines, on its answer, and on the way to the config service."""

import asyncio
import json
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import structlog

from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.log_setup import Logs
from tests.harness import Exchange, RawUpstream, prompt_data, raw_upstream, settings_for, sidecar_with

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
OURS = re.compile(r"[0-9a-f]{8}-[0-9a-f]+")
NOT_CLEAN = ["x" * 65, "a b", 'a"b', "a;b", "ответ", ""]


@pytest.fixture
def log() -> Iterator[StringIO]:
    stream = StringIO()
    Logs(LogSettings(level=LogLevel.DEBUG, format=LogFormat.JSON), stream, environ={})
    yield stream
    structlog.reset_defaults()


def lines(log: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def lines_of(log: StringIO, request_id: str) -> list[str]:
    return [line["event"] for line in lines(log) if line.get("request_id") == request_id]


async def plays(exchange: Exchange) -> None:
    if exchange.head.startswith(b"POST /api/v1/prompt-data") and exchange.node == "explain":
        await exchange.answer(prompt_data())
    else:
        await exchange.answer({"detail": "no such node"}, status=404, headers={"X-Request-Id": "the-services-own"})


def sent(upstream: RawUpstream) -> list[str]:
    """Return the ids that the upstream saw; each request has one at most."""
    heads = [request.partition(b"\r\n\r\n")[0].decode() for request in upstream.requests]
    return [",".join(re.findall(r"(?im)^x-request-id: *(.*?)\r?$", head)) for head in heads]


async def test_a_requests_own_id_is_in_its_lines_on_its_answer_and_goes_on_to_the_service(log: StringIO) -> None:
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        miss = await sidecar.ask(headers={"X-Request-Id": "learnflow-1"})
        hit = await sidecar.ask(headers={"X-Request-Id": "learnflow-2"})
        unknown = await sidecar.ask(node="unknown", headers={"X-Request-Id": "learnflow-3"})
    assert [each.headers["X-Request-Id"] for each in (miss, hit, unknown)] == [f"learnflow-{n}" for n in (1, 2, 3)]
    assert sent(upstream) == ["learnflow-1", "learnflow-3"]
    assert lines_of(log, "learnflow-1") == ["upstream_called", "prompt_served"]
    assert lines_of(log, "learnflow-2") == ["prompt_served"]
    assert lines_of(log, "learnflow-3") == ["upstream_called", "fetch_failed", "prompt_refused"]


@pytest.mark.parametrize("given", [None, *NOT_CLEAN])
async def test_a_request_without_an_id_that_can_be_repeated_gets_one(log: StringIO, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        ids = [(await sidecar.ask(user, headers=headers)).headers["X-Request-Id"] for user in (1, 2)]
        refused = await sidecar.send(b"{", headers)
    assert all(OURS.fullmatch(each) for each in ids)
    assert len({*ids, refused.headers["X-Request-Id"]}) == 3
    assert sent(upstream) == ids
    assert lines_of(log, refused.headers["X-Request-Id"]) == ["prompt_refused"]
    assert not given or given not in log.getvalue()


async def test_two_sidecars_give_no_id_twice() -> None:
    ids = []
    async with raw_upstream(plays) as upstream:
        for _ in range(2):
            async with sidecar_with(settings_for(upstream.url)) as sidecar:
                ids += [(await sidecar.ask()).headers["X-Request-Id"] for _ in range(3)]
    assert len(set(ids)) == 6


@pytest.mark.parametrize(("given", "passed"), [("bot-7", "bot-7"), *((each, None) for each in (None, *NOT_CLEAN[:2]))])
async def test_what_is_passed_on_has_an_id_and_its_answer_stays_the_services_own(
    log: StringIO, given: str | None, passed: str | None
) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url)) as sidecar,
        sidecar.session.get(f"{sidecar.base}/api/v1/whatever", headers=headers) as answer,
    ):
        assert answer.headers.getall("X-Request-Id") == ["the-services-own"]
    (found,) = sent(upstream)
    assert found == passed or (passed is None and OURS.fullmatch(found))
    assert lines_of(log, found) == ["request_passed_on"]


async def test_what_could_not_be_passed_on_is_answered_with_its_id(log: StringIO) -> None:
    async with raw_upstream(plays) as upstream:
        url = upstream.url
    async with (
        sidecar_with(settings_for(url)) as sidecar,
        sidecar.session.get(f"{sidecar.base}/api/v1/x", headers={"X-Request-Id": "bot-8"}) as answer,
    ):
        assert (answer.status, answer.headers["X-Request-Id"]) == (503, "bot-8")
    assert lines_of(log, "bot-8") == ["passing_on_failed"]


async def test_a_crash_has_the_id_of_its_request_and_so_has_its_answer(
    log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:

        async def crashes(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(sidecar.core.manager, "get_rendered_prompt", crashes)
        answered = await sidecar.ask(headers={"X-Request-Id": "learnflow-9"})
    assert (answered.status, answered.headers["X-Request-Id"]) == (500, "learnflow-9")
    assert lines_of(log, "learnflow-9") == ["crashed"]


async def test_the_lines_of_a_trace_have_its_ids(log: StringIO) -> None:
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        await sidecar.ask(headers={"traceparent": TRACEPARENT})
        await sidecar.ask(headers={"traceparent": "nonsense"})
    told = [(line["event"], line.get("trace_id"), line.get("span_id")) for line in lines(log) if "request_id" in line]
    assert told == [
        ("upstream_called", TRACE, SPAN),
        ("prompt_served", TRACE, SPAN),
        ("prompt_served", None, None),
    ]


def request(*lines: str) -> bytes:
    body = b'{"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}'
    first = ("POST /api/v1/generate-prompt HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}")
    return "\r\n".join([*first, *lines, "", ""]).encode() + body


async def test_an_id_is_of_its_request_only_and_not_of_the_next_on_its_connection() -> None:
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        answered = await sidecar.raw(
            request("X-Request-Id: first"), request(), request("X-Request-Id: last", "Connection: close")
        )
    found = [each.decode() for each in re.findall(rb"X-Request-Id: (\S+)", answered)]
    assert (found[0], found[2]) == ("first", "last")
    assert OURS.fullmatch(found[1])


async def test_requests_that_share_a_fetch_have_each_their_own_id(log: StringIO) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        asked.set()
        await go_on.wait()
        await plays(exchange)

    async with raw_upstream(slow) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        asking = [asyncio.ensure_future(sidecar.ask(headers={"X-Request-Id": f"shared-{n}"})) for n in range(3)]
        await asked.wait()
        go_on.set()
        answered = await asyncio.gather(*asking)
    assert [each.headers["X-Request-Id"] for each in answered] == [f"shared-{n}" for n in range(3)]
    assert all("prompt_served" in lines_of(log, f"shared-{n}") for n in range(3))
    assert len(sent(upstream)) == 1
