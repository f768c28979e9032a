"""A sidecar that nobody listens to: no metric is counted, no line logged. For measuring, and no way to run one."""

from collections.abc import Callable

from sidecar import wiring
from sidecar.__main__ import main
from sidecar.core.events import Event
from sidecar.telemetry.dispatch import Handlers


def _nobody(*_: Handlers) -> Callable[[Event], None]:
    return lambda _: None


if __name__ == "__main__":
    setattr(wiring, "dispatcher", _nobody)  # noqa: B010 — it is no part of its interface
    main()
