"""How the report looks, for people and for machines."""

import json
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.policy import Policy
from sidecar.demo.drill import shown
from sidecar.demo.drill.plan import Plan
from sidecar.demo.drill.rehearsal import Rehearsal
from sidecar.demo.drill.shown import Result, in_words, print_json, print_report, span
from sidecar.demo.drill.tally import Asked, Kind, Phase
from sidecar.settings import PolicySettings, Settings
from tests.demo.drill.plans import plan_of

LONGEST = "empty-template"
PLAN = plan_of(Settings(), failures=(LONGEST,))


def result(*, is_whole: bool = True, plan: Plan = PLAN, kind: Kind = Kind.STALE) -> Result:
    """Return a drill of 40,000 requests, the second phase with such answers."""
    done = Rehearsal(plan, lambda _: None)
    done.phases = [
        Phase(name="all is well", began_at=0.0, ended_at=10.0),
        Phase(
            name=LONGEST, failure=LONGEST, is_outage=True, began_at=10.0, ended_at=1e4, circuit_opened_at=5e3
        ),
        Phase(name="recovery", failure=LONGEST, began_at=1e4, ended_at=1e4 + 10),
    ]  # fmt: skip
    pairs = plan.pairs
    for at, how in ((1.0, Kind.FRESH), (20.0, kind), (1e4, Kind.FRESH)):
        for number in range(15_000):
            user, node = pairs[number % len(pairs)]
            each = Asked(at=at, user=user, node=node, kind=how, seconds=4.9, age=890.0, is_newest=True)
            done.asked.append(each)
            done.direct.append(replace(each, kind=Kind.REFUSED))
    return Result.of(done, is_whole=is_whole)


def test_the_report_fits_with_nothing_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(result())
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    assert "\x1b" not in said
    assert re.search(rf"{LONGEST} +15000 +0 +15000 +0 +0 +100 % +4,900 +4,900 +890\.0 s", said)
    assert re.search(rf"{LONGEST} +9,990\.0 s +4,990\.0 s +4\.9 s +0 %", said)
    assert said.count("\nheld ") == 5


def test_what_is_broken_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(kind=Kind.WRONG)
    assert not found.passed
    print_report(found)
    said = capsys.readouterr().out
    assert "BROKEN         Every prompt is one that the service would have rendered." in said
    assert re.search(rf"{LONGEST} +15000 +0 +0 +0 +15000 +0 %", said)


def test_an_interrupted_drill_says_so_and_has_not_passed(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(is_whole=False)
    assert not found.passed
    print_report(found)
    assert capsys.readouterr().out.startswith("Outage drill (interrupted)\n")


def test_a_machine_gets_all_of_it_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(result())
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["whole"], report["objective"]) == (True, True, 0.99)
    outage = report["phases"][1]
    assert outage["numbers"] == {
        "requests": 15_000, "fresh": 0, "stale": 15_000, "refused": 0, "unanswered": 0, "wrong": 0,
        "availability": 1.0, "p50": 4.9, "p99": 4.9, "oldest": 890.0, "statuses": {},
    }  # fmt: skip
    assert outage["without"]["availability"] == 0
    assert outage["circuit_open_after"] == 4990.0
    assert report["phases"][2]["fresh_again_after"] == 4.9
    assert {each["oldest_allowed"] for each in report["nodes"].values()} == {902}
    assert set(report["promises"].values()) == {"held"}


def words(**policy: Any) -> str:
    return " ".join(in_words(plan_of(Settings(policy=PolicySettings(default=Policy(**policy))))))


def test_a_long_policy_is_not_called_rehearsed() -> None:
    assert "prompts be 1d 2s old at most; its end was not rehearsed." in words(stale_if_error=86_400.0)
    reached = words(stale_if_error=5.0)
    assert "its end was not" not in reached
    assert "An outage outlasts the policy, which ends after 7s: then errors are what it promises." in reached


def test_an_outage_that_the_policy_hardly_felt_is_said() -> None:
    assert "the service was hardly needed: generating_content, answer" in words(ttl=60.0)
    assert "Up to 32s (ttl + stale_while_revalidate) no request waits for the service;" in words()
    rehearsed = words(stale_while_revalidate=0.0)
    assert "hardly" not in rehearsed
    assert "Up to" not in rehearsed


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.1, "0.1s"), (2, "2s"), (60, "1m"), (900.1, "15m 0.1s"), (902, "15m 2s"), (90_060, "1d 1h 1m")],
)
def test_a_time_is_written_as_people_say_it(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_progress_is_a_line_a_phase_where_nobody_looks_and_nothing_for_machines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drill = Rehearsal(PLAN, lambda _: None)
    for quiet in (False, True):
        with shown.progress(PLAN, quiet=quiet) as show:
            for drill.under_way in ("503", "503", "recovery"):
                show(drill)
    assert sys.stderr.isatty() is False
    assert capsys.readouterr().err.splitlines() == [
        "0 answers so far; now: 503", "0 answers so far; now: recovery",
    ]  # fmt: skip
