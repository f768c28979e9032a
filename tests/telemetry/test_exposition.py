"""A scrape is made in slices, the same bytes as at once."""

import asyncio
import subprocess
from collections.abc import Iterable

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.cache.memory import MemoryCache
from sidecar.core.events import Outcome, RequestOutcome
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.exposition import Exposition
from sidecar.telemetry.metrics import Metrics
from tests.needs import program
from tests.telemetry.test_metrics import ONE_OF_EACH, OPENMETRICS, Scraped

FORMATS = [None, OPENMETRICS]


def with_nodes(count: int) -> Metrics:
    metrics = Metrics(version="1", cache=MemoryCache(max_entries=1, max_bytes=1, clock=lambda: 0.0))
    observe = Dispatcher(metrics.handlers())
    for n in range(count):
        for outcome in Outcome:
            observe(RequestOutcome(f"node {n}", outcome, 0.01, 0.0, 1.0, None, 200))
    return metrics


class Counting(Collector):
    """How often it was read, told as a metric."""

    def __init__(self) -> None:
        self.reads = 0

    def collect(self) -> Iterable[Metric]:
        self.reads += 1
        yield GaugeMetricFamily("reads", "Reads.", value=self.reads)


@pytest.mark.parametrize("accept", FORMATS, ids=["text", "OpenMetrics"])
async def test_in_slices_it_is_the_same_as_at_once(accept: str | None) -> None:
    metrics = with_nodes(30)
    body, content_type = await metrics.scrape(accept)
    at_once, same_type = metrics.expose(accept)
    assert content_type == same_type

    def ours(text: bytes) -> list[bytes]:  # the process's own figures change meanwhile
        return [line for line in text.splitlines() if b"prompt_sidecar_" in line or line == b"# EOF"]

    assert ours(body) == ours(at_once)


@pytest.mark.parametrize("accept", FORMATS, ids=["text", "OpenMetrics"])
async def test_each_family_is_announced_once_however_many_parts_it_has(accept: str | None) -> None:
    body, _ = await with_nodes(30).scrape(accept)
    heads = [line for line in body.splitlines() if line.startswith((b"# TYPE", b"# HELP"))]
    assert len(heads) == len(set(heads))
    families = [line.split()[2] for line in body.splitlines() if line.startswith(b"# TYPE")]
    assert len(families) == len(set(families))


async def test_others_have_their_turn_while_a_large_scrape_is_made() -> None:
    metrics = with_nodes(100)
    turns = 0

    async def live() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    traffic = asyncio.ensure_future(live())
    try:
        await metrics.scrape(None)
    finally:
        traffic.cancel()
    assert turns > 10


async def test_ten_scrapers_at_once_share_the_work() -> None:
    counting, metrics = Counting(), with_nodes(30)
    metrics.registry.register(counting)
    before = counting.reads
    answers = await asyncio.gather(*(metrics.scrape(None) for _ in range(10)))
    assert counting.reads - before == 2  # the first had begun when the others came
    assert len({body for body, _ in answers}) == 2
    await metrics.scrape(None)
    assert counting.reads - before == 3


async def test_each_format_is_answered_in_its_own() -> None:
    exposition = Exposition(Counting())
    (plain, _), (openmetrics, content_type) = await asyncio.gather(
        exposition.in_slices(None), exposition.in_slices(OPENMETRICS)
    )
    assert openmetrics.endswith(b"# EOF\n")
    assert b"# EOF" not in plain
    assert content_type.startswith(OPENMETRICS)


async def test_a_scraper_that_gives_up_holds_nobody_up() -> None:
    metrics = with_nodes(100)
    gone = asyncio.ensure_future(metrics.scrape(None))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (await metrics.scrape(None))[0].count(b"sidecar_request_duration_seconds_count") == 500


def test_no_series_says_when_another_began() -> None:
    scraped = Scraped().tell(*ONE_OF_EACH)
    assert b"_created" not in scraped.metrics.expose(None)[0]
    assert b"_created" not in scraped.metrics.expose(OPENMETRICS)[0]


def test_promtool_has_nothing_to_say_against_it() -> None:
    promtool = program("promtool", from_="the Debian package prometheus")
    body, _ = Scraped().tell(*ONE_OF_EACH).metrics.expose(None)
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
