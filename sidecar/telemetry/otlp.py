"""Ended spans to a collector, by OTLP over HTTP. The only module that imports OpenTelemetry (extra `otel`).

Instead of the SDK's own batch processor, because that encodes hundreds of spans at a time in a thread, which takes the
interpreter's lock from the event loop, drops spans without a word, and at the end blocks until its thread has given up.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace import SpanKind as OtelKind
from opentelemetry.trace.status import Status, StatusCode

from sidecar.core.events import CollectorChanged, SpansEnded
from sidecar.service.ports import Observer
from sidecar.service.trace import SpanKind
from sidecar.telemetry.tracing import Recorded

BATCH = 256
"""Spans in one message."""
ENCODED_AT_ONCE = 8
"""Spans encoded before others have their turn: each takes about a tenth of a millisecond."""
INTERVAL = 1.0
"""Seconds that a span waits for others at most."""
LONGEST_PAUSE = 30.0
"""Seconds; a collector that does not answer is tried again after 1 s, then after twice as long each time."""
MOST_DOUBLINGS = 10
AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which a message may be sent again (OTLP 1.x, "Failures")."""
MOST_ANSWER = 65_536
"""Bytes of an answer that are read."""
SCOPE = "prompt-sidecar"

_KINDS = {
    SpanKind.INTERNAL: OtelKind.INTERNAL,
    SpanKind.SERVER: OtelKind.SERVER,
    SpanKind.CLIENT: OtelKind.CLIENT,
}


class _RefusedError(Exception):
    """The collector will not have these spans."""


class OtlpSender:
    """A bounded queue, and what empties it; never waited for by a request, and not for long by the drain."""

    def __init__(
        self, endpoint: str, *, version: str, instance: str, max_queue: int, timeout: float, interval: float = INTERVAL
    ) -> None:
        """`instance`: which of all sidecars this is; `timeout`: seconds for one message, and for the last ones."""
        self._endpoint = endpoint
        self._max_queue = max_queue
        self._timeout = timeout
        self._interval = interval
        own = {"service.name": SCOPE, "service.version": version, "service.instance.id": instance}
        self._resource = Resource(own).merge(OTELResourceDetector().detect())  # what the operator says counts
        self._scope = InstrumentationScope(SCOPE, version)
        self._queue: deque[Recorded] = deque()
        self._is_full = asyncio.Event()
        self._error: str | None = None
        self._lost = 0
        self.observe: Observer = lambda _: None
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": f"{SCOPE}/{version}"}
        self._session: aiohttp.ClientSession | None = None

    def add(self, span: Recorded) -> None:
        """Take a span that has ended; one too many is dropped."""
        if len(self._queue) >= self._max_queue:
            self._lose("queue_full", 1)
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH:
            self._is_full.set()

    async def run(self) -> None:
        """Send what comes, until cancelled."""
        failures = 0
        while True:
            if failures:
                await asyncio.sleep(min(self._interval * 2 ** (failures - 1), LONGEST_PAUSE))
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._is_full.wait()
            self._is_full.clear()
            failures = 0 if await self._send_all() else min(failures + 1, MOST_DOUBLINGS)

    async def close(self) -> None:
        """Send what is left, in the time for one message; count what could not be."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._send_all()
        finally:
            if self._queue:
                self._lose("unsent", len(self._queue))
                self._queue.clear()
            if self._session is not None:
                await self._session.close()

    async def _send_all(self) -> bool:
        """Empty the queue; say whether the collector answered."""
        while self._queue:
            batch = list(islice(self._queue, BATCH))  # they stay where they are, in case this is cancelled
            refused = 0
            try:
                async with asyncio.timeout(self._timeout):
                    refused = await self._post(await _encoded(batch, self._resource, self._scope))
            except _RefusedError as error:
                refused = len(batch)
                self._told(str(error))
            except TimeoutError:
                self._told("slow")
                return False
            except (aiohttp.ClientError, OSError):
                self._told("unreachable")
                return False
            else:
                self._told(None)
            for _ in batch:
                self._queue.popleft()
            self.observe(SpansEnded("exported", len(batch) - refused))
            if refused:
                self._lose("refused", refused)
        return True

    async def _post(self, body: bytes) -> int:
        """Send a message, and return how many of its spans the collector refused."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1), cookie_jar=aiohttp.DummyCookieJar(), headers=self._headers
            )
        async with self._session.post(self._endpoint, data=body, allow_redirects=False) as response:
            answer = await response.content.read(MOST_ANSWER)
        if response.status in AGAIN:
            raise aiohttp.ClientError(f"status {response.status}")
        if not 200 <= response.status < 300:
            raise _RefusedError(f"status {response.status}")
        try:
            return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
        except DecodeError:
            return 0  # it took them, and said so in its own way

    def _lose(self, how: str, count: int) -> None:
        self._lost += count
        self.observe(SpansEnded(how, count))

    def _told(self, error: str | None) -> None:
        """Tell of trouble when it begins and when it is over, and not of what lies between."""
        if (error is None) != (self._error is None):
            self.observe(CollectorChanged(error, self._lost))
            self._lost = 0
        self._error = error


async def _encoded(spans: Sequence[Recorded], resource: Resource, scope: InstrumentationScope) -> bytes:
    """Return one message; parts of it, put after each other, are the whole (Protocol Buffers, "Merging")."""
    parts = []
    for at in range(0, len(spans), ENCODED_AT_ONCE):
        readable = [_readable(span, resource, scope) for span in spans[at : at + ENCODED_AT_ONCE]]
        parts.append(encode_spans(readable).SerializeToString())
        await asyncio.sleep(0)
    return b"".join(parts)


def _readable(span: Recorded, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    return ReadableSpan(
        span.name,
        context=_context(span.trace_id, span.span_id),
        parent=None if span.parent_id is None else _context(span.trace_id, span.parent_id),
        resource=resource,
        attributes=span.attributes,
        links=[] if span.link is None else [Link(_context(span.link.trace_id, span.link.span_id))],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR if span.is_failed else StatusCode.UNSET),
        start_time=_nanoseconds(span.began_at),
        end_time=_nanoseconds(span.ended_at),
        instrumentation_scope=scope,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(1))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
