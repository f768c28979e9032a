"""docs/operations.md is tried as a new user would: its first part, line by line, in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.settings import keys
from tests import needs
from tests.redis_servers import free_port

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/operations.md").read_text("utf-8")
SECONDS = 50.0


def steps() -> str:
    """Return the commands of the first part, as one script that ends where one of them fails."""
    part = TEXT.split("\n## ")[1]
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```$", part)
    tested = [block for block in blocks if not block.startswith("# not tested here")]
    assert len(tested) > 6
    return "set -e\n" + "\n".join(tested)


def test_the_steps_of_the_first_try_do_what_the_page_says(tmp_path: Path) -> None:
    needs.program("curl", from_="curl")
    command = tmp_path / "bin/prompt-sidecar"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sidecar "$@"\n')
    command.chmod(0o755)
    script = steps()
    for port in ("18002", "18003", "19102"):
        script = script.replace(port, str(free_port()))
    work = tmp_path / "work"
    work.mkdir()
    environ = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(PACKAGE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        ["bash", "-x", "-c", script],
        cwd=work,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    log = work / "sidecar.log"
    assert process.returncode == 0, out[-3000:] + (log.read_text()[-3000:] if log.exists() else "")


def test_what_it_costs_is_said_of_every_setting_and_of_nothing_else() -> None:
    part = TEXT.split("\n## What each setting costs")[1]
    said = [name for row in re.findall(r"(?m)^\| (`.*?) \|", part) for name in re.findall(r"`([a-z_.*]+)`", row)]
    patterns = [re.compile(re.escape(each).replace(r"\*", ".+") + r"(\..+)?") for each in said]
    known = [".".join(str(each) for each in key.path) for key in keys()]
    assert [key for key in known if not any(each.fullmatch(key) for each in patterns)] == []
    assert [each.pattern for each in patterns if not any(each.fullmatch(key) for key in known)] == []


@pytest.mark.parametrize("page", ["operations.md"])
def test_every_page_that_it_names_is_there(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text("utf-8")):
        assert (ROOT / "docs" / link).resolve().exists(), link
