"""The examples, run as a newcomer would run them."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import PACKAGED, TODAY, Generation
from tests.harness import reference

EXAMPLE = PACKAGE_ROOT / "examples" / "in_process.py"
QUESTIONS = ("Why is the sky blue?", "Why is the sea salty?")
PROMPTS = PACKAGED / "prompts.yaml"


class Ran(NamedTuple):
    """How the example ended, and what it said."""

    code: int | None
    said: str
    complained: str


async def run(url: str, home: Path, **settings: str) -> Ran:
    """Run the example in a folder of its own; settings: as in SIDECAR_<SECTION>__<KEY>, the prefix left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))}
    environment |= {"PYTHONPATH": str(PACKAGE_ROOT), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {f"SIDECAR_{key}": value for key, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLE), url),
        cwd=home,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    return Ran(process.returncode, said.decode(), complained.decode())


async def test_prompts_come_in_process_and_the_second_from_the_cache(tmp_path: Path) -> None:
    async with reference(templates=PROMPTS) as service:
        ran = await run(service.url, tmp_path)
        assert (ran.code, service.calls) == (0, 1)
    found = [ran.said.index(question) for question in QUESTIONS]
    assert found == sorted(found)
    assert re.findall(r"^--- (.*), \d+\.\d s old$", ran.said, re.MULTILINE) == [
        "asked the config service",
        "from the cache",
    ]


async def test_before_todays_service_each_prompt_is_asked_for(tmp_path: Path) -> None:
    async with reference(templates=PROMPTS, generation=Generation.PLACEHOLDERS, render=TODAY) as service:
        ran = await run(service.url, tmp_path, UPSTREAM__TEMPLATES_FILE=str(PROMPTS))
        assert (ran.code, service.state.calls["user-placeholders"]) == (0, 2)
    assert all(question in ran.said for question in QUESTIONS)
    assert ran.said.count("--- asked the config service") == 2


@pytest.mark.parametrize("fault", ["down", Mode.UNAVAILABLE])
async def test_without_its_service_it_says_so_in_a_sentence_and_fails(tmp_path: Path, fault: str) -> None:
    async with reference(templates=PROMPTS) as service:
        service.fails(Mode.UNAVAILABLE, retry_after=0)
        url = service.url if fault != "down" else "http://127.0.0.1:9"
        ran = await run(url, tmp_path)
    assert ran.code == 1
    last = ran.complained.splitlines()[-1]
    assert re.fullmatch(r"503: No prompt: .+, and the policy allows no stale data\.", last)
    assert "Traceback" not in ran.said + ran.complained
    assert not any(question in ran.said + ran.complained for question in QUESTIONS)
