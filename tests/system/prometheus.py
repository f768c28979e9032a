"""A real Prometheus with our rules, whose windows are shortened."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.needs import program

DEPLOY = Path(__file__).parents[2] / "deploy"
START_SECONDS = 20.0
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SCRAPE = "500ms"
POLL_SECONDS = 0.25


def shorter(duration: str) -> str:
    """Return a window that a test can wait for: a minute becomes 3 s, an hour 7 s, three days 16 s."""
    seconds = int(duration[:-1]) * SECONDS[duration[-1]]
    return f"{round(3000 * (seconds / 60) ** 0.2)}ms"


def with_short_windows(expr: str) -> str:
    """Return an expression with its windows and offsets shortened; names of rules stay."""
    expr = re.sub(r"\[(\d+[smhd])\]", lambda found: f"[{shorter(found[1])}]", expr)
    return re.sub(r"\boffset (\d+[smhd])\b", lambda found: f"offset {shorter(found[1])}", expr)


def sooner(duration: str) -> str:
    """Return how long an alert waits here: a minute becomes a second."""
    return f"{int(duration[:-1]) * SECONDS[duration[-1]] * 1000 // 60}ms"


def rules() -> list[dict[str, Any]]:
    """Return all rules, as they are shipped."""
    files = (yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in ("rules.yaml", "alerts.yaml"))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def write_configuration(folder: Path, targets: Mapping[str, str]) -> Path:
    """Write the configuration; `targets`: pod → address."""
    short = [
        rule | {"expr": with_short_windows(rule["expr"])} | ({"for": sooner(rule["for"])} if "for" in rule else {})
        for rule in rules()
    ]
    rule_file = {"groups": [{"name": "all", "interval": SCRAPE, "rules": short}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule_file))
    job = {
        "job_name": "prompt-sidecar",
        "static_configs": [
            {"targets": [address], "labels": {"namespace": "prod", "pod": pod}} for pod, address in targets.items()
        ],
    }
    configuration = {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [job],
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return path


class Prometheus:
    """A client of the running server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an API call."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            answer = json.loads(await response.read())
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    async def samples(self, expr: str) -> list[Any]:
        """Return what an expression gives now."""
        found: list[Any] = (await self.ask("query", query=expr))["result"]
        return found

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in await self.alerts() if alert["state"] == "firing"}

    async def alerts(self) -> list[Any]:
        """Return the alerts that are pending or firing."""
        found: list[Any] = (await self.ask("alerts"))["alerts"]
        return found

    async def until(self, holds: Callable[[], Awaitable[bool]], seconds: float, what: Callable[[], object]) -> None:
        """Ask again until it holds; `what`: what is told where it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                while not await holds():  # noqa: ASYNC110 — nothing announces what Prometheus will see
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what()}") from None


@asynccontextmanager
async def prometheus(folder: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """Run Prometheus over these targets."""
    executable = program("prometheus", from_="the Debian package prometheus")
    configuration = write_configuration(folder, targets)
    process = await asyncio.create_subprocess_exec(
        *(executable, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}"),
        *("--web.listen-address=127.0.0.1:0", "--query.lookback-delta=3s"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    said: list[str] = []
    address = ""
    draining: asyncio.Future[bytes] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            async for line in process.stderr:
                said.append(line.decode())
                if found := re.search(r'msg="Listening on" address=(\S+)', said[-1]):
                    address = found[1]
                if "Server is ready" in said[-1]:
                    break
        assert address, "".join(said)
        draining = asyncio.ensure_future(process.stderr.read())
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield Prometheus(session, f"http://{address}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if draining is not None:
            await draining
