"""Who was turned away is counted; the log sums it up, as it does all that strangers can cause at will."""

import pytest

from sidecar.cache.memory import MemoryCache
from sidecar.core.events import Event, Refused, Shed
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.metrics import Metrics

REFUSED = ("host", "cross_site", "token", "slow_head", "slow_reader")
SHED = ("connections", "ops_connections", "bodies", "waiting")


@pytest.mark.parametrize(
    ("event", "sample"),
    [
        *((Refused(reason), f'prompt_sidecar_requests_refused_total{{reason="{reason}"}}') for reason in REFUSED),
        *((Shed(reason), f'prompt_sidecar_requests_shed_total{{reason="{reason}"}}') for reason in SHED),
    ],
)
def test_each_is_counted_from_nought(event: Event, sample: str) -> None:
    metrics = Metrics(version="1", cache=MemoryCache(max_entries=1, max_bytes=1, clock=lambda: 0.0))
    observe = Dispatcher(metrics.handlers())
    assert f"{sample} 0.0" in metrics.expose(None)[0].decode()
    observe(event)
    observe(event)
    assert f"{sample} 2.0" in metrics.expose(None)[0].decode()
