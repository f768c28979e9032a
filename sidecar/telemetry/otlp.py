"""Ended spans to a collector, by OTLP over HTTP. The only module that imports OpenTelemetry (extra `otel`).

Instead of the SDK's tracer and batch processor: they cost five times as much for each span (measured), encode hundreds
at a time in a thread, which takes the interpreter's lock from the event loop, drop spans without a word, and at the end
block until the thread has given up.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status, TracesData
from opentelemetry.sdk.resources import OTELResourceDetector

from sidecar.core.events import CollectorChanged, Crashed, SpansEnded
from sidecar.service.ports import Observer
from sidecar.service.trace import SpanKind
from sidecar.telemetry.tracing import Recorded

BATCH = 256
"""Spans in one message."""
ENCODED_AT_ONCE = 16
"""Spans encoded before others have their turn: each takes about 20 µs."""
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

SAMPLED = 1
MOST_ATTRIBUTES = 4096
"""Attributes that are remembered as encoded: some 100 bytes each."""

KINDS = {
    SpanKind.INTERNAL: Span.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: Span.SPAN_KIND_SERVER,
    SpanKind.CLIENT: Span.SPAN_KIND_CLIENT,
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
        self._resource = _resource(version, instance)
        self._scope = InstrumentationScope(name=SCOPE, version=version)
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
            except Exception as error:  # noqa: BLE001 — nobody foresaw it; traces are optional all the same
                refused = len(batch)
                self.observe(Crashed("send-traces", error))
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
        scoped = ScopeSpans(scope=scope, spans=map(_encode, spans[at : at + ENCODED_AT_ONCE]))
        parts.append(
            TracesData(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scoped])]).SerializeToString()
        )
        await asyncio.sleep(0)
    return b"".join(parts)


def _encode(span: Recorded) -> Span:
    encoded = Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        flags=SAMPLED,
        name=span.name,
        kind=KINDS[span.kind],
        start_time_unix_nano=round(span.began_at * 1e9),
        end_time_unix_nano=round(span.ended_at * 1e9),
        attributes=[
            _number(name, value) if isinstance(value, float) else _attribute(name, value)
            for name, value in span.attributes.items()
        ],
    )
    if span.is_failed:
        encoded.status.code = Status.STATUS_CODE_ERROR
    if span.link is not None:
        ids = bytes.fromhex(span.link.trace_id), bytes.fromhex(span.link.span_id)
        encoded.links.append(Span.Link(trace_id=ids[0], span_id=ids[1], flags=SAMPLED))
    return encoded


def _number(name: str, value: float) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(double_value=value))


@lru_cache(maxsize=MOST_ATTRIBUTES, typed=True)
def _attribute(name: str, value: str | int) -> KeyValue:
    """Return an attribute; most are the same from span to span, and making them is most of an encoding's cost."""
    match value:
        case bool():
            return KeyValue(key=name, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=name, value=AnyValue(int_value=value))
        case _:
            return KeyValue(key=name, value=AnyValue(string_value=value))


def _text(value: object) -> str:
    """Return a text that can be encoded, whatever the environment holds."""
    return str(value).encode("utf-8", "replace").decode()


def _resource(version: str, instance: str) -> Resource:
    """Say who sends; what the operator says in OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME counts."""
    own = {"service.name": SCOPE, "service.version": version, "service.instance.id": instance}
    said = {name: _text(value) for name, value in OTELResourceDetector().detect().attributes.items()}
    return Resource(attributes=[_attribute(name, value) for name, value in (own | said).items()])
