"""Our prompts compared with the service's own: a node that differs goes back to it by itself, and comes back mended."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation, RenderOptions
from sidecar.service.shadow import RECHECK_SECONDS
from sidecar.settings import BreakerSettings, RetrySettings, RolloutSettings, ShadowSettings, UpstreamApi
from tests.harness import (
    JSON,
    KEPT,
    PATH,
    QUICK_LIMIT,
    ManualClock,
    Reference,
    Sidecar,
    eventually,
    quick_settings,
    reference,
    sidecar_with,
)

THEIRS = {"explain": "Explain {{ topic }} in {{ language }}.", "question": "Ask of {{ topic }} in {{ language }}."}
OURS = {**THEIRS, "explain": "Teach {{ topic }} in {{ language }}."}
CANARY = "canary-7f3a"
NEVER_OPENS = BreakerSettings(fail_max=1000)
OPENS_SOON = BreakerSettings(fail_max=3, reset_timeout=10)
PARITY_BYPASS = "prompt-sidecar; fwd=bypass; detail=parity"
MISMATCHES = 3
PATIENT: dict[str, Any] = {"deadline": 8.0, "retry": RetrySettings(per_try_timeout=8.0)}
"""What hangs is waited for until the test lifts it."""


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with capture_logs() as events:
        yield events


class Here(Sidecar):
    """A sidecar before today's service that compares all it renders, from a template file of its own."""

    def __init__(self, sidecar: Sidecar, service: Reference, file: Path, clock: ManualClock) -> None:
        super().__init__(sidecar, sidecar.core)
        self.service = service
        self.file = file
        self.clock = clock

    async def prompt(self, node: str = "explain", user: int = 1, topic: str = "tides") -> str:
        """Ask, and let the comparison behind the answer end."""
        answered = await self.ask(user, node, {"topic": topic})
        await self.settle()
        return answered.prompt

    async def directly(self, node: str = "explain") -> str:
        body = json.dumps({"user_id": 1, "node_name": node, "context": {"topic": "tides"}}).encode()
        async with self.session.post(self.service.url + PATH, data=body, headers=JSON) as response:
            prompt: str = (await response.json())["prompt"]
            return prompt

    async def counted(self, node: str = "explain") -> dict[str, int]:
        """Return how often which result of a comparison was counted."""
        begin = f'prompt_sidecar_parity_checks_total{{node="{node}",result="'
        lines = [each.removeprefix(begin) for each in (await self.metrics()).splitlines() if each.startswith(begin)]
        counted = {line.partition('"')[0]: int(float(line.split()[-1])) for line in lines}
        return {result: count for result, count in counted.items() if count}

    async def set_aside(self) -> list[str]:
        async with self.session.get(f"{self.ops}/status") as response:
            return list((await response.json())["parity"]["set_aside"])

    async def is_rolled_back(self, value: float, node: str = "explain") -> bool:
        return f'prompt_sidecar_rolled_back{{node="{node}"}} {value}' in await self.metrics()

    async def reset(self, body: bytes) -> tuple[int, Any]:
        async with self.session.post(f"{self.ops}/admin/parity", data=body, headers=JSON) as response:
            return response.status, await response.json()


def write(file: Path, templates: dict[str, str]) -> None:
    text = yaml.safe_dump({f"{node}_system_prompt": template for node, template in templates.items()})
    file.write_text(text, "utf-8")


@asynccontextmanager
async def comparing(folder: Path, templates: dict[str, str], **sections: Any) -> AsyncIterator[Here]:
    clock, file = ManualClock(), folder / "prompts.yaml"
    given = {"breaker": NEVER_OPENS, "shadow": ShadowSettings(sample_rate=1.0, max_mismatches=MISMATCHES), **sections}
    async with reference(templates=THEIRS, generation=Generation.PLACEHOLDERS, render=TODAY) as service:
        write(file, templates)
        upstream = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": file}
        async with sidecar_with(quick_settings(service.url, upstream=upstream, **given), clock=clock) as sidecar:
            yield Here(sidecar, service, file, clock)


async def test_prompts_that_are_the_same_are_counted_as_matches(tmp_path: Path, logged: list[Any]) -> None:
    async with comparing(tmp_path, THEIRS) as here:
        for user in range(1, 6):
            assert await here.prompt(user=user) == await here.directly()
        assert await here.counted() == {"match": 5}
        assert await here.set_aside() == []
    assert not [event for event in logged if event["log_level"] in {"warning", "error"}]


async def test_a_setting_that_changes_in_between_is_no_mismatch(tmp_path: Path) -> None:
    async with comparing(tmp_path, THEIRS, **PATIENT) as here:
        for language in ("German", "Dutch", "English", "German"):
            here.service.fails(Mode.HANG, endpoint="generate-prompt")
            assert (await here.ask()).status == 200
            here.service.state.database.change(1, {"language": language})
            here.service.fails(Mode.NONE)
            await here.settle()
        assert await here.counted() == {"outdated": 4}
        assert await here.set_aside() == []


async def test_a_node_that_differs_goes_back_to_the_service_by_itself_and_loudly(
    tmp_path: Path, logged: list[Any]
) -> None:
    async with comparing(tmp_path, OURS) as here:
        for _ in range(MISMATCHES):
            assert await here.prompt() == "Teach tides in English."
            assert await here.prompt("question") == "Ask of tides in English."
        assert await here.counted() == {"mismatch": MISMATCHES}
        assert await here.set_aside() == ["explain"]
        assert await here.is_rolled_back(1.0)
        answered = await here.ask()
        assert answered.prompt == await here.directly() == "Explain tides in English."
        assert answered.how == PARITY_BYPASS
        assert 'prompt_sidecar_bypassed_requests_total{reason="parity"} 1.0' in await here.metrics()
        assert "bypass" not in (await here.ask(node="question")).how  # another node is untouched
        await here.settle()
        assert set(await here.counted("question")) == {"match"}
    (told,) = [event for event in logged if event["event"] == "node_rolled_back"]
    assert (told["node"], told["reason"], told["log_level"]) == ("explain", "parity", "error")
    differences = [event for event in logged if event["event"] == "parity_mismatch"]
    assert len(differences) >= MISMATCHES
    assert {(event["node"], event["part"], event["position"]) for event in differences} == {("explain", "prompt", 0)}
    assert {(event["our_length"], event["their_length"]) for event in differences} == {(23, 25)}


async def test_a_template_that_is_corrected_is_taken_into_service_again_by_itself(
    tmp_path: Path, logged: list[Any]
) -> None:
    async with comparing(tmp_path, OURS) as here:

        async def is_out_of_service() -> bool:
            await here.ask()
            return await here.set_aside() == ["explain"]

        async def is_in_service() -> bool:
            here.clock.advance(RECHECK_SECONDS)
            assert (await here.ask()).prompt == "Explain tides in English."  # whoever makes it
            return await here.set_aside() == []

        await eventually(is_out_of_service)
        write(here.file, THEIRS)  # and the watcher sees it
        await eventually(is_in_service)
        answered = await here.ask()
        assert answered.prompt == "Explain tides in English."
        assert "bypass" not in answered.how
        assert await here.is_rolled_back(0.0)
    (told,) = [event for event in logged if event["event"] == "node_taken_into_service"]
    assert (told["node"], told["reason"], told["log_level"]) == ("explain", "template changed", "warning")


async def test_the_same_template_stays_out_of_service_however_long_until_a_person_says_otherwise(
    tmp_path: Path,
) -> None:
    async with comparing(tmp_path, OURS) as here:
        for _ in range(MISMATCHES):
            await here.prompt()
        for _ in range(3):
            here.clock.advance(3600)
            assert await here.prompt() == "Explain tides in English."
        assert await here.set_aside() == ["explain"]
        assert await here.reset(b'{"reset": "question"}') == (200, {"reset": []})
        status, _ = await here.reset(b"{}")
        assert status == 422
        assert await here.set_aside() == ["explain"]
        assert await here.reset(b'{"reset": null}') == (200, {"reset": ["explain"]})
        assert await here.set_aside() == []
        assert await here.is_rolled_back(0.0)
        assert await here.prompt() == "Teach tides in English."  # as the person wished


async def test_no_content_is_ever_logged(tmp_path: Path, logged: list[Any]) -> None:
    async with comparing(tmp_path, OURS) as here:
        here.service.state.database.change(1, {"language": f"setting-{CANARY}"})
        for _ in range(MISMATCHES + 1):
            assert CANARY in await here.prompt(topic=f"topic-{CANARY}")
        here.clock.advance(RECHECK_SECONDS)
        await here.prompt(topic=f"topic-{CANARY}")
        assert CANARY not in await here.metrics()
        async with here.session.get(f"{here.ops}/status") as response:
            assert CANARY not in await response.text()
    assert any(event["event"] == "parity_mismatch" for event in logged)
    assert CANARY not in repr(logged)
    assert "Teach" not in repr(logged)


async def test_an_outage_behind_the_service_is_no_mismatch(tmp_path: Path) -> None:
    async with comparing(tmp_path, THEIRS, policy=KEPT) as here:
        good = await here.prompt()
        here.service.fails(Mode.DATABASE_DOWN)  # its own prompts have empty settings now
        for _ in range(MISMATCHES + 1):
            assert await here.prompt() == good
        here.service.fails(Mode.UNAVAILABLE, retry_after=0)
        assert await here.prompt() == good
        assert "mismatch" not in await here.counted()
        assert await here.set_aside() == []


async def test_under_load_comparisons_stop_first_and_prompts_are_unharmed(tmp_path: Path) -> None:
    shadow = ShadowSettings(sample_rate=1.0, max_in_flight=2)
    async with comparing(tmp_path, THEIRS, shadow=shadow, **PATIENT) as here:
        here.service.fails(Mode.HANG, endpoint="generate-prompt")
        answers = [await here.ask()]
        for _ in range(4):
            answers += await asyncio.gather(*(here.ask(user) for user in range(1, 11)))
        assert {answered.prompt for answered in answers} == {"Explain tides in English."}
        assert max(answered.seconds for answered in answers) < QUICK_LIMIT
        assert await here.counted() == {"skipped": 39}
        assert here.service.state.calls["generate-prompt"] == 2
        here.service.fails(Mode.NONE)
        await here.settle()
        assert await here.counted() == {"skipped": 39, "match": 2}


async def test_with_the_circuit_open_nothing_is_compared(tmp_path: Path) -> None:
    async with comparing(tmp_path, THEIRS, breaker=OPENS_SOON, policy=KEPT) as here:
        good = await here.prompt()
        here.service.fails(Mode.UNAVAILABLE, retry_after=0)
        await here.ask()
        calls = here.service.state.calls.total()
        for _ in range(5):
            assert await here.prompt() == good
        assert here.service.state.calls.total() == calls
        assert (await here.counted())["skipped"] >= 5


async def test_a_failing_comparison_does_not_open_the_circuit(tmp_path: Path) -> None:
    async with comparing(tmp_path, THEIRS, breaker=BreakerSettings(fail_max=1)) as here:
        here.service.fails(Mode.UNAVAILABLE, endpoint="generate-prompt", retry_after=0)
        for _ in range(5):
            assert await here.prompt() == "Explain tides in English."
        assert here.core.breaker.state == "closed"
        assert await here.counted() == {"failed": 5}


async def test_bypassed_requests_are_compared_before_the_first_is_rendered_here(tmp_path: Path) -> None:
    async with comparing(tmp_path, OURS, rollout=RolloutSettings(percent=0.0)) as here:
        assert await here.prompt() == "Explain tides in English."
        assert await here.prompt("question") == "Ask of tides in English."
        assert (await here.counted(), await here.counted("question")) == ({"mismatch": 1}, {"match": 1})


async def test_options_that_the_service_does_not_state_are_noticed_in_the_newer_generation() -> None:
    plain = RenderOptions(autoescape=False)
    shadow = ShadowSettings(sample_rate=1.0, max_mismatches=MISMATCHES)
    async with (
        reference(render=plain, announce_render=False) as service,
        sidecar_with(quick_settings(service.url, shadow=shadow)) as sidecar,
    ):
        for _ in range(MISMATCHES):
            assert (await sidecar.ask(context={"topic": "a < b"})).prompt.startswith("Explain a &lt; b")
            await sidecar.settle()
        answered = await sidecar.ask(context={"topic": "a < b"})
        assert answered.prompt.startswith("Explain a < b")
        assert answered.how == PARITY_BYPASS
