"""A storm of requests with large bodies while the config service hangs: memory, probes and hits of the real process."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import psutil
import pytest

from sidecar.demo.processes import PACKAGE_ROOT
from tests.harness import Exchange, Process, forever, prompt_data, raw_upstream, sidecar_process

CLIENTS = 1000
BODY = 512 * 1024  # bytes; all of them: 500 MiB
LIMITS = {
    "LIMITS__MAX_CONNECTIONS": "300",
    "LIMITS__MAX_WAITING": "100",
    "LIMITS__MAX_BODIES": "8MiB",
    "DEADLINE": "1s",
    "RETRY__PER_TRY_TIMEOUT": "1s",
    "POLICY__DEFAULT__NETWORK_TIMEOUT": "500ms",
    "LIMITS__HEAD_TIMEOUT": "30s",  # the storm's own machine is the one that is stormed
}
BOUND = 64 * 2**20
"""Bytes of memory that a storm may cost: two pools of bodies, and what 300 connections read ahead (128 KiB at most)."""


CUT_OFF = 0
"""What stands for the status of an answer that never came: even too many were turned away with an answer."""


async def hit(sidecar: Process) -> int:
    """Ask for the prompt that is at hand."""
    try:
        return (await sidecar.ask(1)).status
    except aiohttp.ClientError:
        return CUT_OFF


async def asked_meanwhile(sidecar: Process, storm: asyncio.subprocess.Process) -> tuple[Counter[tuple[str, int]], int]:
    """Ask for the probes and for a prompt until the storm is over; return the answers and the most memory seen."""
    process, answers, peak = psutil.Process(sidecar.pid), Counter[tuple[str, int]](), 0
    while storm.returncode is None:
        for path in ("/livez", "/readyz", "/metrics"):
            async with sidecar.session.get(sidecar.ops + path) as response:
                answers[path, response.status] += 1
        answers["hit", await hit(sidecar)] += 1
        peak = max(peak, process.memory_info().rss)
    return answers, peak


@pytest.mark.parametrize("body", [BODY, 1500], ids=["large bodies", "small bodies"])
async def test_a_storm_is_shed_while_probes_and_hits_are_answered_and_memory_stays_bounded(
    body: int, tmp_path: Path
) -> None:
    known = asyncio.Event()

    async def plays(exchange: Exchange) -> None:
        if known.is_set():
            await forever()
        await exchange.answer(prompt_data())
        known.set()

    async with raw_upstream(plays) as upstream, sidecar_process(upstream.url, tmp_path, **LIMITS) as sidecar:
        assert (await sidecar.ask(1)).status == 200
        before = psutil.Process(sidecar.pid).memory_info().rss
        arguments = (str(sidecar.address[1]), str(CLIENTS), str(body))
        storm = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.system.storm", *arguments), cwd=PACKAGE_ROOT, stdout=asyncio.subprocess.PIPE
        )
        answers, peak = await asked_meanwhile(sidecar, storm)
        stormed = Counter(json.loads((await storm.communicate())[0]))
        assert {*stormed} <= {"503", "504", "408", "cut off"}
        assert stormed["503"] > CLIENTS / 10
        probed = {each for each in answers if each[0] != "hit"}
        assert probed == {(path, 200) for path in ("/livez", "/readyz", "/metrics")}
        assert {each for each in answers if each[0] == "hit"} <= {("hit", 200), ("hit", 503), ("hit", CUT_OFF)}
        assert peak - before < BOUND
        assert (await sidecar.ask(1)).status == 200
        told = (line for line in (await sidecar.metrics()).splitlines() if "requests_shed_total{" in line)
        shed = {line.split('"')[1]: float(line.split()[1]) for line in told}
        assert shed["bodies" if body == BODY else "waiting"] > 0
