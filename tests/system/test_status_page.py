"""The status page in a real browser: what it says, to whom, and what it never does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.faults import Mode
from sidecar.settings import BreakerSettings, RetrySettings
from tests.harness import (
    ManualClock,
    Process,
    Reference,
    Sidecar,
    reference,
    settings_for,
    sidecar_process,
    sidecar_with,
)
from tests.system.pages import PATIENCE_MS, PHONE, chromium, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATES = {"explain": "Explain {{ topic }} in {{ style }}.", "quiz": "Ask about {{ topic }}."}
ALWAYS_ASK = Policy(strategy=Strategy.NETWORK_FIRST, ttl=60.0, stale_if_error=600.0, network_timeout=0.2)
IMAGE = "<img src=x onerror=document.title='owned'>"
SCRIPT = "\"><script>document.title='owned'</script>"
BACKWARDS = "0nimda_\u202egnp.exe\u2066\u200b"
LONG = "long_" + "n" * 10_000
HOSTILE = [IMAGE, SCRIPT, BACKWARDS, LONG, "{{ 7*7 }}", "a&amp;b", "ملف"]
CONTRAST = Path(__file__).with_name("contrast.js").read_text("utf-8")
AA = 4.5
BEGAN = 1_790_000_000.0
"""Unix seconds: any day."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


class Here(Sidecar):
    """A sidecar in this process, in the clock's time, before the reference service."""

    def __init__(self, sidecar: Sidecar, service: Reference, clock: ManualClock) -> None:
        super().__init__(sidecar, sidecar.core)
        self.service, self.clock = service, clock

    async def outage(self, policy_seconds: float = 90.0) -> None:
        """Fill the cache, and take the service away for a while."""
        await self.ask()
        await self.ask(1, "quiz")
        self.service.fails(Mode.ERROR)
        self.clock.advance(policy_seconds)
        for _ in range(6):
            await self.ask()


@asynccontextmanager
async def here(templates: dict[str, str] | None = None, **sections: Any) -> AsyncIterator[Here]:
    clock = ManualClock()
    given: dict[str, Any] = {
        "policy": ALWAYS_ASK,
        "retry": RetrySettings(attempts=1),
        "breaker": BreakerSettings(fail_max=3, reset_timeout=30.0),
        **sections,
    }
    async with (
        reference(templates=TEMPLATES if templates is None else templates) as service,
        sidecar_with(settings_for(service.url, **given), clock=clock, wall=lambda: clock() + BEGAN) as sidecar,
    ):
        yield Here(sidecar, service, clock)


async def look_again(page: Page) -> None:
    """Have the page ask now, and see its answer come."""
    async with page.expect_response("**/status"):
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def title(page: Page) -> Any:
    return expect(page.locator("h1"))


async def test_when_all_is_well_it_says_so_and_shows_what_was_asked(browser: Browser) -> None:
    async with here() as sidecar:
        for _ in range(3):
            await sidecar.ask()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("All is well")
            await expect(page.locator("#summary")).to_contain_text("3 requests in the last two minutes")
            await expect(page.locator("#nodes tr")).to_have_count(1)
            await expect(page.locator("#nodes th")).to_have_text("explain")
            await expect(page.locator("#circuits")).to_contain_text("not opened in the last hour")
            await expect(page.locator("#figures")).to_contain_text("no outage to cover")
            assert await page.title() == "✓ All is well · prompt-sidecar"
            drawn = await page.locator("path.series.fresh, path.series.miss").evaluate_all(
                "paths => paths.map(path => path.getAttribute('d'))"
            )
            assert any(drawn)


async def test_a_sidecar_that_was_never_asked_has_a_page_without_numbers(browser: Browser) -> None:
    async with here() as sidecar, opened(browser, f"{sidecar.ops}/") as page:
        await title(page).to_have_text("All is well")
        await expect(page.locator("#no-nodes")).to_be_visible()
        await expect(page.locator("body")).not_to_contain_text("NaN")
        await expect(page.locator("body")).not_to_contain_text("Infinity")


async def test_an_outage_and_its_end_are_seen_on_the_page_of_a_real_sidecar(browser: Browser, tmp_path: Path) -> None:
    quick = {
        "POLICY__DEFAULT__TTL": "200ms",
        "POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "0s",
        "POLICY__DEFAULT__STALE_IF_ERROR": "10m",
        "RETRY__ATTEMPTS": "1",
        "BREAKER__RESET_TIMEOUT": "100ms",
    }
    async with reference(templates=TEMPLATES) as service, sidecar_process(service.url, tmp_path, **quick) as sidecar:
        await sidecar.ask()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("All is well")
            service.fails(Mode.ERROR)
            await _ask_until(sidecar, page, "An outage is being covered")
            reason = page.locator("#reasons li").first
            await expect(reason).to_contain_text("explain: prompts are made from stale data")
            await expect(reason).to_contain_text("the policy allows it for 9 min")
            await expect(reason).to_contain_text("Since ")
            await expect(reason).to_contain_text("Runbook: stale-served")
            await expect(page.locator("#nodes tr")).to_contain_text("Stale, covered")
            await expect(page.locator("#parts tr").first).to_contain_text("server_error (prompt-data)")
            service.fails(Mode.NONE)
            await _ask_until(sidecar, page, "All is well")
            await expect(page.locator("#reasons li")).to_have_count(0)
            await expect(page.locator("#parts tr").first).to_contain_text("Answers")


async def _ask_until(sidecar: Process, page: Page, wanted: str) -> None:
    """Ask as LearnFlow would, and look, until the page says it."""
    for _ in range(200):
        await sidecar.ask()
        await look_again(page)
        if await page.locator("h1").text_content() == wanted:
            return
    pytest.fail(f"the page never said {wanted!r}")


async def test_who_fails_is_named_and_told_from_who_is_covered(browser: Browser) -> None:
    strict = Policy(strategy=Strategy.NETWORK_ONLY)
    async with here(nodes={"quiz": strict}) as sidecar:
        await sidecar.outage()
        await sidecar.ask(1, "quiz")
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("Requests fail")
            await expect(page.locator("#chip")).to_have_text("Failing")
            first, second = page.locator("#reasons li").nth(0), page.locator("#reasons li").nth(1)
            await expect(first).to_contain_text("quiz: 1 of the last ")
            await expect(second).to_contain_text("explain: prompts are made from stale data, up to 1 min 30 s old")
            await expect(page.locator("#figures")).to_contain_text("9 min 30 s")
            await expect(page.locator("#circuits")).to_contain_text("open for 0 s, next trial in 30 s; opened once")
            rows = await page.locator("#nodes tr").all_text_contents()
            assert [row.startswith(name) for row, name in zip(rows, ("quiz", "explain"), strict=True)] == [True, True]


# Names that would like to be more than names


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_hostile_node_name_is_text_and_nothing_else(browser: Browser, scheme: str) -> None:
    async with here(dict.fromkeys(HOSTILE, "{{ topic }}")) as sidecar:
        for name in HOSTILE:
            assert (await sidecar.ask(1, name)).status == 200
        sidecar.service.fails(Mode.ERROR)
        sidecar.clock.advance(90)
        for name in HOSTILE:
            assert (await sidecar.ask(1, name)).status == 200
        async with opened(browser, f"{sidecar.ops}/", color_scheme=scheme, viewport=PHONE) as page:
            await title(page).to_have_text("An outage is being covered")
            shown = await page.locator("#nodes th").all_text_contents()
            assert IMAGE in shown
            assert SCRIPT in shown
            assert "0nimda_\\u{202e}gnp.exe\\u{2066}\\u{200b}" in shown
            assert "{{ 7*7 }}" in shown
            assert "a&amp;b" in shown
            assert max(map(len, shown)) == 121  # and a sign that there is more
            reasons = await page.locator("#reasons").text_content()
            assert reasons is not None
            assert not {*"\u202e\u2066\u200b"} & {*reasons}  # a sentence that holds a name is read forwards
            assert await page.locator("main img, main script, tbody a").count() == 0
            assert "owned" not in await page.title()
            assert await _sideways(page) <= PHONE["width"]


async def test_texts_of_a_settings_file_are_no_markup_either(browser: Browser) -> None:
    async with here(nodes={IMAGE: Policy()}) as sidecar, opened(browser, f"{sidecar.ops}/") as page:
        await page.locator("#settings-part summary").click()
        await expect(page.locator("#settings")).to_contain_text(IMAGE)
        assert await page.locator("main img").count() == 0


# For everyone


@pytest.mark.parametrize("state", ["well", "outage", "lost"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_enough_contrast(browser: Browser, scheme: str, state: str) -> None:
    async with here() as sidecar:
        await sidecar.ask()
        if state == "outage":
            await sidecar.outage()
        async with opened(browser, f"{sidecar.ops}/", color_scheme=scheme) as page:
            await expect(page.locator("body:not([data-state=waiting])")).to_have_count(1)
            if state == "lost":
                await page.route("**/status", lambda route: route.abort())
                await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
                await expect(page.locator("body")).to_have_attribute("data-state", "lost")
            for part in ("#minutes-part", "#settings-part"):
                await page.locator(f"{part} > summary").click()
            found: list[dict[str, Any]] = await page.evaluate(CONTRAST)
            assert len(found) > 50
            assert [each for each in found if each["ratio"] < AA] == []


async def test_light_and_dark_are_two_pages(browser: Browser) -> None:
    async with here() as sidecar:
        seen = []
        for scheme in ("light", "dark"):
            async with opened(browser, f"{sidecar.ops}/", color_scheme=scheme) as page:
                seen.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert seen == ["rgb(245, 246, 248)", "rgb(14, 19, 26)"]


async def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.outage()
        async with opened(browser, f"{sidecar.ops}/", viewport=PHONE) as page:
            await title(page).to_have_text("An outage is being covered")
            for part in ("#minutes-part", "#settings-part"):
                await page.locator(f"{part} > summary").click()
            assert await _sideways(page) <= PHONE["width"]
            box = await page.locator("#reasons li").first.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] < PHONE["height"]  # the first screen says what is wrong, and what to do


async def _sideways(page: Page) -> int:
    width: int = await page.evaluate("document.documentElement.scrollWidth")
    return width


async def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.ask()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("All is well")
            order, outlined = [], []
            for _ in range(7):
                await page.keyboard.press("Tab")
                order.append(await page.evaluate("document.activeElement.textContent.trim()"))
                outlined.append(await page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
            assert order == [
                "Skip to the state",
                "Pause",
                "The last hour in numbers",
                "Settings in force",
                "Status as JSON",
                "its schema",
                "metrics",
            ]
            assert set(outlined) == {"solid"}
            await page.locator("#minutes-part summary").focus()
            await page.keyboard.press("Enter")
            await page.keyboard.press("Tab")
            assert await page.evaluate("document.activeElement.getAttribute('aria-labelledby')") == "minutes-caption"
            await expect(page.locator("#minutes tr")).to_have_count(1)


async def test_a_screen_reader_is_told_landmarks_tables_and_what_the_charts_show(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.ask()
        await sidecar.ask()
        async with opened(browser, f"{sidecar.ops}/", viewport=PHONE) as page:  # where the tables are drawn as cards
            await title(page).to_have_text("All is well")
            told = await page.locator("body").aria_snapshot()
    for line in (
        "- banner:",
        "- main:",
        "- contentinfo:",
        '- heading "All is well" [level=1]',
        '- button "Pause"',
        '- table "Nodes":',
        '- columnheader "Cover left"',
        '- rowheader "explain"',
        '- table "Config service, stores and settings":',
        'img "Requests per minute over the last hour: 2 in all, at most 2 a minute, 0 answered stale, 0 errors."',
        'img "Hit rate over the last hour: 0 %',
        'img "Latency over the last hour: p50 ',
        'img "Circuit to the config service: closed for ',
    ):
        assert line in told, told


async def test_only_the_state_is_announced_and_only_when_it_is_another(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.outage()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("An outage is being covered")
            assert await page.locator("[aria-live], [role=status], [role=alert]").count() == 1
            await page.evaluate("window.said = document.querySelector('[aria-live]').firstChild")
            sidecar.clock.advance(5)
            await look_again(page)
            await expect(page.locator("#figures")).to_contain_text("9 min 25 s")
            assert await page.evaluate("window.said === document.querySelector('[aria-live]').firstChild")


# Live


async def test_an_update_changes_what_is_different_and_leaves_every_element_in_place(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.outage()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("An outage is being covered")
            await page.evaluate("""() => {
                window.moved = [];
                new MutationObserver((changes) => {
                    for (const { addedNodes, removedNodes } of changes)
                        for (const node of [...addedNodes, ...removedNodes])
                            if (node.nodeType === Node.ELEMENT_NODE) window.moved.push(node.outerHTML);
                }).observe(document.body, { subtree: true, childList: true });
            }""")
            for _ in range(3):
                sidecar.clock.advance(1)
                await sidecar.ask()
                await look_again(page)
            await expect(page.locator("#nodes tr").first).to_contain_text("1 min 33 s")
            await expect(page.locator("#figures")).to_contain_text("9 min 27 s")
            assert await page.evaluate("window.moved") == []


async def test_it_looks_again_by_itself_but_not_while_it_is_paused_or_hidden(browser: Browser) -> None:
    async with here() as sidecar, opened(browser, f"{sidecar.ops}/") as page:
        await page.clock.install()
        await page.reload()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await title(page).to_have_text("All is well")
        async with page.expect_response("**/status"):
            await page.clock.run_for(2_100)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#live")).to_have_text("Paused")
        asked.clear()
        await page.clock.run_for(20_000)
        assert asked == []
        async with page.expect_response("**/status"):
            await page.get_by_role("button", name="Resume").click()
        await page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })")
        await look_away(page)
        asked.clear()
        await page.clock.run_for(20_000)
        assert asked == []
        await page.evaluate("delete document.hidden")
        await look_again(page)


async def test_while_it_is_paused_it_does_not_say_that_it_tries_again(browser: Browser) -> None:
    async with here() as sidecar, opened(browser, f"{sidecar.ops}/") as page:
        await title(page).to_have_text("All is well")
        asked: asyncio.Queue[Route] = asyncio.Queue()
        await page.route("**/status", asked.put)
        await look_away(page)
        question = await asked.get()
        await page.get_by_role("button", name="Pause").click()
        await question.fulfill(status=200, body="<html>a proxy's page</html>")
        await title(page).to_have_text("The sidecar does not answer")
        await expect(page.locator("#live")).to_have_text("Paused")


async def look_away(page: Page) -> None:
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def test_a_sidecar_that_is_killed_is_said_to_be_away_and_since_when(browser: Browser, tmp_path: Path) -> None:
    async with reference() as service, sidecar_process(service.url, tmp_path) as sidecar:
        await sidecar.ask()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("All is well")
            os.kill(sidecar.pid, signal.SIGKILL)
            await sidecar.process.wait()
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            await title(page).to_have_text("The sidecar does not answer")
            await expect(page.locator("#summary")).to_contain_text("Not reached since ")
            await expect(page.locator("#summary")).to_contain_text("What is below was true at ")
            await expect(page.locator("#nodes th")).to_have_text("explain")  # what was known stays to be read
            assert "Not reached" in await page.title()


async def test_an_answer_that_is_none_is_no_answer_and_the_page_recovers(browser: Browser) -> None:
    async with here() as sidecar, opened(browser, f"{sidecar.ops}/") as page:
        await title(page).to_have_text("All is well")
        await page.route("**/status", lambda route: route.fulfill(status=200, body="<html>a proxy's page</html>"))
        await look_again(page)
        await title(page).to_have_text("The sidecar does not answer")
        await page.unroute("**/status")
        await look_again(page)
        await title(page).to_have_text("All is well")


async def test_everything_comes_from_the_sidecar_itself(browser: Browser) -> None:
    async with here() as sidecar:
        context = await browser.new_context()
        page = await context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{sidecar.ops}/")
        await title(page).to_have_text("All is well", timeout=PATIENCE_MS)
        assert asked
        assert all(url.startswith(f"{sidecar.ops}/") for url in asked), asked
        violated = await page.evaluate("""() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.head.append(script);
        })""")
        assert violated == "script-src-elem"
        assert "owned" not in await page.title()
        await context.close()


async def test_what_the_page_shows_is_what_status_says(browser: Browser) -> None:
    async with here() as sidecar:
        await sidecar.outage()
        async with opened(browser, f"{sidecar.ops}/") as page:
            await title(page).to_have_text("An outage is being covered")
            async with sidecar.session.get(f"{sidecar.ops}/status") as response:
                said = json.loads(await response.text())
            assert await page.locator("#reasons .sentence").all_text_contents() == [
                each["sentence"] for each in said["reasons"]
            ]
            assert await page.locator("#reasons code").all_text_contents() == [
                each["runbook"] for each in said["reasons"]
            ]
