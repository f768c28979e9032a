"""docs/drill.md shows the report as it is printed today."""

import re
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.demo.drill.shown import print_report
from tests.demo.drill.test_shown import result

TEXT = (Path(__file__).parents[3] / "docs/drill.md").read_text("utf-8")


def test_its_report_has_the_headings_and_promises_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(result())
    for line in capsys.readouterr().out.splitlines():
        words = line.split()
        if words[:1] in (["phase"], ["failure"], ["node"]):
            assert words in [each.split() for each in TEXT.splitlines()], line
        elif words[:1] == ["held"]:
            promise = " ".join(words[1:])
            assert re.search(rf"(?m)^(held|BROKEN) +{re.escape(promise)}$", TEXT), line


def test_its_options_are_those_of_the_command() -> None:
    known = {option for each in main.commands["drill"].params for option in each.opts}
    said = set(re.findall(r"--[a-z-]+", "".join(re.findall(r"prompt-sidecar drill[^`\n]*", TEXT)))) - {"--help"}
    assert said
    assert said <= known
