"""Which trace a request belongs to (W3C Trace Context §3.2)."""

import pytest

from sidecar.service.trace import Trace, trace_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("traceparent", "request_id", "known"),
    [
        (PARENT, None, Trace("trace_id", TRACE, SPAN)),
        (PARENT, "abc-1", Trace("trace_id", TRACE, SPAN)),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-holds", None, Trace("trace_id", TRACE, SPAN)),
        (None, "abc-1", Trace("request_id", "abc-1")),
        ("nonsense", "abc-1", Trace("request_id", "abc-1")),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None, None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None, None),
        (f"00-{TRACE}-{'0' * 16}-01", None, None),
        (PARENT.upper(), None, None),
        (f"{PARENT}\n", None, None),
        (None, 'a"b', None),
        (None, "a b", None),
        (None, "x" * 65, None),
        (None, "", None),
        (None, None, None),
    ],
)
def test_the_trace_comes_first_then_the_requests_id_then_none(
    traceparent: str | None, request_id: str | None, known: Trace | None
) -> None:
    assert trace_of(traceparent, request_id) == known
