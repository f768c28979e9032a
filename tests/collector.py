"""A collector of traces: takes OTLP over HTTP and keeps what it reads, or fails in a way that collectors do."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass(frozen=True)
class Span:
    """A span as it came over the wire."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    is_failed: bool
    began_at: int
    ended_at: int
    resource: dict[str, Any]


class Collector:
    """`status`: what is answered; `hangs`: never; `refuses`: so many spans of each message."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.status = 200
        self.hangs = False
        self.refuses = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.hangs:
            await asyncio.Event().wait()
        if self.status != 200:
            return web.Response(status=self.status)
        assert request.content_type == "application/x-protobuf"
        self.bodies.append(body)
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.refuses
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")

    @property
    def spans(self) -> list[Span]:
        return [span for body in self.bodies for span in _read(body)]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (found,) = self.named(name)
        return found


def _read(body: bytes) -> Iterator[Span]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Span(
                    span.name,
                    KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    span.status.code == 2,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _attributes(resource_spans.resource.attributes),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Run a collector."""
    running = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", running.take)
    async with TestServer(app, shutdown_timeout=0.1) as server:
        running.url = str(server.make_url("/v1/traces"))
        yield running
