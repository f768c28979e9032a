"""From 0 to 100 % and back: who is rendered here, and a kill switch that loses no request."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.core.rollout import bucket
from sidecar.demo.processes import child
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import BreakerSettings, OnUpstreamFailure, RolloutSettings, Settings, UpstreamApi
from tests.harness import (
    EVENTUALLY_SECONDS,
    Answered,
    Client,
    Reference,
    Sidecar,
    client_of,
    eventually,
    quick_settings,
    reference,
    sidecar_with,
)

BYPASS = "prompt-sidecar; fwd=bypass; detail=rollout"
USERS = range(1, 31)
TEMPLATES = {"explain": "Explain {{ topic }} in {{ language }}.", "question": "Ask of {{ topic }} in {{ language }}."}
PROMPT = "Explain tides in English."
NEVER_OPENS = BreakerSettings(fail_max=1000)
WORKERS, BEFORE, AFTER = 6, 120, 120
"""Who asks without a pause, and how many answers are waited for on either side of the switch."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump({f"{node}_system_prompt": text for node, text in TEMPLATES.items()}), "utf-8")
    return path


@pytest.fixture(params=[Generation.PLACEHOLDERS, Generation.PROMPT_DATA])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Reference]:
    async with reference(templates=TEMPLATES, generation=request.param, render=TODAY) as running:
        yield running


def settings_of(service: Reference, file: Path, **rollout: Any) -> Settings:
    upstream = {"api": UpstreamApi(service.state.generation.value), "templates_file": file}
    return quick_settings(service.url, upstream=upstream, rollout=RolloutSettings(**rollout), breaker=NEVER_OPENS)


async def rendered_here(sidecar: Sidecar, *, node: str = "explain") -> set[int]:
    """Ask for all users, and return those whose prompt was rendered here; all prompts are right."""
    here = set()
    prompt = TEMPLATES[node].replace("{{ topic }}", "tides").replace("{{ language }}", "English")
    for user in USERS:
        answered = await sidecar.ask(user, node)
        assert answered.prompt == prompt
        if answered.how != BYPASS:
            assert "bypass" not in answered.how
            here.add(user)
    return here


async def test_nobody_some_or_everybody_is_rendered_here_and_a_restart_changes_nothing(
    service: Reference, file: Path
) -> None:
    found: dict[float, set[int]] = {}
    for percent in (0.0, 0.5, 0.8, 1.0):
        for _ in range(2):  # the second time after a restart
            async with sidecar_with(settings_of(service, file, percent=percent)) as sidecar:
                here = await rendered_here(sidecar)
                assert found.setdefault(percent, here) == here
                outside = len(USERS) - len(here)
                said = f'prompt_sidecar_bypassed_requests_total{{reason="rollout"}} {outside}.0'
                assert (said in await sidecar.metrics()) == (outside > 0)
                assert await rendered_here(sidecar, node="question") == here  # of the user, whatever the node
    assert found[0.0] == set() < found[0.5] < found[0.8] < found[1.0] == set(USERS)  # who is in stays in
    assert found[0.5] == {user for user in USERS if bucket(user) < 0.5}


async def test_nodes_and_excluded_nodes_are_heeded(service: Reference, file: Path) -> None:
    for rollout, here in (
        ({"nodes": frozenset({"explain"})}, {"explain"}),
        ({"exclude": frozenset({"explain"})}, {"question"}),
        ({"nodes": frozenset(TEMPLATES), "exclude": frozenset({"question"})}, {"explain"}),
        ({"nodes": frozenset({"explain"}), "percent": 0.0}, set()),
    ):
        async with sidecar_with(settings_of(service, file, **rollout)) as sidecar:
            for node in TEMPLATES:
                answered = await sidecar.ask(1, node)
                assert answered.prompt.endswith("in English.")
                assert (answered.how != BYPASS) == (node in here)
            unknown = await sidecar.ask(1, "no-such-node")
            assert unknown.document["detail"] == "Template not found for node: no-such-node"


async def test_nothing_of_a_bypassed_request_is_kept_and_each_costs_one_call(service: Reference, file: Path) -> None:
    async with sidecar_with(settings_of(service, file, percent=0.0)) as sidecar:
        for number in range(1, 4):
            assert (await sidecar.ask()).how == BYPASS
            assert service.state.calls["generate-prompt"] == number
        await sidecar.settle()
        assert len(sidecar.core.cache) == 0
        assert service.state.calls.total() == 3
        assert 'prompt_sidecar_requests_total{node="explain",outcome="bypass"} 3.0' in await sidecar.metrics()


@pytest.mark.parametrize("fault", [Mode.UNAVAILABLE, Mode.RESET, Mode.GARBAGE, Mode.HANG])
async def test_in_an_outage_a_bypassed_request_fails_as_it_would_without_a_sidecar(
    service: Reference, file: Path, fault: Mode
) -> None:
    settings = settings_of(service, file, percent=0.0, on_upstream_failure=OnUpstreamFailure.FAIL)
    async with sidecar_with(settings) as sidecar:
        assert (await sidecar.ask()).how == BYPASS
        await sidecar.settle()
        service.fails(fault, retry_after=0)
        answered = await sidecar.ask()
        assert answered.status == {Mode.GARBAGE: 502, Mode.HANG: 504}.get(fault, 503)
        assert answered.is_problem
        assert "fwd=bypass" in answered.how
        assert "detail=rollout" in answered.how
        service.fails(Mode.NONE)
        assert (await sidecar.ask()).prompt == PROMPT


@pytest.mark.parametrize("fault", [Mode.UNAVAILABLE, Mode.RESET, Mode.GARBAGE, Mode.HANG])
async def test_in_an_outage_a_bypassed_request_is_rendered_here_where_the_settings_say_so(
    service: Reference, file: Path, fault: Mode
) -> None:
    settings = settings_of(service, file, percent=0.0, on_upstream_failure=OnUpstreamFailure.LOCAL)
    async with sidecar_with(settings) as sidecar:
        assert (await sidecar.ask()).how == BYPASS
        await sidecar.settle()  # its static parts are fetched behind the answer
        service.fails(fault, retry_after=0)
        answered = await sidecar.ask(context={"topic": "dunes"})
        assert answered.prompt == "Explain dunes in English."
        assert answered.how.startswith("prompt-sidecar; fwd=bypass")
        assert (await sidecar.ask(2)).status in {502, 503, 504}  # nothing is at hand of somebody new
        service.fails(Mode.NONE)
        assert (await sidecar.ask()).how == BYPASS


async def test_a_refusal_is_not_covered_by_a_prompt_from_here(service: Reference, file: Path) -> None:
    settings = settings_of(service, file, percent=0.0, on_upstream_failure=OnUpstreamFailure.LOCAL)
    async with sidecar_with(settings) as sidecar:
        await sidecar.ask()
        await sidecar.settle()
        del service.state.templates["explain"]
        answered = await sidecar.ask()
        assert (answered.status, answered.document["detail"]) == (400, "Template not found for node: explain")


@asynccontextmanager
async def process(service: Reference, config: Path, file: Path) -> AsyncIterator[tuple[Client, int]]:
    """Run a sidecar as a process that reads this file; yield a client of it and its id."""
    upstream: Mapping[str, str] = {
        "SIDECAR_UPSTREAM__URL": service.url,
        "SIDECAR_UPSTREAM__API": service.state.generation.value,
        "SIDECAR_UPSTREAM__TEMPLATES_FILE": str(file),
    }
    arguments = ("run", "--config", str(config), "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
    async with child(*arguments, settings=upstream) as running:
        started = json.loads(running.first_line)
        async with client_of(f"http://{started['listen']}", f"http://{started['ops']}") as client:
            yield client, running.pid


async def percent_of(client: Client) -> float:
    async with client.session.get(f"{client.ops}/status") as response:
        return float((await response.json())["rollout"]["percent"].rstrip("%"))


class Load:
    """Asks without a pause, each time on a new connection, and remembers every answer in order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answers: list[Answered] = []
        self.stop = False
        self._came = asyncio.Event()

    async def worker(self, number: int) -> None:
        user = number
        while not self.stop:
            user = user % 200 + WORKERS
            self.answers.append(await self.client.ask(user))
            self._came.set()

    async def more(self, count: int) -> None:
        """Wait until so many more answers are here."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            while len(self.answers) < wanted:
                self._came.clear()
                await self._came.wait()


@pytest.mark.parametrize("how", ["SIGHUP", "the file's change"])
async def test_the_kill_switch_works_under_load_without_a_lost_request(
    service: Reference, file: Path, tmp_path: Path, how: str
) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text("rollout: {percent: 100}\n", "utf-8")
    async with process(service, config, file) as (client, pid):
        load = Load(client)
        async with asyncio.TaskGroup() as tasks:
            for number in range(WORKERS):
                tasks.create_task(load.worker(number + 1))
            await load.more(BEFORE)
            assert not any(answered.how == BYPASS for answered in load.answers)
            config.write_text("rollout: {percent: 0}\n", "utf-8")
            if how == "SIGHUP":
                os.kill(pid, signal.SIGHUP)

            async def is_off() -> bool:
                return await percent_of(client) == 0

            await eventually(is_off)
            in_flight_until = len(load.answers) + WORKERS
            await load.more(AFTER)
            load.stop = True
    assert len(load.answers) >= BEFORE + AFTER
    assert {answered.prompt for answered in load.answers} == {PROMPT}  # each one a 200, whichever way it was made
    assert all(answered.how == BYPASS for answered in load.answers[in_flight_until:])
