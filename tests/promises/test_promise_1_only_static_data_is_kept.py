"""Promise 1: templates and settings are kept; a request's content is nowhere but in its own answer.

A canary stands for the content: in each place of a context, through each way in which a request can end.
"""

import asyncio
import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from sidecar.core.policy import Policy
from tests.collector import collector
from tests.harness import (
    KEPT,
    PATH,
    Client,
    Exchange,
    forever,
    prompt_data,
    quick_settings,
    raw_upstream,
    sidecar_process,
    sidecar_with,
)

CANARY = "kanarienvogel-5f1d"
SETTING = "geheimer-wert-77ab"
NODE = "unbestaetigt-c09e"
USER = 739_184_650_273
CONTEXT = {
    "topic": CANARY,
    CANARY: "a key",
    "nested": [["deep", {"deeper": [CANARY, {CANARY: CANARY}]}]],
    "thing": {"word": CANARY},
    "number": f"7{CANARY}",
}

TEMPLATES = {
    "served": "{{ topic }} in {{ style }}: {{ nested }}",
    "metered": "{% for x in nested %}{{ x }}{% endfor %}{{ topic|upper }} {{ style }}",
    "missing": "{{ topic }} {{ style }} {{ nobody_gives_this }}",
    "computed": "{{ thing[topic] }} {{ style }}",
    "broken": "{{ topic + 1 }} {{ style }}",
    "looked_up": "{{ thing.word.nothing.more }} {{ style }}",
    "compared": "{{ [topic, 7]|sort }} {{ style }}",
    "rejected": "{{ topic * 200000000 }} {{ style }}",
    "stale": "{{ topic }} in {{ style }}",
}
FAILURES = ("down", "gone", "refused", "busy", "garbage", "reset", "half", "hang")
OUTCOMES = {  # what each way must have ended in, or the canary was not where it could leak from
    "served": 200,
    "metered": 200,
    "missing": 422,
    "computed": 422,
    "broken": 422,
    "looked_up": 422,
    "compared": 422,
    "rejected": 502,
    "stale": 200,
    "down": 503,
    "gone": 404,
    "refused": 403,
    "busy": 503,
    "garbage": 502,
    "reset": 503,
    "half": 503,
    "hang": 504,
}


class Upstream:
    """Has a document for each template, and a failure for each name of one; `stale` fails from the second call on."""

    def __init__(self) -> None:
        self.failing = False

    async def __call__(self, exchange: Exchange) -> None:
        match exchange.node if exchange.body else "a static read":
            case "stale" if self.failing:
                await exchange.answer(status=503)
            case node if node in TEMPLATES:
                ttl = 0 if node == "stale" else 300
                await exchange.answer(prompt_data(TEMPLATES[node], {"style": SETTING}, cache_ttl=ttl))
            case "down":
                await exchange.answer(status=500)
            case "busy":
                await exchange.answer(status=429, headers={"Retry-After": "0"})
            case "refused":
                await exchange.answer({"detail": "no"}, status=403)
            case "garbage":
                await exchange.answer(b"<html>", headers={"Content-Type": "text/html"})
            case "reset":
                exchange.reset()
            case "half":
                await exchange.answer(prompt_data(), headers={"Content-Length": "100000"})
                exchange.writer.close()
            case "hang":
                await forever()
            case _:
                await exchange.answer({"detail": "Template not found"}, status=404)


async def send_everything(client: Client, upstream: Upstream) -> None:
    """Send the canary through each way in which a request can end."""
    for node, status in OUTCOMES.items():
        answered = await client.ask(USER, node, CONTEXT)
        assert answered.status == status, (node, answered)
        if status == 200:
            assert CANARY in answered.prompt or CANARY.upper() in answered.prompt
    upstream.failing = True
    stale = await client.ask(USER, "stale", CONTEXT)
    assert "stale-if-error" in stale.how
    assert CANARY in stale.prompt
    for control in ("no-cache", "only-if-cached", "max-stale=10", CANARY):
        await client.ask(USER, "down", CONTEXT, {"Cache-Control": control})
    assert (await client.ask(USER, NODE, CONTEXT)).status == 404

    good: dict[str, Any] = {"user_id": USER, "node_name": "served", "context": CONTEXT}
    for body, headers, status in (
        ({**good, "user_id": CANARY}, {}, 422),
        ({**good, "user_id": -USER}, {}, 422),
        ({**good, "node_name": [CANARY]}, {}, 422),
        ({**good, "context": [CANARY]}, {}, 422),
        ({**good, CANARY: CANARY}, {}, 200),
        ({CANARY: CANARY}, {}, 422),
        ([CANARY], {}, 422),
        (good, {"Content-Type": f"text/{CANARY}"}, 415),
        (good, {"Content-Encoding": CANARY}, 415),
        (good, {"X-Much": CANARY * 4000}, 431),
        ({**good, "context": {"topic": CANARY * 10_000}}, {}, 413),
    ):
        answered = await client.send(json.dumps(body).encode(), headers)
        assert answered.status == status, answered
    assert (await client.send(f'{{"context": {CANARY}'.encode())).status == 422
    assert (await client.send(b"\xff\xfe\xfd" + CANARY.encode())).status == 422
    beside = json.dumps({"node_name": CANARY}).encode()
    assert (await client.send(beside, path=f"/{CANARY}?{CANARY}={CANARY}")).status == 404  # passed on
    async with client.session.get(f"{client.base}/api/v1/users/{USER}/placeholders") as response:
        assert response.status == 404
    assert b" 400 " in await client.raw(f"{CANARY} {CANARY}\r\n\r\n".encode())
    begin = (
        f"POST {PATH} HTTP/1.1\r\nHost: [::1]\r\nX-Content: {CANARY}\r\nContent-Length: 900\r\n\r\n{CANARY}".encode()
    )
    await client.raw(begin, end=True)
    chunk = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}\r\n".encode()
    await client.raw(chunk, end=True)
    hangs_up = asyncio.create_task(client.ask(USER, "hang", CONTEXT))
    await asyncio.wait([hangs_up], timeout=0)
    hangs_up.cancel()
    await asyncio.gather(hangs_up, return_exceptions=True)


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def opened_by(pid: int) -> list[str]:
    """Return what a process holds open."""
    opened = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            opened.append(str(path.readlink()))
    return opened


@pytest.mark.parametrize("style", ["json", "console"])
async def test_content_is_in_no_log_line_no_metric_no_span_no_file_and_never_reaches_the_upstream(
    style: str, tmp_path: Path
) -> None:
    plays = Upstream()
    async with (
        collector() as received,
        raw_upstream(plays) as upstream,
        sidecar_process(
            upstream.url,
            tmp_path,
            LOG__LEVEL="debug",
            LOG__FORMAT=style,
            DEADLINE="600ms",
            RETRY__PER_TRY_TIMEOUT="150ms",
            RETRY__BACKOFF="10ms",
            POLICY__DEFAULT__NETWORK_TIMEOUT="150ms",
            POLICY__DEFAULT__STALE_WHILE_REVALIDATE="0s",
            BREAKER__FAIL_MAX="1000",
            LIMITS__MAX_BODY="64KiB",
            TRACING__ENDPOINT=received.url,
            TRACING__SAMPLE_RATIO="100%",
        ) as sidecar,
    ):
        await send_everything(sidecar, plays)
        metrics = await sidecar.metrics()
        opened = opened_by(sidecar.pid)
    log = sidecar.log.decode()
    for told in ("prompt_served", "stale_prompt_served", "prompt_refused", "fetch_failed", "upstream_called"):
        assert told in log
    assert 'node="served"' in metrics
    spans, of_nodes = repr(received.spans), {span.attributes.get("prompt_sidecar.node") for span in received.spans}
    assert {"served", "metered", "stale", None} <= of_nodes
    assert {"client", "server", "internal"} == {span.kind for span in received.spans}
    assert {"render", "POST", "GET", f"POST {PATH}", "fetch static-read"} <= {span.name for span in received.spans}
    for secret in (CANARY, CANARY.upper(), SETTING, NODE, str(USER)):
        assert secret not in log
        assert secret not in metrics
        assert secret not in spans
        assert not any(secret.encode() in body for body in received.bodies)
    assert "Traceback" not in log
    assert upstream.requests
    passed_on = (f"POST /{CANARY}".encode(), f"POST {PATH}".encode())  # as it came, and what is not rendered here
    of_ours = [request for request in upstream.requests if not request.startswith(passed_on)]
    theirs = [request for request in upstream.requests if request.startswith(passed_on)]
    assert [b'"rejected"' in request for request in theirs] == [True, False]
    for request in of_ours:
        assert CANARY.encode() not in request
    assert [path for path in files_below(tmp_path) if CANARY.encode() in path.read_bytes()] == []
    assert [path for path in opened if path.startswith("/") and not path.startswith(("/dev", "/proc"))] == []


def reachable(*roots: object) -> Iterator[object]:
    """Walk over what is held by these objects: not over modules, classes, or what the event loop is at."""
    loop = asyncio.get_running_loop()
    seen = {id(vars(module)) for module in [*sys.modules.values()]} | {id(loop)}
    pending: list[object] = [*roots]
    while pending:
        found = pending.pop()
        if id(found) in seen or isinstance(found, ModuleType | type | FrameType | asyncio.AbstractEventLoop):
            continue
        seen.add(id(found))
        yield found
        pending += gc.get_referents(found)


def holding(canary: str, *roots: object) -> list[object]:
    texts = (canary, canary.upper())
    return [
        each
        for each in reachable(*roots)
        if (isinstance(each, str) and any(text in each for text in texts))
        or (isinstance(each, bytes | bytearray) and any(text.encode() in each for text in texts))
    ]


async def test_nothing_that_the_cache_or_the_manager_holds_has_content_in_it() -> None:
    plays = Upstream()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT)) as sidecar,
    ):
        for node in (*TEMPLATES, *FAILURES, "stale"):
            await sidecar.ask(USER, node, CONTEXT)
        await sidecar.settle()
        cache = sidecar.core.cache
        assert len(cache) == len(TEMPLATES) - 1
        assert holding(SETTING, cache), "the walk must reach what is kept"
        assert holding(CANARY, cache, sidecar.core.manager, sidecar.core.metrics, sidecar.core.breaker) == []


async def test_the_upstream_is_asked_by_user_and_node_and_by_nothing_else() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data())

    async with raw_upstream(plays) as upstream, sidecar_with(quick_settings(upstream.url)) as sidecar:
        headers = {"X-Secret": CANARY, "Cookie": CANARY, "Authorization": CANARY, "User-Agent": CANARY}
        assert CANARY in (await sidecar.ask(7, "explain", {"topic": CANARY}, headers)).prompt
    head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert json.loads(body) == {"user_id": 7, "node_name": "explain"}
    assert CANARY.encode() not in head


async def test_a_prompt_is_made_anew_for_each_request_from_what_is_kept() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data())

    policy = Policy(ttl=100)
    async with raw_upstream(plays) as upstream, sidecar_with(quick_settings(upstream.url, policy=policy)) as sidecar:
        prompts = [(await sidecar.ask(context={"topic": f"topic {n}"})).prompt for n in range(5)]
    assert prompts == [f"Explain topic {n} in plain words." for n in range(5)]
    assert len(upstream.requests) == 1
