"""Why a sidecar is degraded: each row of the table, from a healthy status with one thing wrong."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from sidecar.core.health import MOST_NAMED, ROWS, duration, judged
from sidecar.core.status import (
    Circuit,
    Counts,
    LastError,
    Latency,
    Level,
    Memory,
    Minute,
    Node,
    NodeParity,
    Parity,
    Reload,
    Requests,
    State,
    Status,
    Store,
    TemplatesFile,
    Upstream,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOTHING = Counts(0, 0, 0, 0, 0, 0, 0, 0, None)
RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def failed(count: int, of: int = 10) -> Counts:
    return replace(NOTHING, requests=of, error=count, failed=count, fresh=of - count)


def minutes(*counts: Counts) -> list[Minute]:
    return [Minute(ago(60.0 * (len(counts) - n)), each, Latency(0, 0, 0)) for n, each in enumerate(counts)]


def node(name: str = "explain", **parts: Any) -> Node:
    plain = Node(
        name, NOTHING, NOTHING, NOW, "fresh", 5.0, None, None, 1.0, NodeParity(0, 0, None), None, {"strategy": "auto"}
    )
    return replace(plain, **parts)


def status(**parts: Any) -> Status:
    well = Status(
        state=State.HEALTHY,
        reasons=[],
        version="1",
        ready=True,
        warnings=[],
        at=NOW,
        started_at=ago(7200),
        upstream=Upstream("http://u", "auto", "prompt-data", 60.0, "closed", NOW, None, None, None, None, None),
        circuits=[Circuit("upstream", "closed", ago(7200), None, [])],
        not_admitted={},
        rollout={},
        parity=Parity({}),
        cache=Memory(1, 1),
        reload=Reload(ago(7200), [], None, []),
        nodes=[node()],
        requests=Requests(NOTHING, NOTHING, Latency(0, 0, 0), 60.0, 60, []),
        settings={},
    )
    return replace(well, **parts)


FAILS = Upstream(
    "http://u",
    "auto",
    None,
    None,
    "closed",
    ago(70),
    ago(60),
    LastError("read_timeout", ago(1)),
    "prompt-data",
    None,
    None,
)
STORE = Store("file", None, None, None, 1, 1, 0)


def only(**parts: Any) -> tuple[str, str, datetime | None]:
    """Return the one reason: kind, sentence, since."""
    state, (reason,) = judged(status(**parts))
    assert state is State.DEGRADED
    return reason.kind, reason.sentence, reason.since


def test_a_sidecar_with_nothing_wrong_is_healthy() -> None:
    assert judged(status()) == (State.HEALTHY, [])
    assert judged(status(store=STORE, templates_file=TemplatesFile("p", ["a"], None, None))) == (State.HEALTHY, [])


def test_each_reason_has_a_runbook_and_the_worst_come_first() -> None:
    assert [row.runbook for row in ROWS if not (RUNBOOKS / f"{row.runbook}.md").exists()] == []
    assert [row.level for row in ROWS] == sorted((row.level for row in ROWS), key=[*Level].index)
    assert len({row.kind for row in ROWS}) == len({row.title for row in ROWS}) == len(ROWS)


def test_requests_that_fail_are_told_with_their_nodes_and_since_when() -> None:
    of = Requests(failed(3), failed(9), Latency(0, 0, 0), 60.0, 60, minutes(failed(1), failed(0), failed(4), failed(2)))
    assert only(requests=of, nodes=[node(recent=failed(3)), node("quiz")]) == (
        "requests_failing",
        "explain: 3 of the last 10 requests ended without a prompt; LearnFlow's users see errors.",
        ago(120),
    )


def test_requests_began_to_fail_with_the_service_if_that_was_later_than_their_minute() -> None:
    of = Requests(failed(3), failed(3), Latency(0, 0, 0), 60.0, 60, minutes(failed(3), failed(0)))
    _, reasons = judged(status(requests=of, upstream=FAILS))
    assert [(each.kind, each.since) for each in reasons] == [
        ("requests_failing", ago(60)),
        ("upstream_failing", ago(60)),
    ]


def test_a_single_request_that_fails_is_told_in_the_singular() -> None:
    of = Requests(failed(1, 1), failed(1, 1), Latency(0, 0, 0), 60.0, 60, [])
    assert only(requests=of, nodes=[node(recent=failed(1, 1))]) == (
        "requests_failing",
        "explain: 1 of the last 1 request ended without a prompt; LearnFlow's users see errors.",
        None,
    )


def test_what_is_covered_is_told_by_node_age_and_end() -> None:
    covered = [
        node("a", cover_left_seconds=700.0, age_seconds=90.0, covered_since=ago(60)),
        node("b", cover_left_seconds=600.0, age_seconds=None, covered_since=ago(90)),
    ]
    assert only(nodes=[*covered, node("c")]) == (
        "serving_stale",
        (
            "a, b: prompts are made from stale data, up to 1 min 30 s old, because the config service gives none; "
            "the policy allows it for 10 min more."
        ),
        ago(90),
    )


def test_a_cover_that_has_ended_is_told_so() -> None:
    kind, sentence, since = only(nodes=[node(cover_left_seconds=0.0, age_seconds=None)])
    assert (kind, since) == ("serving_stale", None)
    assert sentence == (
        "explain: prompts are made from stale data because the config service gives none; "
        "the policy's time for it is over."
    )


def test_many_nodes_are_counted_and_long_names_are_cut() -> None:
    names = ["x" * 10_000, *(f"n{n}" for n in range(MOST_NAMED + 1))]
    _, sentence, _ = only(nodes=[node(name, cover_left_seconds=9.0) for name in names])
    assert sentence.startswith("n0, n1, n2 and 2 more nodes: ")
    _, sentence, _ = only(nodes=[node(names[0], cover_left_seconds=9.0)])
    assert sentence.startswith(f"{'x' * 60}…: ")


@pytest.mark.parametrize(
    ("state", "wait", "trial"),
    [
        ("open", 9.5, "the next trial call in 9 s"),
        ("open", None, "a trial call may go out now"),
        ("half-open", 1.0, "the next trial call in 1 s"),
    ],
)
def test_a_circuit_that_is_not_closed_is_told_with_its_cause_and_the_next_trial(
    state: str, wait: float | None, trial: str
) -> None:
    circuit = Circuit("upstream", state, ago(30), wait, [])
    assert only(upstream=replace(FAILS, circuit=state), circuits=[circuit]) == (
        "circuit_open",
        f"The circuit to the config service is {state} (no answer in time); {trial}.",
        ago(60),
    )
    assert only(circuits=[circuit])[2] == ago(30)


def test_another_circuit_is_no_reason_by_itself() -> None:
    assert judged(status(circuits=[Circuit("redis", "open", NOW, None, [])])) == (State.HEALTHY, [])


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_circuit_that_is_held_is_a_reason_of_its_own(state: str) -> None:
    circuit = Circuit("upstream", state, ago(30), None, [], 300.0)
    says = f"The circuit to the config service is held {state} by hand, for 5 min more."
    assert only(circuits=[circuit]) == ("circuit_held", says, ago(30))


@pytest.mark.parametrize(("error", "why"), [("read_timeout", "no answer in time"), ("new_word", "new_word")])
def test_a_service_that_fails_is_told_with_its_last_error(error: str, why: str) -> None:
    fails = replace(FAILS, last_error=LastError(error, NOW))
    assert only(upstream=fails) == ("upstream_failing", f"Calls to the config service fail ({why}).", ago(60))


def test_the_other_parts_are_told_each_for_itself() -> None:
    assert only(ready=False)[0] == "not_ready"
    aside = node(parity=NodeParity(1, 2, ago(5)))
    assert only(parity=Parity({"explain": "abc"}), nodes=[aside])[::2] == ("parity_rollback", ago(5))
    assert only(parity=Parity({"gone": "abc"}))[::2] == ("parity_rollback", None)
    assert only(store=replace(STORE, error="full", failing_since=ago(3))) == (
        "store_aside",
        "The file store is set aside (full): a restart now would lose what is kept.",
        ago(3),
    )
    file = TemplatesFile("p", ["a"], "p, line 3: is not a text", ago(4))
    assert only(templates_file=file) == (
        "templates_rejected",
        "The template file was not taken, the old templates are in force. p, line 3: is not a text.",
        ago(4),
    )
    assert only(reload=Reload(NOW, ["a: no", "b: no"], ago(2), [])) == (
        "reload_failed",
        "New settings were not taken, the old ones are in force. a: no. And 1 more.",
        ago(2),
    )
    assert only(reload=Reload(NOW, ["a: no"], ago(2), []))[1].endswith("in force. a: no.")
    assert status().store is UNSET


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d"),
        (180_000, "2 d 2 h"),
    ],
)
def test_a_duration_is_said_in_two_units_at_most(seconds: float, said: str) -> None:
    assert duration(seconds) == said
