"""What Prometheus gets of a running sidecar, and what it cannot do to it."""

import asyncio
import json
import logging
import sys
import threading
import time
from contextlib import suppress
from io import StringIO
from typing import Any, cast

import psutil
import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.core.policy import Policy
from sidecar.settings import LogFormat, LogLevel, LogSettings
from sidecar.telemetry.log_setup import Logs
from tests.harness import (
    PATH,
    Client,
    Exchange,
    Sidecar,
    eventually,
    prompt_data,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SCRAPERS = 10


async def series(sidecar: Sidecar) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in parse(await sidecar.metrics())
        for sample in family.samples
    }


async def exemplars(sidecar: Sidecar) -> list[Any]:
    async with sidecar.session.get(f"{sidecar.ops}/metrics", headers={"Accept": OPENMETRICS}) as response:
        assert response.headers["Content-Type"].startswith(OPENMETRICS)
        text, read = await response.text(), cast("Any", parse_openmetrics)
    return [s.exemplar.labels for family in read(text) for s in family.samples if s.exemplar]


async def ask_for(sidecar: Client, asked: list[tuple[int, str]], how: str = "max-stale=1") -> None:
    """Ask one after the other on one connection, which takes a third of the time of one each."""
    reader, writer = await asyncio.open_connection(*sidecar.address)
    for user, node in asked:
        body = json.dumps({"user_id": user, "node_name": node, "context": {}}).encode()
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nCache-Control: {how}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def test_ten_thousand_random_nodes_and_users_make_no_series() -> None:
    async def unknown(exchange: Exchange) -> None:
        if exchange.node == "explain":
            await exchange.answer(prompt_data("Hello."))
        else:
            await exchange.answer({"detail": f"no node {exchange.node}"}, status=404)

    async with raw_upstream(unknown) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        await ask_for(sidecar, [(1, "explain"), (2, "nobody knows"), (3, "")])
        await ask_for(sidecar, [(4, "nobody knows")], "only-if-cached")
        before = await series(sidecar)
        asked = [(10 + n, f"random {n} {{}}\"'\n") for n in range(10_000)]
        fetched, local = asked[:1000], asked[1000:]  # those that ask the upstream take five times as long
        await asyncio.gather(*(ask_for(sidecar, fetched[n::8]) for n in range(8)))
        await asyncio.gather(*(ask_for(sidecar, local[n::8], "only-if-cached") for n in range(8)))
        assert len(upstream.requests) > 1000
        assert await series(sidecar) == before


async def test_a_trace_id_or_else_a_request_id_is_the_exemplar_where_there_is_one() -> None:
    async with reference() as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        await sidecar.ask()
        assert await exemplars(sidecar) == []
        await sidecar.ask(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-Id": "a-1"})
        assert await exemplars(sidecar) == [{"trace_id": TRACE}]
        await sidecar.ask(2, headers={"X-Request-Id": "a-2"})
        assert {"request_id": "a-2"} in await exemplars(sidecar)


async def test_a_trace_is_of_its_request_only_and_not_of_the_next_on_its_connection() -> None:
    async with reference() as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        body = json.dumps({"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        traced = f"{head}traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n\r\n".encode() + body
        answered = await sidecar.raw(traced, f"{head}Connection: close\r\n\r\n".encode() + body)
        assert answered.count(b"HTTP/1.1 200") == 2
        assert await exemplars(sidecar) == [{"trace_id": TRACE}]  # a miss; the hit after it has none


async def test_scrapers_that_hang_hold_up_neither_prompts_nor_other_scrapers() -> None:
    policy = Policy(ttl=300)
    async with reference() as upstream, sidecar_with(settings_for(upstream.url, policy=policy)) as sidecar:
        await sidecar.ask()
        host, port = sidecar.ops.removeprefix("http://").split(":")
        hanging = [await asyncio.open_connection(host, int(port), limit=1) for _ in range(SCRAPERS)]
        for _, writer in hanging:
            writer.write(
                b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
            )  # far more than the buffers between us hold
        scrapes = [asyncio.ensure_future(sidecar.metrics()) for _ in range(SCRAPERS)]
        began = time.monotonic()
        answers = await asyncio.gather(*(sidecar.ask() for _ in range(50)))
        assert all(answer.status == 200 for answer in answers)
        assert max(answer.seconds for answer in answers) < 10.0
        assert all("prompt_sidecar_build_info" in text for text in await asyncio.gather(*scrapes))
        assert time.monotonic() - began < 40.0
        for _, writer in hanging:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def hang_up_in_a_scrape(sidecar: Sidecar, *, after: int) -> None:
    """Ask for the metrics many times over, read so many bytes, and break the connection."""
    host, port = sidecar.ops.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
    if after:
        await reader.readexactly(after)
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("after", [0, 1, 50_000])
async def test_scrapers_that_hang_up_in_the_middle_leave_no_line_no_task_and_no_connection(after: int) -> None:
    stream = StringIO()
    process, handlers, hooks = psutil.Process(), logging.root.handlers[:], (sys.unraisablehook, threading.excepthook)
    Logs(LogSettings(level=LogLevel.DEBUG, format=LogFormat.JSON), stream, environ={}).take_over()
    try:
        async with reference() as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
            await sidecar.ask()
            await hang_up_in_a_scrape(sidecar, after=after)
            await sidecar.metrics()
            tasks, files = len(asyncio.all_tasks()), process.num_fds()
            stream.seek(0)
            stream.truncate()
            await asyncio.gather(*(hang_up_in_a_scrape(sidecar, after=after) for _ in range(3 * SCRAPERS)))

            async def is_over() -> bool:
                await sidecar.metrics()
                return len(asyncio.all_tasks()) <= tasks and process.num_fds() <= files

            await eventually(is_over)
            text = await sidecar.metrics()
            told = stream.getvalue()
    finally:
        structlog.reset_defaults()
        logging.root.handlers[:] = handlers
        logging.captureWarnings(capture=False)
        sys.unraisablehook, threading.excepthook = hooks
    assert told == ""
    assert "prompt_sidecar_crashes_total 0.0" in text
