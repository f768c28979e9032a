"""Write the pictures in docs/images again: `make screenshots`.

An hour of traffic is played in a moment, on a clock of its own.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.settings import BreakerSettings, LogLevel, LogSettings, RetrySettings, Settings
from sidecar.telemetry.log_setup import Logs
from tests.harness import Reference, Sidecar, reference, settings_for, sidecar_with
from tests.system.pages import PHONE, chromium, opened
from tests.system.small_png import small

FOLDER = Path(__file__).parents[2] / "docs/images"
NODES = {
    "generating_content": 0.9,
    "answer_question": 0.8,
    "generating_questions": 0.5,
    "edit_material": 0.3,
    "recognition_handwritten": 0.15,
    "security_guard_detection": 0.7,
}
"""How often each is asked for."""
USERS = 9
DAYS = 3 * 86_400.0
HOUR = 3600.0
STEP = 15.0
"""Seconds that pass between two rounds of requests."""
POLICY = Policy(ttl=420.0, stale_while_revalidate=30.0, stale_if_error=1200.0, network_timeout=0.3)
STRICT = Policy(strategy=Strategy.NETWORK_FIRST, ttl=420.0, stale_if_error=600.0)


class Calendar:
    """Clocks that run as time does, and can be moved on; at the end they show the present."""

    def __init__(self, behind: float) -> None:
        self.behind = behind

    def clock(self) -> float:
        return time.monotonic() + DAYS * 2 - self.behind

    def wall(self) -> float:
        return time.time() - self.behind


class Scene:
    """A sidecar with a past."""

    def __init__(self, sidecar: Sidecar, service: Reference, calendar: Calendar) -> None:
        self.sidecar, self.service, self.calendar = sidecar, service, calendar
        self.chance = random.Random(7)

    async def plays(self, until: float) -> None:
        """Ask for prompts until so many seconds before the present, or after it."""
        while self.calendar.behind > until:
            self.calendar.behind = max(until, self.calendar.behind - STEP)
            load = 1 + self.chance.random()
            asked = [node for node, often in NODES.items() for _ in range(4) if self.chance.random() < often * load / 2]
            for node in asked:
                await self.sidecar.ask(self.chance.randint(1, USERS), node)
        await self.sidecar.settle()


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    calendar = Calendar(DAYS)
    async with reference(templates=dict.fromkeys(NODES, "Explain {{ topic }} in {{ style }}.")) as service:
        settings: Settings = settings_for(
            service.url,
            policy=POLICY,
            nodes={"security_guard_detection": STRICT},
            retry=RetrySettings(attempts=2, backoff=0.001, max_backoff=0.001),
            breaker=BreakerSettings(reset_timeout=45.0),
        )
        async with sidecar_with(settings, clock=calendar.clock, wall=calendar.wall) as sidecar:
            yield Scene(sidecar, service, calendar)


async def shoot(browser: Browser, of: Scene, name: str, *, whole: bool = True, **context: Any) -> None:
    async with opened(browser, f"{of.sidecar.ops}/", **context) as page:
        await page.locator("body:not([data-state=waiting])").wait_for()
        await page.evaluate("document.querySelector('#where').textContent = 'learnflow-5d9c7b-x2k8f:9102'")
        (FOLDER / f"{name}.png").write_bytes(small(await page.screenshot(full_page=whole, animations="disabled")))


async def main() -> None:
    """Play the hour, and take the pictures."""
    Logs.to_standard_error(LogSettings(level=LogLevel.ERROR))
    FOLDER.mkdir(exist_ok=True)
    async with chromium() as browser, scene() as of:
        of.calendar.behind = HOUR
        await of.plays(2400)
        of.service.fails(Mode.ERROR)
        await of.plays(2200)
        of.service.fails(Mode.NONE)
        await of.plays(540)
        await shoot(browser, of, "status-light")
        await shoot(browser, of, "status-dark", color_scheme="dark")
        of.service.fails(Mode.ERROR)
        await of.plays(90)
        await shoot(browser, of, "status-outage")
        await of.plays(-240)
        await shoot(browser, of, "status-phone", viewport=PHONE, whole=False)
    for picture in sorted(FOLDER.glob("status-*.png")):
        sys.stdout.write(f"{picture.name}: {picture.stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    asyncio.run(main())
