"""The units: what systemd makes of them, and what they deny the sidecar."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.config_file import load
from sidecar.settings import Settings
from tests import needs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/systemd"
PROGRAM = "/opt/prompt-sidecar/bin/prompt-sidecar"
EXPOSURE = 12
"""Tenths of a point, of 100: systemd calls up to 20 OK. What is left is the network, which a proxy is for."""
SECONDS = 30.0


def unit(name: str) -> dict[str, list[str]]:
    """Return the values of each key, in whatever section."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


SERVICE = unit("prompt-sidecar.service")
SOCKET = unit("prompt-sidecar.socket")


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copy the units, with a program that is here in place of the installed one."""
    program = tmp_path / "prompt-sidecar"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("prompt-sidecar.service", "prompt-sidecar.socket"):
        (tmp_path / name).write_text((FOLDER / name).read_text().replace(PROGRAM, str(program)))
    return [str(tmp_path / "prompt-sidecar.service"), str(tmp_path / "prompt-sidecar.socket")]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = needs.program("systemd-analyze", from_="the Debian package systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_wrong_with_the_units(units: list[str]) -> None:
    done = analyze("verify", "--man=no", *units)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "prompt-sidecar" in line]
    assert (done.returncode, ours) == (0, [])


def test_a_mistake_in_a_unit_would_be_seen(units: list[str]) -> None:
    service = Path(units[0])
    service.write_text(service.read_text().replace("WatchdogSec=", "WatchDogSec="))
    assert "'WatchDogSec'" in analyze("verify", "--man=no", *units).stderr


def test_the_service_is_hardened(units: list[str]) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", units[0])
    assert done.returncode == 0, done.stdout


def test_what_the_score_weighs_lightly_is_denied_too() -> None:
    """A new systemd weighs anew; these stay."""
    assert SERVICE["CapabilityBoundingSet"] == SERVICE["AmbientCapabilities"] == [""]
    assert SERVICE["ProtectSystem"] == ["strict"]
    assert SERVICE["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    assert SERVICE["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    for key in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectHome"):
        assert SERVICE[key] == ["yes"], key


def test_the_socket_is_where_learnflow_asks_and_has_the_name_that_the_sidecar_knows() -> None:
    assert SOCKET["ListenStream"] == [str(Settings().listen)]
    assert SOCKET["FileDescriptorName"] == ["learnflow"]
    assert SERVICE["Requires"] == ["prompt-sidecar.socket"]


def test_the_settings_beside_the_units_can_be_used_and_keep_the_store_in_the_state_directory() -> None:
    read = load(FOLDER / "sidecar.yaml", environ={}, flags={})
    assert SERVICE["ExecStart"] == [f"{PROGRAM} run --config /etc/prompt-sidecar/sidecar.yaml"]
    assert read.store.path == Path("/var/lib") / SERVICE["StateDirectory"][0] / "cache.db"


def test_the_drain_has_the_time_that_it_may_take() -> None:
    assert int(SERVICE["TimeoutStopSec"][0].removesuffix("s")) > Settings().drain.delay + Settings().drain.timeout
    assert SERVICE["Type"] == ["notify"]
    assert SERVICE["WatchdogSec"] == ["30s"]


WITHOUT_WRITABLE_CODE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""The kernel's own form of what systemd does with a filter: no memory that is written becomes code."""


async def test_the_wheels_need_no_memory_that_is_both_written_and_run(tmp_path: Path) -> None:
    assert SERVICE["MemoryDenyWriteExecute"] == ["yes"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_WRITABLE_CODE, "-m", "sidecar", "run", "--config", "/dev/null"),
        *("--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--upstream-url", "http://127.0.0.1:9"),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("COV", "SIDECAR_"))}
        | {"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(SECONDS):
        while b'"started"' not in said and (line := await process.stderr.readline()):
            said += line
        if process.returncode is None and b'"started"' in said:
            process.send_signal(signal.SIGTERM)
        _, rest = await process.communicate()
    if process.returncode == 77:
        needs.lacks("this kernel cannot deny it to a process by itself; Linux 6.3 can")
    assert process.returncode == 0, (said + rest).decode()
