"""docs/openapi.yaml is what the sidecar answers: asked by Schemathesis, well and in an outage."""

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.answers import Answers
from sidecar.core.policy import Policy
from sidecar.demo.reference.faults import Mode
from tests.harness import Reference, Sidecar, reference, settings_for, sidecar_with

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/openapi.yaml"
EXAMPLES = "15"
"""Of each operation, in each phase."""
TEMPLATES = {"generating_content": "Explain {{ input_content }} in {{ style }}."}
LENIENT = ("negative_data_rejection", "positive_data_acceptance")
"""Not asked of the first two calls: today's service takes numbers as text, and refuses what no schema can say, such as
an unknown node or content that a template needs; the sidecar does as it does."""
AWAY = ("not_a_server_error", "unsupported_method")
"""Not asked in an outage: 503 is what it is about, also for methods that are the config service's to refuse."""
STRICT = ("positive_data_acceptance",)
"""To JSON Schema 738.0 is an integer; to an admin call it is a mistake."""


@asynccontextmanager
async def standing() -> AsyncIterator[tuple[Reference, Sidecar]]:
    policy = Policy(ttl=0.05, max_ttl=0.05, stale_while_revalidate=0, stale_if_error=0, network_timeout=0.2)
    async with (
        reference(templates=TEMPLATES) as upstream,
        sidecar_with(settings_for(upstream.url, policy=policy)) as sidecar,
    ):
        yield upstream, sidecar


async def ask(url: str, paths: str, *, but: tuple[str, ...] = (), folder: Path) -> str:
    """Have Schemathesis ask all operations of these paths; fails with what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--no-color", "run", str(DOCUMENT), "--url", url, "--include-path-regex", paths),
        *("--checks", "all", "--max-examples", EXAMPLES, "--seed", "20261123", "--phases", "examples,coverage,fuzzing"),
        *(part for each in but for part in ("--exclude-checks", each)),
        *("--generation-database", "none", "--request-timeout", "10"),
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
    return said.decode()


@pytest.mark.parametrize(
    ("fault", "but"), [(Mode.NONE, LENIENT), (Mode.UNAVAILABLE, (*LENIENT, *AWAY))], ids=["well", "outage"]
)
@pytest.mark.timeout(180)
async def test_what_learnflow_is_answered_is_what_the_document_says(
    fault: Mode, but: tuple[str, ...], tmp_path: Path
) -> None:
    async with standing() as (upstream, sidecar):
        upstream.fails(fault)
        await ask(sidecar.base, "^/api/", but=but, folder=tmp_path)


@pytest.mark.timeout(180)
async def test_what_the_ops_listener_answers_is_what_the_document_says(tmp_path: Path) -> None:
    async with standing() as (_, sidecar):
        await ask(sidecar.ops, "^/(?!api/)", but=STRICT, folder=tmp_path)


async def test_the_document_has_every_call_and_no_other() -> None:
    document = yaml.safe_load(DOCUMENT.read_text("utf-8"))
    said = {
        (method.upper(), path) for path, calls in document["paths"].items() for method in calls if method != "servers"
    }
    async with standing() as (_, sidecar):
        forwarder: Any = None
        given: dict[str, Any] = {"ready": bool, "gate": lambda: None, "clock": time.monotonic, "wall": time.time}
        answers = Answers(sidecar.core, forwarder, sidecar.core.settings, **given)
    known = {*answers.learnflow._table, *answers.ops._table}
    beside_the_page = {(method, path) for method, path in known if re.search(r"\.(css|js|svg)$", path)}
    assert {each for each in known - beside_the_page if each[0] != "HEAD"} == said


def test_it_is_of_the_version_that_it_says() -> None:
    document: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{document["info"]["version"]}"' in project
