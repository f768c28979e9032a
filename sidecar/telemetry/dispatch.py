"""Each event to the listeners that have a handler for it."""

from collections.abc import Callable, Mapping
from typing import Any

from sidecar.core.events import Event

Handlers = Mapping[type[Event], Callable[[Any], None]]
"""What a listener handles: the event's type → what takes it."""


class Dispatcher:
    """The observer that hands each event on, in the listeners' order."""

    def __init__(self, *listeners: Handlers) -> None:
        self._table: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}
        self.listen(*listeners)

    def listen(self, *listeners: Handlers) -> None:
        """Hand on to these from now on, and to no others."""
        table: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}
        for listener in listeners:
            for kind, handle in listener.items():
                table[kind] = (*table.get(kind, ()), handle)
        self._table = table

    def __call__(self, event: Event) -> None:
        """Hand an event on."""
        for handle in self._table.get(type(event), ()):
            handle(event)
