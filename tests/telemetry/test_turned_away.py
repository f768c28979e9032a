"""Who was turned away: each counted, and told in few lines, since strangers can cause it at will."""

import json
from io import StringIO

import pytest
import structlog

from sidecar.cache.memory import MemoryCache
from sidecar.core.events import Event, Refused, Shed
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.logs import LEVELS, SUMMED_SECONDS, LogListener
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


def test_many_are_told_in_one_line_with_their_number() -> None:
    stream, now = StringIO(), [0.0]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS["info"]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    observe = Dispatcher(LogListener(lambda: now[0]).handlers())
    for at in (0.0, 0.1, SUMMED_SECONDS - 0.1, SUMMED_SECONDS):
        now[0] = at
        observe(Refused("token"))
    observe(Shed("bodies"))
    observe(Refused("host"))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "request_refused", "level": "warning", "reason": "token", "times": 1},
        {"event": "request_refused", "level": "warning", "reason": "token", "times": 3},
        {"event": "request_shed", "level": "warning", "reason": "bodies", "times": 1},
        {"event": "request_refused", "level": "warning", "reason": "host", "times": 1},
    ]
