"""Headless Chromium before a status page; whatever the page complains of is an error of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.needs import program

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--font-render-hinting=none",
    "--disable-lcd-text",
)
PATIENCE_MS = 15_000
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run the browser."""
    executable = program("chromium", from_="chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=[*FLAGS])
        try:
            yield browser
        finally:
            await browser.close()


class Complaints(list[str]):
    """What the browser's console says, and errors that nobody caught; a network that is away is none of them."""

    def hear(self, message: ConsoleMessage) -> None:
        """Keep a message, unless it says only that the sidecar was not there."""
        if "net::ERR_" not in message.text:
            self.append(f"{message.type}: {message.text}")


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """Open a page in a context of its own, and have it without complaints to the end."""
    complaints = Complaints()
    given = {"viewport": DESKTOP, "color_scheme": "light", "reduced_motion": "reduce", **context}
    of = await browser.new_context(**given)
    try:
        page = await of.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", complaints.hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        yield page
        assert complaints == []
    finally:
        await of.close()
