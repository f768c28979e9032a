"""The demo as a process of its own, as `make run` starts it."""

import io
import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from sidecar.demo import scenario
from sidecar.demo.asking import Answer
from sidecar.demo.scenario import Phase, StoryError
from tests.demo.running import COLOUR, ON_A_TERMINAL, command, files_under
from tests.wire import serving, until


async def test_the_demo_keeps_every_promise_and_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    async with command(tmp_path, "demo", "--json") as running:
        await until(lambda: len(running.children()) == 2)
        children = running.children()
        code, output, errors = await running.ends()
    assert (code, errors) == (0, "")
    result = json.loads(output)
    assert all(result["promises"].values())
    assert len(result["promises"]) == 6
    assert [phase["name"] for phase in result["phases"]] == ["healthy", "outage", "past the policy", "recovered"]
    assert not any(each.is_running() for each in children)
    assert files_under(tmp_path) == ["tmp"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_halfway_ends_the_children_too(number: signal.Signals, tmp_path: Path) -> None:
    async with command(tmp_path, "demo") as running:
        said = await running.says("200")
        children = running.children()
        running.process.send_signal(number)
        code, more, errors = await running.ends()
    assert (code, errors) == (128 + number, "Stopped.\n")
    assert "\x1b" not in said + more
    assert len(children) == 2
    assert not any(each.is_running() for each in children)
    assert files_under(tmp_path) == ["tmp"]


async def test_a_signal_while_a_child_starts_ends_it_too(tmp_path: Path) -> None:
    async with command(tmp_path, "demo") as running:
        await until(lambda: bool(running.children()))
        children = running.children()
        running.process.terminate()
        code, _, errors = await running.ends()
    assert (code, errors) == (128 + signal.SIGTERM, "Stopped.\n")
    assert not any(each.is_running() for each in children)


async def test_ctrl_c_on_a_terminal_ends_it_without_a_traceback_and_what_was_shown_fits_in_colour(
    tmp_path: Path,
) -> None:
    async with command(tmp_path, "demo", through=("-c", ON_A_TERMINAL)) as running:
        said = await running.says("200")
        children = running.children()
        assert running.process.stdin is not None
        running.process.stdin.write(b"\x03")
        code, more, errors = await running.ends()
    assert code == 128 + signal.SIGINT
    shown = said + more
    assert "Traceback" not in shown + errors
    assert "Stopped." in shown
    assert COLOUR.search(shown)
    assert max(len(line) for line in COLOUR.sub("", shown).splitlines()) <= 80
    assert len(children) == 3  # the demo itself, and its two
    assert not any(each.is_running() for each in children)


async def test_a_sidecar_that_dies_halfway_is_a_sentence_and_not_a_traceback(tmp_path: Path) -> None:
    async with command(tmp_path, "demo") as running:
        await running.says("200")
        children = running.children()
        (sidecar,) = [each for each in children if "run" in each.cmdline()]
        sidecar.kill()
        code, _, errors = await running.ends()
    assert code == 1
    assert re.fullmatch(r"The sidecar on 127\.0\.0\.1:\d+ did not answer: \w+\.\n", errors)
    assert not any(each.is_running() for each in children)


# How it looks


def console() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, width=80, highlight=False), screen


ROUND = [Answer(200, "fresh", 2, "prompt-sidecar; hit; ttl=0", 1.0)] * 5
LONGEST = "prompt-sidecar; fwd=stale; fwd-status=503; collapsed; ttl=-35; detail=stale-if-error"


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(503, "error", 0, "prompt-sidecar; fwd=miss; detail=connect-error", 2.0)] * 6,
        [*ROUND, Answer(200, "stale", 12, LONGEST, 1.0)],
        [Answer(200, "stale", 12, LONGEST, 1.0), *ROUND, Answer(503, "error", 0, LONGEST, 1.0)],
    ],
)
def test_a_round_is_one_line_that_fits(answers: list[Answer]) -> None:
    on, screen = console()
    story = scenario._Story(on)
    story.begin("127.0.0.1:1")
    story._show(answers)
    (line,) = screen.getvalue().splitlines()
    assert len(line.rstrip()) <= 80
    for kind in {answer.kind for answer in answers}:
        assert f"{sum(answer.kind == kind for answer in answers)} {kind}" in line


def full(name: str) -> Phase:
    phase = Phase(name, 3.0)
    for answer in (*ROUND, Answer(503, "error", 0, "", 4999.0), Answer(200, "stale", 10, "", 12.0)):
        for _ in range(20):
            phase.add(answer)
    return phase


def test_the_closing_table_fits_with_nothing_cut_off() -> None:
    on, screen = console()
    on.print(scenario._table([full("healthy"), full("past the policy")]))
    shown = screen.getvalue()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "…" not in shown
    assert re.search(r"past the policy +140 +120 +20 +20 +10 s +1\.0 ms +4999 ms", shown)


def test_every_promise_fits_on_its_line() -> None:
    assert max(map(len, scenario._promises([full("x")] * 4, 0))) <= 80 - len("BROKEN  ")


# What it promises


def test_a_phase_counts_its_answers() -> None:
    summary = scenario._summary(full("x"))
    assert (summary["requests"], summary["served"], summary["stale"], summary["errors"]) == (140, 120, 20, 20)
    assert summary["oldest_age_seconds"] == 10
    assert summary["milliseconds"] == {"median": 1.0, "most": 4999.0}


GOOD: dict[str, dict[str, Any]] = {
    "healthy": {"requests": 6, "served": 6},
    "outage": {"requests": 6, "served": 6, "stale": 4, "oldest_age_seconds": 10},
    "past": {"requests": 6, "errors": 6},
    "recovered": {"requests": 6, "served": 6},
}


@pytest.mark.parametrize(
    ("name", "change", "broken"),
    [
        ("healthy", {}, None),
        ("healthy", {"errors": 1}, "While all is well"),
        ("outage", {"errors": 1}, "The outage is not noticed"),
        ("outage", {"stale": 0}, "The outage is not noticed"),
        ("outage", {"oldest_age_seconds": 11}, "Nothing older"),
        ("past", {"served": 1}, "Past the policy"),
        ("recovered", {"served": 3}, "When the config service is back"),
        ("recovered", {"milliseconds": [1001.0]}, "When the config service is back"),
    ],
)
def test_a_promise_is_broken_by_what_breaks_it(name: str, change: dict[str, Any], broken: str | None) -> None:
    phases = [
        Phase(each, 3.0, **({"milliseconds": [1.0]} | good | (change if each == name else {})))
        for each, good in GOOD.items()
    ]
    not_kept = [promise for promise, held in scenario._promises(phases, 0).items() if not held]
    assert len(not_kept) == (broken is not None)
    assert all(promise.startswith(str(broken)) for promise in not_kept)


def test_a_sidecar_that_does_not_end_by_itself_breaks_a_promise() -> None:
    phases = [Phase(each, 3.0, milliseconds=[1.0], **good) for each, good in GOOD.items()]
    assert [promise for promise, held in scenario._promises(phases, -9).items() if not held] == [
        "Told to stop, the sidecar ends by itself."
    ]


async def test_a_prompt_without_this_requests_content_ends_the_story() -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response({"prompt": "somebody else's", "used_placeholders": {}})

    on, _ = console()
    async with serving(answer) as served:
        story = scenario._Story(on)
        story.begin(f"127.0.0.1:{served.port}")
        with pytest.raises(StoryError, match="The prompt of generating_content lacks this request's content"):
            await story.through(Phase("healthy", 1.0))


async def test_a_sidecar_that_is_not_there_ends_the_story_with_a_sentence() -> None:
    on, _ = console()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        story = scenario._Story(on)
        story.begin(f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(StoryError, match=r"The sidecar on .* did not answer: ClientConnectorError\."):
            await story.through(Phase("healthy", 1.0))
