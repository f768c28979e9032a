"""Sending spans: a collector may refuse, hang, or be away, and nobody waits for it; what is lost is counted."""

import asyncio
import itertools
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sidecar.core.events import CollectorChanged, Crashed, Event, SpansEnded
from sidecar.service.trace import SpanKind
from sidecar.telemetry.otlp import BATCH, OtlpSender
from sidecar.telemetry.tracing import Recorded
from tests.collector import collector

_number = itertools.count(1)


def span() -> Recorded:
    made = Recorded("work", SpanKind.INTERNAL, f"{next(_number):032x}", f"{next(_number):016x}", None, None, 1.0, 2.0)
    made.set({"text": "a", "whole": 1, "part": 0.5, "yes": True})
    return made


class Told:
    """What the sender says, added up."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended: Counter[str] = Counter()
        self.news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.news.set()
        if isinstance(event, SpansEnded):
            self.ended[event.result] += event.spans
        else:
            self.events.append(event)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10.0):
            while not holds():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def sending(
    url: str, told: Told, *, max_queue: int = 1000, timeout_seconds: float = 5.0, interval: float = 0.001
) -> AsyncIterator[OtlpSender]:
    sender = OtlpSender(url, version="1", instance="a", max_queue=max_queue, timeout=timeout_seconds, interval=interval)
    sender.observe = told
    running = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await sender.close()


async def closed_port() -> str:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}/v1/traces"


async def test_spans_go_out_together_and_arrive_whole() -> None:
    told = Told()
    async with collector() as received, sending(received.url, told, interval=3600.0) as sender:
        for _ in range(BATCH):  # a full message does not wait for the interval
            sender.add(span())
        await told.until(lambda: told.ended["exported"] == BATCH)
        assert len(received.bodies) == 1
        assert len({each.span_id for each in received.spans}) == BATCH
        assert received.spans[0].attributes == {"text": "a", "whole": 1, "part": 0.5, "yes": True}
        assert (received.spans[0].began_at, received.spans[0].ended_at) == (1_000_000_000, 2_000_000_000)
    assert told.events == []


async def test_what_is_left_at_the_end_is_sent() -> None:
    told = Told()
    async with collector() as received:
        async with sending(received.url, told, interval=3600.0) as sender:
            sender.add(span())
        assert len(received.spans) == 1
    assert told.ended == {"exported": 1}


async def test_the_operators_own_names_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pod-1,service.instance.id=pod-1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "prompts")
    async with collector() as received:
        async with sending(received.url, Told()) as sender:
            sender.add(span())
        resource = received.spans[0].resource
    assert (resource["service.name"], resource["service.instance.id"]) == ("prompts", "pod-1")
    assert (resource["service.version"], resource["k8s.pod.name"]) == ("1", "pod-1")


@pytest.mark.parametrize("status", [429, 502, 503, 504, None])
async def test_what_a_collector_in_trouble_does_not_take_is_kept_and_sent_again_and_told_once(
    status: int | None,
) -> None:
    told = Told()
    async with collector() as received:
        url, received.status = (received.url, status) if status else (await closed_port(), 200)
        async with sending(url, told, max_queue=3) as sender:
            for _ in range(5):
                sender.add(span())
            await told.until(lambda: len(told.events) == 1)
            assert told.ended == {"queue_full": 2}
            if status:
                received.status = 200
                await told.until(lambda: told.ended["exported"] == 3)
    if status:
        assert told.events == [CollectorChanged("unreachable", 2), CollectorChanged(None, 0)]
        assert told.ended == {"queue_full": 2, "exported": 3}
    else:
        assert told.events == [CollectorChanged("unreachable", 2)]
        assert told.ended == {"queue_full": 2, "unsent": 3}


@pytest.mark.parametrize("status", [302, 400, 401, 404, 500])
async def test_what_a_collector_refuses_is_not_sent_again(status: int) -> None:
    told = Told()
    async with collector() as received, sending(received.url, told) as sender:
        received.status = status
        sender.add(span())
        await told.until(lambda: told.ended["refused"] == 1)
        assert told.events == [CollectorChanged(f"status {status}", 0)]
        received.status = 200
        sender.add(span())
        await told.until(lambda: told.ended["exported"] == 1)
        assert told.events[1:] == [CollectorChanged(None, 1)]


async def test_spans_that_a_collector_takes_only_in_part_are_counted() -> None:
    told = Told()
    async with collector() as received, sending(received.url, told) as sender:
        received.refuses = 2
        for _ in range(5):
            sender.add(span())
        await told.until(lambda: told.ended["refused"] == 2)
    assert told.ended == {"exported": 3, "refused": 2}


async def test_a_collector_that_hangs_ends_in_bounded_time_and_its_spans_are_counted() -> None:
    told = Told()
    async with collector() as received:
        received.hangs = True
        async with sending(received.url, told, timeout_seconds=0.05) as sender:
            sender.add(span())
            await told.until(lambda: told.events == [CollectorChanged("slow", 0)])
            began = time.monotonic()
        assert time.monotonic() - began < 10.0
    assert told.ended == {"unsent": 1}


async def test_a_collector_whose_answer_drips_holds_nobody_up() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.001)
        except (ConnectionError, asyncio.CancelledError):
            writer.close()

    told = Told()
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"
    async with server, sending(url, told, timeout_seconds=0.05) as sender:
        sender.add(span())
        await told.until(lambda: told.ended["exported"] == 1)  # its status is all that counts


async def test_memory_is_bounded_however_long_a_collector_is_away() -> None:
    told = Told()
    async with sending(await closed_port(), told, max_queue=500, interval=3600.0) as sender:
        for _ in range(500):
            sender.add(span())
        tracemalloc.start()
        for _ in range(20_000):
            sender.add(span())
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert taken < 200_000
    assert told.ended == {"queue_full": 20_000, "unsent": 500}


async def test_encoding_gives_way_to_what_else_goes_on() -> None:
    told, turns = Told(), 0

    async def others() -> None:
        nonlocal turns
        while not told.ended["exported"]:
            turns += 1
            await asyncio.sleep(0)

    async with collector() as received, sending(received.url, told) as sender:
        for _ in range(BATCH):
            sender.add(span())
        await others()
    assert turns > BATCH / 16


async def test_what_cannot_be_encoded_is_told_of_and_stops_nothing() -> None:
    told = Told()
    async with collector() as received, sending(received.url, told) as sender:
        odd = span()
        odd.set({"text": "\ud800"})
        sender.add(odd)
        await told.until(lambda: told.ended["refused"] == 1)
        (crash,) = told.events
        assert isinstance(crash, Crashed)
        assert crash.what == "send-traces"
        sender.add(span())
        await told.until(lambda: told.ended["exported"] == 1)


async def test_names_of_the_operators_that_are_not_text_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "a=\udcff,broken")
    async with collector() as received:
        async with sending(received.url, Told()) as sender:
            sender.add(span())
        assert received.spans[0].resource["a"] == "?"
