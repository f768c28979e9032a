"""The ops listener on the wire: liveness, readiness, metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.cache.memory import MemoryCache
from sidecar.server import ops
from sidecar.server.ops import ops_routes
from sidecar.telemetry.metrics import Metrics
from tests.fakes import loop_time
from tests.wire import Wire, get, serving, until, wire

PATHS = ["/livez", "/readyz", "/metrics"]


class Pod:
    """Ready or not."""

    ready = True


@asynccontextmanager
async def scraping(pod: Pod | None = None) -> AsyncIterator[Wire]:
    of = pod or Pod()
    metrics = Metrics(version="1.2.3", cache=MemoryCache(max_entries=1, max_bytes=1, clock=loop_time))
    routes = ops_routes(ready=lambda: of.ready, metrics=metrics.scrape)
    async with serving(routes) as served, wire(served.port) as client:
        yield client
        assert served.events == []


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez?verbose", "/readyz?exclude=x"])
async def test_a_probe_is_answered_in_plain_text(path: str) -> None:
    async with scraping() as client:
        answer = await client.ask(get(path))
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"


async def test_readiness_follows_the_pod_and_liveness_does_not() -> None:
    pod = Pod()
    async with scraping(pod) as client:
        pod.ready = False
        answer = await client.ask(get("/readyz"))
        assert answer.status == 503
        assert answer.problem()["detail"] == "The sidecar is starting or draining."
        assert (await client.ask(get("/livez"))).status == 200
        pod.ready = True
        assert (await client.ask(get("/readyz"))).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_head_answers_as_get_does_without_the_body(path: str) -> None:
    async with scraping() as client:
        whole = await client.ask(get(path))
        await client.send(get(path, method="HEAD"))
        head = await client.answer(to_head=True)
        assert (head.status, head.header("Content-Type")) == (whole.status, whole.header("Content-Type"))
        assert int(head.header("Content-Length") or 0) > 0
        assert (await client.ask(get("/livez"))).body == b"ok\n"  # nothing of a body came before


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_405(path: str, method: str) -> None:
    async with scraping() as client:
        answer = await client.ask(get(path, "Content-Length: 0", method=method))
        assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD")
        assert answer.problem()


@pytest.mark.parametrize("path", ["/page", "/healthz", "/api/v1/generate-prompt", "/admin/warm"])
async def test_there_is_nothing_else(path: str) -> None:
    async with scraping() as client:
        assert (await client.ask(get(path))).problem()["status"] == 404


PROMETHEUS = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("X-Accept: none", "text/plain; version=0.0.4; charset=utf-8", None),
        ("Accept: */*", "text/plain; version=0.0.4; charset=utf-8", None),
        ("Accept: text/plain", "text/plain; version=0.0.4; charset=utf-8", None),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores", b"# EOF\n"),
    ],
    ids=["none", "anything", "plain", "Prometheus"],
)
async def test_metrics_come_in_the_format_that_is_accepted(accept: str, content_type: str, end: bytes | None) -> None:
    async with scraping() as client:
        answer = await client.ask(get("/metrics", accept))
        assert answer.status == 200
        assert answer.header("Content-Type") == content_type
        assert end is None or answer.body.endswith(end)


async def test_a_scraper_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "SCRAPE_SECONDS", 0.05)

    async def much(_: str | None) -> tuple[bytes, str]:
        return b"x" * (64 << 20), "text/plain"  # more than the kernel keeps for those who do not read

    async with serving(ops_routes(ready=lambda: True, metrics=much)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
        writer.write(get("/metrics"))
        await until(lambda: len(served.server.connections) == 1)
        await until(lambda: len(served.server.connections) == 0)
        writer.close()
        with suppress(ConnectionError):
            await reader.read()
            await writer.wait_closed()
        assert served.events == []


async def test_metrics_can_be_parsed_and_carry_our_prefix() -> None:
    async with scraping() as client:
        answer = await client.ask(get("/metrics"))
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    (build,) = families["prompt_sidecar_build_info"].samples
    assert build.labels == {"version": "1.2.3"}
    assert all(family.documentation for family in families.values())
