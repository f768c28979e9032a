"""Dashboards, rules and alerts before a real Prometheus that scrapes two real sidecars through an outage."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import yaml

from sidecar.demo.processes import Child, start
from sidecar.demo.reference.faults import Fault, Mode
from sidecar.demo.reference.state import RenderOptions
from tests.harness import PATH, Reference, reference
from tests.system.dashboards import Asked, queries
from tests.system.prometheus import Prometheus, prometheus, rules

NODES = {"explain": "Explain {{ topic }} in {{ style }}.", "quiz": "Ask about {{ topic }} in {{ style }}."}
LENIENT = RenderOptions(undefined="empty")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FEW_SECONDS, PATIENCE = 10.0, 30.0


class Pod:
    """A sidecar that is a process, with a file of settings that can be changed."""

    def __init__(self, child: Child, settings: Path) -> None:
        said = json.loads(child.first_line)
        self.child, self.settings = child, settings
        self.listen, self.ops = said["listen"], said["ops"]

    async def warm_up(self) -> None:
        """Have users warmed up who have not asked."""
        asked = {"users": [*range(1000, 1050)], "nodes": [*NODES]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{self.ops}/admin/warm", json=asked) as response,
        ):
            assert response.status == 202, await response.text()

    def reload(self, text: str | None = None) -> None:
        if text is not None:
            self.settings.write_text(text)
        os.kill(self.child.pid, signal.SIGHUP)


@asynccontextmanager
async def pod(folder: Path, url: str, **sections: object) -> AsyncIterator[Pod]:
    settings = {
        "listen": "127.0.0.1:0",
        "ops": {"listen": "127.0.0.1:0"},
        "upstream": {"url": url, "api": "prompt-data"},
        "policy": {
            "default": {
                "ttl": "700ms",
                "stale_while_revalidate": "100ms",
                "stale_if_error": "9s",
                "network_timeout": "200ms",
            }
        },
        "breaker": {"reset_timeout": "1s"},
        **sections,
    }
    folder.mkdir()
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(settings))
    child = await start("run", "--config", str(path), settings={"SIDECAR_STORE__KIND": "file"})
    try:
        yield Pod(child, path)
    finally:
        await child.stop()


async def traffic(pods: list[Pod], session: aiohttp.ClientSession) -> None:
    """Ask as LearnFlow and its bot do, until cancelled."""
    n = 0
    while True:
        n += 1
        for each in pods:
            body = {"user_id": 1 + n % 3, "node_name": [*NODES][n % 2], "context": {"topic": "tides"}}
            with suppress(aiohttp.ClientError):
                headers = {"traceparent": TRACE}
                async with session.post(f"http://{each.listen}{PATH}", json=body, headers=headers) as response:
                    await response.read()
                if n % 5 == 0:
                    for path in ("/api/v1/profiles/", "/health"):
                        async with session.get(f"http://{each.listen}{path}") as response:
                            await response.read()
        await asyncio.sleep(0.03)


class Watched:
    """What is still to be seen: each query must return data at some moment of the outage, each alert must fire."""

    def __init__(self, server: Prometheus) -> None:
        self._server = server
        recorded = [Asked(f"rule {rule['record']}", rule["record"]) for rule in rules() if "record" in rule]
        self.queries = [*queries(), *recorded]
        self.fired: set[str] = set()
        self.missing: set[str] = set()

    async def look(self) -> None:
        self.fired |= await self._server.firing()
        answers = await asyncio.gather(*(self._server.samples(asked.expr) for asked in self.queries))
        self.queries = [asked for asked, samples in zip(self.queries, answers, strict=True) if not samples]

    async def fire(self, *alerts: str, seconds: float = PATIENCE) -> None:
        async def all_fired() -> bool:
            await self.look()
            self.missing = set(alerts) - self.fired
            return not self.missing

        await self._server.until(all_fired, seconds, lambda: self.missing)

    async def rest(self, *alerts: str) -> None:
        async def none_fires() -> bool:
            self.missing = set(alerts) & await self._server.firing()
            return not self.missing

        await self._server.until(none_fires, PATIENCE, lambda: f"still firing: {self.missing}")

    async def data(self) -> None:
        async def all_seen() -> bool:
            await self.look()
            return not self.queries

        await self._server.until(all_seen, PATIENCE, lambda: [f"no data: {where}: {e}" for where, e in self.queries])


@asynccontextmanager
async def busy(pods: list[Pod]) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        asking = asyncio.ensure_future(traffic(pods, session))
        try:
            yield
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking


async def known(server: Prometheus, expr: str) -> None:
    async def found() -> bool:
        return bool(await server.samples(expr))

    await server.until(found, PATIENCE, lambda: expr)


@pytest.mark.timeout(150)
async def test_an_outage_is_seen_on_every_panel_and_by_every_alert_that_it_concerns(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        upstream: Reference = await stack.enter_async_context(reference(templates=NODES, render=LENIENT))
        kept = await stack.enter_async_context(
            pod(tmp_path / "a", upstream.url, store={"path": str(tmp_path / "a.db")})
        )
        compared = await stack.enter_async_context(
            pod(tmp_path / "b", upstream.url, store={"path": str(tmp_path / "b.db")}, shadow={"sample_rate": "100%"})
        )
        server = await stack.enter_async_context(
            prometheus(tmp_path, {"sidecar-a": kept.ops, "sidecar-b": compared.ops})
        )
        await stack.enter_async_context(busy([kept, compared]))
        watched = Watched(server)

        # All is well, and nothing fires; settings are read again.
        await known(server, 'prompt_sidecar:hits:ratio_rate5m{namespace="prod"} > 0')
        await known(server, 'sum(prompt_sidecar_parity_checks_total{result="match"}) > 5')
        kept.reload()
        await known(server, "changes(prompt_sidecar_config_last_reload_success_timestamp_seconds[3s]) > 0")
        await kept.warm_up()
        await known(server, 'sum(rate(prompt_sidecar_warmup_pairs_total{result="stored"}[4s])) > 0')
        await watched.look()
        assert watched.fired == set()

        # The service renders without settings: the sidecar that compares takes its nodes back.
        upstream.fails(Mode.DATABASE_DOWN, endpoint="generate-prompt")
        await watched.fire("PromptSidecarParityMismatch", "PromptSidecarRolledBack")
        await known(server, "sum(rate(prompt_sidecar_bypassed_requests_total[4s])) > 0")

        # The service fails altogether: stale data first, then errors; meanwhile settings are broken.
        upstream.fails(Mode.UNAVAILABLE)
        kept.reload("deadline: soon\n")
        await watched.fire(
            "PromptSidecarStaleServed",
            "PromptSidecarStaleEndsSoon",
            "PromptSidecarCircuitOpen",
            "PromptSidecarUpstreamFailing",
            "PromptSidecarFreshnessBudgetBurn",
            "PromptSidecarReloadFailed",
        )
        await watched.fire("PromptSidecarAvailabilityBudgetBurn")
        await watched.data()

        # It is back, and what told of the outage says no more.
        upstream.state.fault = Fault()
        await watched.rest("PromptSidecarStaleEndsSoon", "PromptSidecarCircuitOpen", "PromptSidecarStaleServed")

        # A sidecar dies.
        await compared.child.kill()
        await watched.fire("PromptSidecarDown", seconds=FEW_SECONDS)
        assert {re.sub(r"^PromptSidecar", "", name) for name in watched.fired} & {"Absent", "Crashed"} == set()
