"""What is passed on of a trace, and how a request can be found again."""

import asyncio
from dataclasses import dataclass

from sidecar.core.trace_context import Trace
from sidecar.service.trace import (
    NO_TRACER,
    current_request,
    current_trace,
    detached,
    example,
    request_id,
    trace_at_hand,
    trace_headers,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-00"


@dataclass
class Request:
    """What a request says of itself."""

    given_id: str | None = None
    trace: Trace | None = None
    id: str = "ours-1"


async def test_a_call_says_to_which_trace_it_belongs() -> None:
    assert trace_headers() == {}
    current_trace.set(Trace(PARENT))
    assert trace_headers() == {"traceparent": PARENT}
    current_trace.set(Trace(PARENT, "a=1"))
    assert trace_headers() == {"traceparent": PARENT, "tracestate": "a=1"}


async def test_a_sampled_trace_is_how_a_request_is_found_else_its_own_id() -> None:
    assert example() is None
    current_request.set(Request())
    assert example() is None  # nobody else knows an id of ours
    current_request.set(Request("a-1"))
    assert example() == ("request_id", "a-1")
    current_trace.set(Trace(UNSAMPLED))
    assert example() == ("request_id", "a-1")  # nobody kept that trace
    current_trace.set(Trace(PARENT))
    assert example() == ("trace_id", TRACE)


async def test_the_work_at_hand_is_where_its_request_said_until_it_is_elsewhere() -> None:
    assert (trace_at_hand(), request_id()) == (None, None)
    current_request.set(Request(trace=Trace(PARENT)))
    assert (trace_at_hand(), request_id()) == (Trace(PARENT), "ours-1")
    assert trace_headers() == {"traceparent": PARENT}
    current_trace.set(None)
    assert trace_at_hand() is None


async def test_what_nobody_waits_for_is_a_trace_of_its_own() -> None:
    async def headers() -> dict[str, str]:
        return trace_headers()

    with detached():
        assert trace_at_hand() is None
    current_trace.set(Trace(PARENT))
    with detached():
        task = asyncio.create_task(headers())
    assert trace_headers() == {"traceparent": PARENT}
    assert await task == {}


async def test_without_a_tracer_nothing_is_recorded() -> None:
    with NO_TRACER.span("outer") as outer, NO_TRACER.span("inner") as inner:
        NO_TRACER.note({"a": 1})
        assert outer is inner is None
        assert trace_at_hand() is None
