"""Traces as an SRE sees them: LearnFlow, sidecar and config service in one, by a collector that speaks OTLP."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sidecar.core.policy import Policy
from sidecar.settings import StoreKind, StoreSettings, TracingSettings
from tests.collector import Collector, collector
from tests.harness import (
    PATH,
    QUICK_LIMIT,
    Exchange,
    Play,
    RawUpstream,
    Sidecar,
    prompt_data,
    quick_settings,
    raw_upstream,
    sidecar_with,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
REQUEST = f"POST {PATH}"
ATTEMPT = "POST /api/v1/prompt-data"


async def answers(exchange: Exchange) -> None:
    if b"/api/v1/users/" in exchange.head:
        await exchange.answer({"ok": True})
    elif b"/batch" in exchange.head:
        await exchange.answer({"detail": "Not Found"}, status=404)
    elif exchange.node == "down":
        await exchange.answer(status=500)
    else:
        await exchange.answer(prompt_data())


def told(upstream: RawUpstream, header: str = "traceparent") -> list[str]:
    """Return what the upstream was told by a header, request by request; nothing where it was not."""
    found = [re.search(rf"(?im)^{header}: *([^\r]*)\r$", request.decode("latin-1")) for request in upstream.requests]
    return [each[1] if each else "" for each in found]


@asynccontextmanager
async def traced(
    plays: Play, ratio: float = 0.0, **sections: Any
) -> AsyncIterator[tuple[Collector, RawUpstream, Sidecar]]:
    """Run a sidecar between two; when it has ended, the collector has all that there is."""
    async with collector() as received, raw_upstream(plays) as upstream:
        tracing = TracingSettings(endpoint=received.url, sample_ratio=ratio)
        async with sidecar_with(quick_settings(upstream.url, tracing=tracing, **sections)) as sidecar:
            yield received, upstream, sidecar


async def test_a_miss_is_one_trace_from_learnflow_to_the_config_service() -> None:
    async with traced(answers) as (received, upstream, sidecar):
        answered = await sidecar.ask(headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    request, fetch, attempt = received.one(REQUEST), received.one("fetch prompt-data"), received.one(ATTEMPT)
    render = received.one("render")
    assert {span.trace_id for span in received.spans} == {TRACE}
    assert (request.parent_id, fetch.parent_id, attempt.parent_id) == (PARENT, request.span_id, fetch.span_id)
    assert render.parent_id == request.span_id
    assert (request.kind, fetch.kind, attempt.kind, render.kind) == ("server", "internal", "client", "internal")
    assert told(upstream) == [f"00-{TRACE}-{attempt.span_id}-01"]
    assert told(upstream, "tracestate") == ["vendor=1"]
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": PATH,
        "url.path": PATH,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": 0,  # as the settings say; here any free one
        "http.response.status_code": 200,
        "prompt_sidecar.cache_status": answered.how,
        "prompt_sidecar.outcome": "miss",
        "prompt_sidecar.node": "explain",
        "prompt_sidecar.age_seconds": request.attributes["prompt_sidecar.age_seconds"],
        "prompt_sidecar.entry": "older, or none",
        "prompt_sidecar.decision": "fetch",
    }
    assert attempt.attributes == {
        "http.request.method": "POST",
        "url.template": "/api/v1/prompt-data",
        "server.address": host,
        "server.port": int(port),
        "http.response.status_code": 200,
        "prompt_sidecar.result": "ok",
    }
    assert fetch.attributes == {"prompt_sidecar.stored": True}
    assert request.began_at <= fetch.began_at <= attempt.began_at < attempt.ended_at <= fetch.ended_at
    assert attempt.ended_at <= render.ended_at <= request.ended_at + 1_000_000  # of wall clocks read one by one
    assert request.resource["service.name"] == "prompt-sidecar"
    assert {"service.version", "service.instance.id"} <= request.resource.keys()


async def test_each_attempt_is_a_span_and_a_failure_says_what_failed() -> None:
    async with traced(answers) as (received, upstream, sidecar):
        answered = await sidecar.ask(node="down", headers={"traceparent": TRACEPARENT})
    assert answered.status == 503
    attempts = received.named(ATTEMPT)
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [span.attributes["http.response.status_code"] for span in attempts] == [500, 500, 500]
    assert {span.attributes["error.type"] for span in attempts} == {"server_error"}
    assert told(upstream) == [f"00-{TRACE}-{span.span_id}-01" for span in attempts]
    assert received.one("fetch prompt-data").attributes == {"error.type": "server_error"}
    request = received.one(REQUEST)
    assert request.is_failed
    assert request.attributes["error.type"] == "server_error"
    assert request.attributes["http.response.status_code"] == 503
    assert "prompt_sidecar.node" not in request.attributes


async def test_a_hit_asks_nobody_and_a_422_is_no_failure_of_ours() -> None:
    async with traced(answers) as (received, _, sidecar):
        await sidecar.ask()
        await sidecar.ask(headers={"traceparent": TRACEPARENT})
        await sidecar.ask(context={}, headers={"traceparent": TRACEPARENT})
    hit, refused = received.named(REQUEST)
    assert hit.attributes["prompt_sidecar.outcome"] == "fresh"
    assert hit.attributes["prompt_sidecar.cache_status"].startswith("prompt-sidecar; hit; ttl=")
    assert refused.attributes["http.response.status_code"] == 422
    assert not refused.is_failed
    assert {span.name for span in received.spans} == {REQUEST, "render"}


async def test_a_store_that_is_waited_for_is_a_span(tmp_path: Path) -> None:
    store = StoreSettings(kind=StoreKind.FILE, path=tmp_path / "cache.db")
    async with traced(answers, store=store) as (received, _, sidecar):
        await sidecar.ask(headers={"traceparent": TRACEPARENT})
    look = received.one("store get")
    assert look.parent_id == received.one(REQUEST).span_id
    assert look.attributes == {"db.system.name": "sqlite", "db.operation.name": "get"}


async def test_a_revalidation_behind_an_answer_is_a_trace_of_its_own_with_a_link_to_it() -> None:
    policy = Policy(ttl=0, stale_while_revalidate=100, stale_if_error=100, network_timeout=0.15)
    async with traced(answers, policy=policy) as (received, upstream, sidecar):
        await sidecar.ask()
        await sidecar.ask(headers={"traceparent": TRACEPARENT})
        await sidecar.settle()
    request, fetch, attempt = received.one(REQUEST), received.one("fetch prompt-data"), received.one(ATTEMPT)
    assert request.trace_id == TRACE != fetch.trace_id == attempt.trace_id
    assert (fetch.parent_id, fetch.links) == ("", [(TRACE, request.span_id)])
    assert told(upstream)[1] == f"00-{fetch.trace_id}-{attempt.span_id}-01"


async def test_of_a_fetch_for_several_the_first_ones_trace_goes_on() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        arrived.set()
        await go_on.wait()
        await exchange.answer(prompt_data())

    other = f"00-{TRACE[::-1]}-{PARENT}-01"
    async with traced(slowly, deadline=10.0) as (received, _, sidecar):
        first = asyncio.create_task(sidecar.ask(headers={"traceparent": TRACEPARENT}))
        await arrived.wait()
        second = asyncio.create_task(sidecar.ask(headers={"traceparent": other}))
        while "coalesced_requests_total 1.0" not in await sidecar.metrics():
            pass
        go_on.set()
        await asyncio.gather(first, second)
    assert received.one(ATTEMPT).trace_id == TRACE
    assert sorted(span.trace_id for span in received.named(REQUEST)) == sorted([TRACE, TRACE[::-1]])
    collapsed = [
        span for span in received.named(REQUEST) if "collapsed" in span.attributes["prompt_sidecar.cache_status"]
    ]
    assert [span.trace_id for span in collapsed] == [TRACE[::-1]]


async def test_what_is_passed_through_is_in_the_trace_without_its_path() -> None:
    path = "/api/v1/users/739184650273/reset"
    async with traced(answers) as (received, upstream, sidecar):
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "a=b"}
        answered = await sidecar.send(b"{}", headers, path=path)
    assert answered.status == 200
    server, client = sorted(received.spans, key=lambda span: span.kind, reverse=True)
    assert (server.name, client.name, server.kind, client.kind) == ("POST", "POST", "server", "client")
    assert (server.parent_id, client.parent_id) == (PARENT, server.span_id)
    assert told(upstream) == [f"00-{TRACE}-{client.span_id}-01"]
    assert (told(upstream, "tracestate"), told(upstream, "baggage")) == (["vendor=1"], ["a=b"])
    assert not any("739184650273" in str(span) for span in received.spans)


async def test_what_the_client_does_not_sample_is_not_recorded_and_passed_on_as_it_came() -> None:
    async with traced(answers, ratio=1.0) as (received, upstream, sidecar):
        await sidecar.ask(headers={"traceparent": UNSAMPLED})
        await sidecar.send(b"{}", {"traceparent": UNSAMPLED}, path="/api/v1/users/1/reset")
    assert received.spans == []
    assert told(upstream) == [UNSAMPLED, UNSAMPLED]


async def test_a_request_without_a_trace_or_with_a_broken_one_begins_one() -> None:
    async with traced(answers, ratio=1.0) as (received, upstream, sidecar):
        await sidecar.ask(1)
        await sidecar.ask(2, headers={"traceparent": TRACEPARENT.upper(), "tracestate": "vendor=1"})
    requests = received.named(REQUEST)
    assert len({span.trace_id for span in requests}) == 2
    assert all(span.parent_id == "" for span in requests)
    assert sorted(each[3:35] for each in told(upstream)) == sorted(span.trace_id for span in requests)
    assert told(upstream, "tracestate") == ["", ""]


async def test_without_a_collector_a_trace_is_passed_on_by_every_kind_of_call() -> None:
    async with (
        raw_upstream(answers) as upstream,
        sidecar_with(quick_settings(upstream.url)) as sidecar,
    ):
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
        await sidecar.ask(headers=headers)
        await sidecar.send(b"{}", {**headers, "baggage": "a=b"}, path="/api/v1/users/1/reset")
        async with sidecar.session.get(f"{sidecar.base}/api/v1/users/1/placeholders", headers=headers) as response:
            assert response.status == 200
        await sidecar.ask(2, headers={"traceparent": "broken", "tracestate": "vendor=1"})
        await sidecar.ask(3)
    assert told(upstream) == [TRACEPARENT, TRACEPARENT, TRACEPARENT, "", ""]
    assert told(upstream, "tracestate") == ["vendor=1", "vendor=1", "vendor=1", "", ""]
    assert told(upstream, "baggage") == ["", "a=b", "", "", ""]


async def test_without_a_collector_what_goes_on_behind_an_answer_is_of_nobodys_trace() -> None:
    policy = Policy(ttl=0, stale_while_revalidate=100, stale_if_error=100, network_timeout=0.15)
    async with raw_upstream(answers) as upstream, sidecar_with(quick_settings(upstream.url, policy=policy)) as sidecar:
        await sidecar.ask()
        await sidecar.ask(headers={"traceparent": TRACEPARENT})
        await sidecar.settle()
        assert len(upstream.requests) == 2
        assert told(upstream) == ["", ""]


async def test_a_warm_up_is_in_nobodys_trace_and_makes_its_own() -> None:
    async with traced(answers, ratio=1.0) as (received, upstream, sidecar):
        asked = {"pairs": [[1, "explain"]]}
        async with sidecar.session.post(f"{sidecar.ops}/admin/warm", json=asked) as response:
            assert response.status == 202
        while 'warmup_pairs_total{result="stored"} 1.0' not in await sidecar.metrics():
            pass
    attempts = [span for span in received.spans if span.kind == "client"]
    assert attempts
    assert all(span.parent_id == "" for span in attempts if span.name.endswith("/batch"))
    assert {each[36:52] for each in told(upstream) if each} <= {span.span_id for span in attempts}


async def test_a_collector_that_hangs_holds_up_neither_a_prompt_nor_the_end() -> None:
    async with collector() as received, raw_upstream(answers) as upstream:
        received.hangs = True
        tracing = TracingSettings(endpoint=received.url, sample_ratio=1.0, max_queue=5, timeout=0.1)
        async with sidecar_with(quick_settings(upstream.url, tracing=tracing)) as sidecar:
            slowest = max([(await sidecar.ask()).seconds for _ in range(20)])
            metrics = await sidecar.metrics()
            began = time.monotonic()
        ended = time.monotonic() - began
    assert slowest < QUICK_LIMIT
    assert ended < 8.0
    # A hit makes two spans, the miss before them two more; five waited, and all else was dropped and counted.
    assert 'prompt_sidecar_spans_total{result="queue_full"} 37.0' in metrics
    assert 'prompt_sidecar_spans_total{result="exported"} 0.0' in metrics
