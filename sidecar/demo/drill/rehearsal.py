"""The drill itself: a reference service and a sidecar of its own, failures and recoveries in turn."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import yaml

from sidecar.demo import processes
from sidecar.demo.drill.oracle import Oracle
from sidecar.demo.drill.plan import REFUSED, Plan, rehearsed
from sidecar.demo.drill.tally import Asked, Phase, fresh_again
from sidecar.demo.drill.traffic import Traffic

LOOK_SECONDS = 0.1
"""Between two looks at whether all is fresh again."""
OPS_SECONDS = 2.0
RESTARTED = frozenset({REFUSED, "hang"})
"""Failures that end with the service's restart: what hangs is not answered after all."""
Show = Callable[["Rehearsal"], None]


class Rehearsal:
    """A drill under way: what has been measured so far is there at any time."""

    def __init__(self, plan: Plan, show: Show) -> None:
        self.plan = plan
        self.phases: list[Phase] = []
        self.under_way = "starting"
        self.asked: list[Asked] = []
        self.direct: list[Asked] = []
        self._show = show
        self._now = time.monotonic
        self._ops = ""

    async def run(self) -> None:
        """Go through all phases; raises `ChildError` and `PlanError`. Ended early, it leaves no process behind."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="prompt-sidecar-drill-")))
            oracle = Oracle(self.plan, str(folder / "users.db"))
            stack.callback(oracle.close)
            service = _Service(self.plan, folder, stack)
            await service.start("127.0.0.1:0")
            settings = rehearsed(self.plan, service.address, folder)
            (folder / "sidecar.yaml").write_text(yaml.safe_dump(settings), "utf-8")
            sidecar = await processes.start(
                "run",
                "--config",
                str(folder / "sidecar.yaml"),
                settings={"SIDECAR_STORE__KIND": settings["store"]["kind"]},
            )
            stack.push_async_callback(sidecar.stop)
            traffic = Traffic(self.plan, oracle, sidecar=sidecar.address, service=service.address)
            self.asked, self.direct = traffic.asked, traffic.direct
            self._now, self._ops = traffic.now, sidecar.ops
            flow = asyncio.ensure_future(traffic.flow())
            try:
                await self._phases(service, oracle)
                traffic.stop()
                await flow
            finally:
                flow.cancel()
                await asyncio.gather(flow, return_exceptions=True)

    async def _phases(self, service: "_Service", oracle: Oracle) -> None:
        async with self._phase("all is well"):
            await self._wait(self.plan.baseline)
        for failure in self.plan.failures:
            async with self._phase(failure, failure, is_outage=True):
                await service.fail(failure)
                oracle.revise()
                await self._wait(self.plan.duration)
                await service.recover(failure)
            async with self._phase("recovery", failure):
                await self._wait(self.plan.recovery, until=partial(self._is_fresh, self._now()))

    def _is_fresh(self, since: float) -> bool:
        """Say whether all is as fresh as it was, and was looked at for a while."""
        recent = [each for each in self.asked[-10_000:] if each.at >= since]
        return len(recent) >= 2 * len(self.plan.pairs) and fresh_again(since, recent, self.plan.pairs) is not None

    async def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            self._show(self)
            await asyncio.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))

    @asynccontextmanager
    async def _phase(self, name: str, failure: str | None = None, *, is_outage: bool = False) -> AsyncIterator[None]:
        """Note when a phase began and ended, however it did, and when the circuit opened in it."""
        self.under_way = name
        began_at, wall = self._now(), time.time()
        opened_at = None
        try:
            yield
            opened_at = await _circuit_opened(self._ops, wall)
        finally:
            phase = Phase(
                name=name,
                failure=failure,
                is_outage=is_outage,
                began_at=began_at,
                ended_at=self._now(),
                circuit_opened_at=None if opened_at is None else began_at + opened_at - wall,
            )
            self.phases.append(phase)


class _Service:
    """The reference service, broken and mended."""

    def __init__(self, plan: Plan, folder: Path, stack: AsyncExitStack) -> None:
        self._plan = plan
        self._database = str(folder / "users.db")
        self._stack = stack
        self.address = ""

    async def start(self, listen: str) -> None:
        plan = self._plan
        templates = plan.settings.upstream.templates_file
        flags = ["--listen", listen, "--database", self._database, "--generation", plan.generation.value]
        flags += ["--cache-ttl", str(plan.cache_ttl), *(() if templates is None else ("--templates", str(templates)))]
        self._process = await processes.start("upstream", *flags)
        self._stack.push_async_callback(self._process.stop)
        self.address = self._process.address

    async def fail(self, failure: str) -> None:
        if failure == REFUSED:
            await self._process.kill()
        else:
            await self._switch(failure)

    async def recover(self, failure: str) -> None:
        if failure in RESTARTED:
            await self._process.kill()
            await self.start(self.address)
        else:
            await self._switch("none")

    async def _switch(self, mode: str) -> None:
        try:
            async with aiohttp.ClientSession(raise_for_status=True) as session:
                await session.put(f"http://{self.address}/_reference/fault", json={"mode": mode})
        except aiohttp.ClientError as error:
            raise processes.ChildError(f"the reference config service is gone: {error}") from error


async def _circuit_opened(ops: str, since: float) -> float | None:
    """Return when (wall clock) the circuit to the service first opened since then; None: it did not, or nobody says."""
    timeout = aiohttp.ClientTimeout(OPS_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"http://{ops}/status") as answer:
            status: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    circuits = [each for each in status["circuits"] if each["name"] == "upstream"]
    changes = [change for each in circuits for change in each["transitions"] if change["to"] == "open"]
    opened = [datetime.fromisoformat(change["at"]).timestamp() for change in changes]
    return min((at for at in opened if at >= since), default=None)
