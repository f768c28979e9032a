"""Each event to the listeners that have a handler for it."""

from collections.abc import Callable, Mapping
from typing import Any

from sidecar.core.events import Event

Handlers = Mapping[type[Event], Callable[[Any], None]]
"""What a listener handles: the event's type → what takes it."""


def dispatcher(*listeners: Handlers) -> Callable[[Event], None]:
    """Return the observer that hands each event on, in the listeners' order."""
    table: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}
    for listener in listeners:
        for kind, handle in listener.items():
            table[kind] = (*table.get(kind, ()), handle)

    def observe(event: Event) -> None:
        for handle in table.get(type(event), ()):
            handle(event)

    return observe
