"""A sidecar that nobody listens to: no metric is counted, no line logged. For measuring, and no way to run one."""

from typing import cast

from sidecar import wiring
from sidecar.__main__ import main
from sidecar.telemetry.dispatch import Dispatcher, Handlers


class _Nobody(Dispatcher):
    def listen(self, *listeners: Handlers) -> None:
        """Hand nothing on."""
        super().listen(*(cast("Handlers", {}) for _ in listeners))


if __name__ == "__main__":
    assert wiring.Dispatcher is Dispatcher  # type: ignore[attr-defined] # or this would replace nothing
    setattr(wiring, "Dispatcher", _Nobody)  # noqa: B010 — it is no part of its interface
    main()
