"""W3C Trace Context, level 1: what is read of the two headers, and what is not."""

import pytest

from sidecar.core.trace_context import MOST_MEMBERS, MOST_STATE, Trace, trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_says_trace_parent_and_whether_it_is_sampled() -> None:
    assert trace_of([PARENT]) == Trace(PARENT)
    found = Trace(PARENT)
    assert (found.trace_id, found.span_id, found.is_sampled) == (TRACE, SPAN, True)
    assert not Trace(f"00-{TRACE}-{SPAN}-00").is_sampled
    assert not Trace(f"00-{TRACE}-{SPAN}-fe").is_sampled
    assert Trace(f"00-{TRACE}-{SPAN}-ff").is_sampled


@pytest.mark.parametrize(
    "traceparent",
    [
        PARENT,
        f"00-{TRACE}-{SPAN}-ff",
        f"cc-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
        f"01-{TRACE}-{SPAN}-01-",
    ],
)
def test_a_later_version_is_read_as_far_as_it_is_known_and_passed_on_as_it_came(traceparent: str) -> None:
    found = trace_of([traceparent])
    assert found is not None
    assert (found.traceparent, found.trace_id, found.span_id, found.is_sampled) == (traceparent, TRACE, SPAN, True)


@pytest.mark.parametrize(
    "traceparents",
    [
        [],
        [PARENT, PARENT],
        [""],
        ["nonsense"],
        [PARENT.upper()],
        [f"{PARENT}\n"],
        [f" {PARENT}"],
        [f"{PARENT}, {PARENT}"],
        [f"{PARENT}-01"],
        [PARENT[:-1]],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"cc-{TRACE}-{SPAN}-01.what"],
        [f"cc-{TRACE}-{SPAN}-0"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE[:-1]}-{SPAN}-01"],
        [f"00-{TRACE[:-1]}٣-{SPAN}-01"],
        [f"00_{TRACE}_{SPAN}_01"],
    ],
)
def test_what_is_no_traceparent_is_no_trace(traceparents: list[str]) -> None:
    assert trace_of(traceparents, ["a=b"]) is None


LONG = [f"k{n}={'v' * 60}" for n in range(10)]


@pytest.mark.parametrize(
    ("tracestates", "passed_on"),
    [
        ([], ""),
        (["congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"], "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        (["congo=t61rcWkgMzE", "rojo=1"], "congo=t61rcWkgMzE,rojo=1"),
        (["a=1 ,\t b=2, ,"], "a=1,b=2"),
        (["fw529a3039@dt=FfAAQ,a/b*c-d_e= ~!"], "fw529a3039@dt=FfAAQ,a/b*c-d_e= ~!"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["1a=1"], ""),
        (["a"], ""),
        (["a="], ""),
        (["a=b=c"], ""),
        (["a=ü"], ""),
        ([f"{'a' * 257}=1"], ""),
        ([f"a={'v' * 257}"], ""),
        ([",".join(f"k{n}=v" for n in range(MOST_MEMBERS))], ",".join(f"k{n}=v" for n in range(MOST_MEMBERS))),
        ([",".join(f"k{n}=v" for n in range(MOST_MEMBERS + 1))], ""),
        ([",".join(LONG)], ",".join(LONG[:8])),
    ],
)
def test_a_tracestate_is_passed_on_within_limits_or_not_at_all(tracestates: list[str], passed_on: str) -> None:
    assert trace_of([PARENT], tracestates) == Trace(PARENT, passed_on)
    assert len(passed_on) <= MOST_STATE
