"""The benchmarks still run, and measure what they say; what comes of it is for people to look at."""

import json
import subprocess
import sys

import aiohttp
import pytest

from sidecar.demo import processes
from sidecar.demo.processes import PACKAGE_ROOT
from tests.harness import PATH, Exchange, prompt_data, raw_upstream


async def plays(exchange: Exchange) -> None:
    await exchange.answer(prompt_data())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["footprint", "--rate", "20", "--seconds", "0.2", "--users", "20"], id="footprint"),
        pytest.param(["memory", "--users", "20"], id="memory"),
        pytest.param(["stores", "--records", "2000"], id="stores"),
    ],
)
def test_a_benchmark_runs_to_its_end(arguments: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]],
        cwd=PACKAGE_ROOT,
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout


async def test_the_sidecar_without_telemetry_answers_and_counts_nothing() -> None:
    listen = ("--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
    async with raw_upstream(plays) as upstream, aiohttp.ClientSession() as session:
        run = ("run", "--config", "/dev/null", *listen, "--upstream-url", upstream.url)
        api = {"SIDECAR_UPSTREAM__API": "prompt-data"}
        async with processes.child(*run, settings=api, module="benchmarks.silent") as sidecar:
            at = json.loads(sidecar.first_line)
            asked = {"user_id": 1, "node_name": "explain", "context": {"topic": "tides"}}
            async with session.post(f"http://{at['listen']}{PATH}", json=asked) as response:
                assert response.status == 200
            async with session.get(f"http://{at['ops']}/metrics") as response:
                said = await response.text()
    assert "prompt_sidecar_build_info" in said
    assert 'node="explain"' not in said
