"""`prompt-sidecar drill`, as a person or a pipeline runs it: with processes, for as short as it may be."""

import json
import re
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli import main
from tests.demo.running import COLOUR, ON_A_TERMINAL, command, files_under
from tests.wire import until

QUICK = ("--users", "2", "--rate", "60", "--duration", "1s", "--cache-ttl", "100ms")
BREAKER = "breaker: {fail_max: 2, reset_timeout: 300ms}\n"


async def test_a_drill_reports_each_phase_and_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(BREAKER)
    async with command(tmp_path, "drill", "--config", "s.yaml", *QUICK, "--failure", "refused", "--json") as running:
        await until(lambda: len(running.children()) == 2)
        children = running.children()
        code, output, errors = await running.ends()
    assert (code, errors) == (0, "")
    report = json.loads(output)
    assert (report["passed"], report["whole"]) == (True, True)
    assert [phase["name"] for phase in report["phases"]] == ["all is well", "refused", "recovery"]
    well, outage, recovery = report["phases"]
    assert well["numbers"]["availability"] == 1
    assert well["without"]["availability"] > 0.9  # what is under way when it breaks is lost
    assert outage["numbers"]["stale"] > 20
    assert outage["numbers"]["availability"] == 1
    assert outage["without"]["availability"] < 0.2
    assert 0 < outage["circuit_open_after"] < outage["seconds"]
    assert recovery["fresh_again_after"] < 10
    assert {node["oldest_allowed"] for node in report["nodes"].values()} == {900.1}
    assert set(report["promises"].values()) == {"held"}
    assert not any(each.is_running() for each in children)
    assert sorted(files_under(tmp_path)) == ["s.yaml", "tmp"]


async def test_a_policy_that_allows_nothing_stale_misses_the_objective(tmp_path: Path) -> None:
    policy = "policy: {default: {stale_if_error: 0s}}\nstore: {kind: none}\n"
    (tmp_path / "s.yaml").write_text(BREAKER + policy)
    async with command(tmp_path, "drill", "--config", "s.yaml", *QUICK, "--failure", "503") as running:
        code, output, errors = await running.ends()
    assert code == 1
    assert re.findall(r"^\d+ answers so far; now: (.*)$", errors, re.MULTILINE) == ["all is well", "503", "recovery"]
    assert "\x1b" not in output + errors
    assert max(map(len, output.splitlines())) <= 80
    assert "BROKEN         In each phase, 99 % of the requests get their prompt." in output
    assert output.count("\nheld  ") == 4  # what is refused is no broken promise, but for the objective
    assert "Settings: s.yaml." in output
    assert "Rehearsed: 1 outage of 1s (503)." in output


async def test_ctrl_c_in_an_outage_tells_what_was_measured_and_ends_all(tmp_path: Path) -> None:
    async with command(tmp_path, "drill", *QUICK, "--duration", "1m", through=("-c", ON_A_TERMINAL)) as running:
        assert running.process.stdout is not None
        shown = b""
        while b"refused" not in shown:
            shown += await running.process.stdout.read(1000)
        children = running.children()
        assert running.process.stdin is not None
        running.process.stdin.write(b"\x03")
        code, more, errors = await running.ends()
    assert code == 128 + signal.SIGINT
    text = shown.decode() + more
    assert COLOUR.search(text)
    report = COLOUR.sub("", text).partition("Outage drill (interrupted)")[2]
    assert re.search(r"all is well +\d+", report)
    assert "not rehearsed  After each outage, every prompt is fresh again." in report
    assert report.rstrip().endswith("Stopped.")
    assert "Traceback" not in text + errors
    assert not any(each.is_running() for each in children)
    assert files_under(tmp_path) == ["tmp"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--duration", "soon"), "'soon'; allowed is a duration from 1s to 1d, with its unit"),
        (("--recovery", "0s"), "'0s'; allowed is a duration from 1s to 1d, with its unit"),
        (("--objective", "101%"), "'101%'; allowed is a percentage from 0% to 100%"),
        (("--failure", "boredom"), "'boredom' is not one of 'refused', '500', '503'"),
        (("--config", "missing.yaml"), "'missing.yaml' cannot be read: No such file or directory"),
        (("--nodes", "nobody"), "--nodes: no template is called nobody; there are generating_content"),
        (("--users", "1000"), "--duration: 10 s is too short to ask for 3000 prompts"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ("drill", *arguments))
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in " ".join(done.stderr.split())
