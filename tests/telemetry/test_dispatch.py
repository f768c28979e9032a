"""Each event to those who have a handler for it."""

from sidecar.core.events import Coalesced, Event, Evicted, FreshHit, Outcome, RequestOutcome
from sidecar.telemetry.dispatch import Dispatcher


def test_each_event_goes_to_all_who_handle_it_in_the_listeners_order() -> None:
    told: list[tuple[str, Event]] = []
    observe = Dispatcher(
        {Coalesced: lambda event: told.append(("first", event))},
        {
            Evicted: lambda event: told.append(("second", event)),
            Coalesced: lambda event: told.append(("second", event)),
        },
    )
    observe(Coalesced("explain"))
    observe(Evicted(None))
    assert told == [("first", Coalesced("explain")), ("second", Coalesced("explain")), ("second", Evicted(None))]


def test_what_nobody_handles_is_nobodys() -> None:
    Dispatcher()(Coalesced(None))
    Dispatcher({Evicted: lambda event: [][event]})(Coalesced(None))


def test_a_fresh_hit_goes_only_to_those_who_ask_for_fresh_hits() -> None:
    told: list[Event] = []
    observe = Dispatcher({RequestOutcome: told.append})
    observe(FreshHit("explain", Outcome.FRESH, 0.001, 0.0001, 1.0, None, 200))
    assert told == []
