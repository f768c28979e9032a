"""What a sidecar takes of its pod: memory at rest, at a steady load and with a full cache, and CPU at that load.

The requests and limits in deploy/kubernetes are these numbers and a margin. `python -m benchmarks.footprint`.
"""

import argparse
import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
import yaml

from benchmarks.fresh_hit import _give_settings, request, template
from benchmarks.load import ask_once
from sidecar.demo import processes

ANYWHERE = "127.0.0.1:0"


@dataclass(frozen=True)
class Footprint:
    """MiB resident, and cores."""

    at_rest_mib: float
    at_load_mib: float
    full_mib: float
    cores_at_load: float
    cores_while_filling: float
    entries: int


async def measure(*, rate: int, seconds: float, users: int, max_bytes: str) -> Footprint:
    """Measure a sidecar with a file store behind a reference service."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "prompts.yaml").write_text(yaml.safe_dump({"explain_system_prompt": template()}))
        upstream = await stack.enter_async_context(
            processes.child(
                *("upstream", "--listen", ANYWHERE, "--templates", str(folder / "prompts.yaml"), "--cache-ttl", "3600")
            )
        )
        upstream_port = int(upstream.first_line.rpartition("127.0.0.1:")[2].split()[0])
        await _give_settings(upstream_port)
        settings = {
            "SIDECAR_LOG__FORMAT": "json",
            "SIDECAR_CACHE__MAX_BYTES": max_bytes,
            "SIDECAR_STORE__PATH": str(folder / "cache.db"),
        }
        sidecar = await stack.enter_async_context(
            processes.child(
                *("run", "--config", "/dev/null", "--listen", ANYWHERE, "--ops-listen", ANYWHERE),
                *("--upstream-url", f"http://127.0.0.1:{upstream_port}"),
                settings=settings,
            )
        )
        started = json.loads(sidecar.first_line)
        port, ops = (int(started[key].rpartition(":")[2]) for key in ("listen", "ops"))
        process = psutil.Process(sidecar.pid)
        at_rest = _mib(process)
        cores = await _steady(port, process, rate=rate, seconds=seconds)
        at_load = _mib(process)
        filling = await _fill(port, process, users=users)
        status = await ask_once(ops, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        entries: int = json.loads(status.partition(b"\r\n\r\n")[2])["cache"]["entries"]
        return Footprint(at_rest, at_load, _mib(process), cores, filling, entries)


async def _steady(port: int, process: psutil.Process, *, rate: int, seconds: float) -> float:
    """Ask so many times a second, a connection each, and return the cores that it took."""
    loop = asyncio.get_running_loop()
    began, before, asked = loop.time(), process.cpu_times(), set[asyncio.Task[bytes]]()
    for n in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + n / rate - loop.time()))
        asked.add(asyncio.create_task(ask_once(port, request(keep_alive=False))))
    await asyncio.gather(*asked)
    return _cores(before, process, loop.time() - began)


async def _fill(port: int, process: psutil.Process, *, users: int) -> float:
    """Ask once for each user."""
    loop = asyncio.get_running_loop()
    began, before, left = loop.time(), process.cpu_times(), iter(range(2, users + 2))

    async def client() -> None:
        for user in left:
            asked = request(keep_alive=False).replace(b'"user_id": 1,', b'"user_id": %d,' % user)
            head, _, body = asked.partition(b"\r\n\r\n")
            lines = [each for each in head.split(b"\r\n") if not each.startswith(b"Content-Length")]
            await ask_once(port, b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body)

    await asyncio.gather(*(client() for _ in range(16)))
    return _cores(before, process, loop.time() - began)


def _mib(process: psutil.Process) -> float:
    return round(float(process.memory_info().rss) / 2**20, 1)


def _cores(before: Any, process: psutil.Process, seconds: float) -> float:
    after = process.cpu_times()
    spent: float = after.user + after.system - before.user - before.system
    return round(spent / seconds, 3)


def main() -> None:
    """Print the footprint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--users", type=int, default=100_000, help="entries to put into the cache")
    parser.add_argument("--max-bytes", default="64MiB", help="cache.max_bytes")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
