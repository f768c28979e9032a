"""Which spans are recorded, and what is said in them."""

import asyncio
from collections import Counter

import pytest

from sidecar.core.events import Event, FreshHit, Outcome, RequestOutcome, UpstreamAttempt
from sidecar.core.trace_context import Trace
from sidecar.service.trace import SpanKind, current_trace, detached, trace_at_hand, trace_headers
from sidecar.telemetry.dispatch import Dispatcher
from sidecar.telemetry.tracing import Recorded, Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (Trace(f"00-{TRACE}-{PARENT}-0{flag}", "a=1") for flag in (1, 0))


class Spans:
    """What was sent, by a clock that a test moves."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self.sent: list[Recorded] = []
        self.now = 0.0
        self.tracing = Tracing(
            self.sent.append, sample_ratio=sample_ratio, clock=lambda: self.now, wall=lambda: 1_000.0 + self.now
        )
        self.span = self.tracing.span
        self.observe = Dispatcher(self.tracing.handlers())

    def tell(self, event: Event) -> None:
        self.observe(event)

    @property
    def only(self) -> Recorded:
        (found,) = self.sent
        return found


async def test_spans_lie_within_each_other_and_last_as_long_as_the_work() -> None:
    spans = Spans()
    with spans.span("outer", kind=SpanKind.SERVER):
        spans.now = 1.0
        with spans.span("inner"):
            spans.now = 3.0
    inner, outer = spans.sent
    assert (outer.name, outer.kind, outer.parent_id, outer.began_at, outer.ended_at) == (
        *("outer", SpanKind.SERVER, None),
        *(1_000.0, 1_003.0),
    )
    assert (inner.name, inner.parent_id, inner.trace_id) == ("inner", outer.span_id, outer.trace_id)
    assert (inner.began_at, inner.ended_at) == (1_001.0, 1_003.0)
    assert trace_at_hand() is None


async def test_a_request_that_brings_a_trace_is_part_of_it_and_so_is_what_goes_on() -> None:
    spans = Spans(sample_ratio=0.0)
    current_trace.set(SAMPLED)
    with spans.span("request"):
        headers = trace_headers()
    assert (spans.only.trace_id, spans.only.parent_id) == (TRACE, PARENT)
    assert headers == {"traceparent": f"00-{TRACE}-{spans.only.span_id}-01", "tracestate": "a=1"}


async def test_what_the_client_does_not_sample_is_passed_on_as_it_came() -> None:
    spans = Spans(sample_ratio=1.0)
    current_trace.set(UNSAMPLED)
    with spans.span("request") as span:
        assert span is None
        assert trace_headers() == {"traceparent": UNSAMPLED.traceparent, "tracestate": "a=1"}
    assert spans.sent == []


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
async def test_so_many_of_the_traces_that_begin_here_are_sampled_and_each_is_whole(ratio: float) -> None:
    spans, told = Spans(ratio), []
    for _ in range(2_000):
        with spans.span("outer"), spans.span("inner"):
            told.append(trace_headers()["traceparent"])
    assert abs(len(spans.sent) / 2 - ratio * 2_000) <= 150
    assert set(Counter(span.trace_id for span in spans.sent).values()) <= {2}
    sampled = {traceparent[3:35] for traceparent in told if traceparent.endswith("-01")}
    assert sampled == {span.trace_id for span in spans.sent}
    assert all(int(each, 16) & (2**64 - 1) < ratio * 2**64 for each in sampled)  # as others decide it, too


async def test_a_task_that_nobody_waits_for_is_a_trace_of_its_own_with_a_link() -> None:
    spans = Spans(sample_ratio=0.0)

    async def fetch() -> None:
        spans.tracing.note({"not": "in the request's span"})
        with spans.span("fetch"):
            pass

    current_trace.set(SAMPLED)
    with spans.span("request"), detached():
        task = asyncio.create_task(fetch())
    await task
    request, fetched = spans.sent
    assert fetched.trace_id != request.trace_id == TRACE
    assert fetched.parent_id is None
    assert fetched.link is not None
    assert (fetched.link.trace_id, fetched.link.span_id) == (TRACE, request.span_id)
    assert request.attributes == {}


async def test_an_exception_fails_the_span_by_its_kind_and_never_by_its_text() -> None:
    spans = Spans()
    with pytest.raises(ValueError, match="secret"), spans.span("request"):
        raise ValueError("secret")
    assert spans.only.is_failed
    assert spans.only.attributes == {"error.type": "ValueError"}


async def test_a_request_that_is_given_up_is_cancelled() -> None:
    spans = Spans()
    with pytest.raises(asyncio.CancelledError), spans.span("request"):
        raise asyncio.CancelledError
    assert spans.only.attributes == {"error.type": "cancelled"}


async def test_a_requests_span_says_how_it_was_answered_and_when_it_was_rendered() -> None:
    spans = Spans()
    with spans.span("request"):
        spans.now = 2.0
        spans.tell(FreshHit("explain", Outcome.FRESH, 2.0, 0.5, 12.5, None, 200))
    render, request = spans.sent
    assert request.attributes == {
        "prompt_sidecar.outcome": "fresh",
        "prompt_sidecar.node": "explain",
        "prompt_sidecar.age_seconds": 12.5,
    }
    assert (render.name, render.parent_id, render.trace_id) == ("render", request.span_id, request.trace_id)
    assert (render.began_at, render.ended_at) == (1_001.5, 1_002.0)


async def test_a_node_that_nobody_confirmed_is_not_named_and_what_was_not_rendered_here_has_no_such_span() -> None:
    spans = Spans()
    with spans.span("request"):
        spans.tell(RequestOutcome(None, Outcome.BYPASS, 2.0, None, 0.0, "rollout", 200))
    assert spans.only.attributes == {
        "prompt_sidecar.outcome": "bypass",
        "prompt_sidecar.age_seconds": 0.0,
        "prompt_sidecar.detail": "rollout",
    }


@pytest.mark.parametrize(("status", "failed"), [(503, True), (422, False)])
async def test_a_5xx_fails_a_requests_span_and_what_the_client_did_wrong_does_not(status: int, *, failed: bool) -> None:
    spans = Spans()
    with spans.span("request"):
        spans.tell(RequestOutcome(None, Outcome.ERROR, 2.0, 0.0, None, "circuit_open", status))
    assert spans.only.is_failed is failed
    assert spans.only.attributes.get("error.type") == ("circuit_open" if failed else None)


async def test_an_attempts_span_says_how_it_ended() -> None:
    spans = Spans()
    for result in ("ok", "not_modified", "reset"):
        with spans.span(result):
            spans.tell(UpstreamAttempt("prompt-data", result, 0.1))
    assert [(span.attributes["prompt_sidecar.result"], span.is_failed) for span in spans.sent] == [
        ("ok", False),
        ("not_modified", False),
        ("reset", True),
    ]


async def test_where_no_span_is_open_nothing_is_noted() -> None:
    spans = Spans()
    spans.tell(FreshHit("explain", Outcome.FRESH, 2.0, 0.5, 12.5, None, 200))
    spans.tell(UpstreamAttempt("prompt-data", "ok", 0.1))
    assert spans.sent == []
