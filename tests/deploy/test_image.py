"""What the Dockerfile builds, built by its own lines without a registry of images, and run as a pod runs it."""

import asyncio
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from sidecar.app import installed_version
from tests import needs
from tests.deploy.containerfile import build
from tests.harness import address_in, client_of, reference

ROOT = Path(__file__).parents[2]
CONTAINED = Path(__file__).with_name("contained.py")
SECONDS = 30.0
LARGEST_MIB = 120  # of the environment; a layer that grows past it has something in it that is not needed
ARBITRARY = 1_000_680_000
"""A uid without an entry in any passwd, of the range that OpenShift gives out."""
PATCH = yaml.safe_load((ROOT / "deploy/kubernetes/components/sidecar/patch.yaml").read_text())
LIMIT = PATCH["spec"]["template"]["spec"]["initContainers"][0]["resources"]["limits"]["memory"]
STORE = Path("/var/lib/prompt-sidecar")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the environment of the image, once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    at = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "image"
    with (at.parent / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = at / "done"
        if not done.exists():
            shutil.rmtree(at, ignore_errors=True)
            environment = build(at, python=Path(sys.base_prefix) / "bin")
            done.write_text(str(environment))
        return Path(done.read_text())


def test_the_environment_holds_what_is_locked_and_no_more(image: Path) -> None:
    (packages,) = image.glob("lib/python3*/site-packages")
    found = {each.name.split("-")[0].lower().replace("_", "-") for each in packages.glob("*.dist-info")}
    locked = set(re.findall(r"(?m)^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text()))
    assert found <= locked | {"prompt-sidecar"}
    assert {"aiohttp", "uvloop", "prompt-sidecar"} <= found
    assert not [*image.glob("bin/pip*")]
    assert not (packages / "tests").exists()
    assert sum(each.lstat().st_size for each in image.rglob("*")) < LARGEST_MIB * 2**20


def test_it_is_compiled_whatever_the_times_of_its_files_become(image: Path) -> None:
    (compiled,) = image.glob("lib/python3*/site-packages/sidecar/__pycache__/app.*.pyc")
    assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00"  # PEP 552: by hash, and not checked


def test_it_runs_from_another_path(image: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(image, moved, symlinks=True)
    done = subprocess.run(
        [moved / "bin/python", "-m", "sidecar", "--version"],
        cwd=tmp_path,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{installed_version()}\n", "")


def command(image: Path, folder: Path, *arguments: str) -> list[str]:
    """Return what runs `prompt-sidecar` as a pod does."""
    python = (image / "bin/python").resolve()
    base = Path(sys.base_prefix)
    root = folder / "root"
    root.mkdir(exist_ok=True)
    spec = {
        "root": str(root),
        "read_only": [str(image), str(folder / "settings"), str(python if base == Path("/usr") else base)],
        "writable": [str(STORE)],
        "uid": ARBITRARY,
        "gid": 0,  # as OpenShift has it
        "environ": {"PATH": str(image / "bin"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    }
    unshare = needs.program("unshare", from_="the Debian package util-linux")
    program = [unshare, "--mount", "--propagation", "private", sys.executable, str(CONTAINED), json.dumps(spec)]
    return [*program, str(image / "bin/prompt-sidecar"), *arguments]


@asynccontextmanager
async def contained(
    image: Path, folder: Path, upstream: str, *, store: Path = STORE
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run the sidecar as a pod does; yield the process and the first line that it says."""
    (folder / "settings").mkdir()
    settings = {
        "listen": "127.0.0.1:0",
        "ops": {"listen": "127.0.0.1:0"},
        "upstream": {"url": upstream, "api": "prompt-data"},
        "store": {"path": str(store / "cache.db")},
    }
    (folder / "settings/sidecar.yaml").write_text(yaml.safe_dump(settings))
    process = await asyncio.create_subprocess_exec(
        *command(image, folder, "run", "--config", str(folder / "settings/sidecar.yaml")),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SECONDS):
            while b'"started"' not in (line := await process.stderr.readline()):
                assert line, "it did not start"
        yield process, line.decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def figures(pid: int) -> dict[str, str]:
    return dict(re.findall(r"(?m)^(\w+):\s+(.*)$", Path(f"/proc/{pid}/status").read_text()))


async def test_it_serves_as_any_user_with_a_root_that_cannot_be_written_and_no_home(
    image: Path, tmp_path: Path
) -> None:
    needs.root("run something as another user, in a root of its own")
    folder = tmp_path
    async with reference() as upstream, contained(image, folder, upstream.url) as (process, said):
        assert process.stderr is not None
        started = bytearray(said.encode())
        base, ops = (f"http://{address_in(started, key)}" for key in ("listen", "ops"))
        assert json.loads(said)["version"] == installed_version()
        assert process.returncode is None
        status = figures(process.pid)
        assert status["Uid"].split() == [str(ARBITRARY)] * 4
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        async with client_of(base, ops) as client:
            for user in range(1, 101):
                assert (await client.ask(user)).status == 200
            assert 'prompt_sidecar_cache_entries{tier="file"}' in await client.metrics()
        probe = await asyncio.create_subprocess_exec(*command(image, folder, "probe", "--url", f"{ops}/readyz"))
        assert await probe.wait() == 0
        root = Path(f"/proc/{process.pid}/root")
        assert (root / STORE.relative_to("/") / "cache.db").stat().st_uid == ARBITRARY
        assert not any((root / each).exists() for each in ("bin/sh", "usr/bin/sh", "usr/bin/cc", "home"))
        peak_kib = int(figures(process.pid)["VmHWM"].removesuffix(" kB"))
        assert LIMIT.endswith("Mi")
        assert peak_kib < int(LIMIT.removesuffix("Mi")) * 1024 / 2  # the other half is the cache's, when it is full
        process.terminate()
        assert await process.wait() == 0
        rest = (await process.stderr.read()).decode().splitlines()
        assert [json.loads(line)["event"] for line in rest][-2:] == ["draining", "stopped"]
        assert not [line for line in rest if json.loads(line)["level"] not in {"info", "debug"}], rest


async def test_without_a_place_for_its_store_it_serves_from_memory_and_says_so(image: Path, tmp_path: Path) -> None:
    needs.root("run something as another user, in a root of its own")
    async with reference() as upstream, contained(image, tmp_path, upstream.url, store=Path("/nowhere")) as (_, said):
        started = bytearray(said.encode())
        base, ops = (f"http://{address_in(started, key)}" for key in ("listen", "ops"))
        async with client_of(base, ops) as client:
            assert (await client.ask()).status == 200
            async with client.session.get(f"{ops}/status") as response:
                assert (await response.json())["store"]["error"] == "unwritable"
