"""What telemetry costs a fresh hit, listener by listener: `python -m benchmarks.listeners`."""

import time
from timeit import repeat

from sidecar.cache.memory import MemoryCache
from sidecar.core.events import FreshHit, Outcome
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.history import RequestHistory
from sidecar.telemetry.metrics import Metrics

TIMES = 200_000
EVENT = FreshHit("explain", Outcome.FRESH, 0.0004, 0.00001, 30.0, None, 200)


def main() -> None:
    """Print nanoseconds an event, counting included: the best of seven runs, in processor time."""
    metrics = Metrics(
        version="0", cache=MemoryCache(max_entries=1, max_bytes=1, clock=time.monotonic), clock=time.monotonic
    )
    history = RequestHistory(time.monotonic)
    for name, listeners in (
        ("nobody", ()),
        ("metrics", (metrics.handlers(),)),
        ("history", (history.handlers(),)),
        ("both", (metrics.handlers(), history.handlers())),
    ):
        observe = Dispatcher(*listeners)
        best = min(repeat(lambda: observe(EVENT), timer=time.process_time, number=TIMES, repeat=7))  # noqa: B023 — called at once
        print(f"{name:8} {best / TIMES * 1e9:6.0f} ns")


if __name__ == "__main__":
    main()
