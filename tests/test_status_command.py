"""`prompt-sidecar status`, as a person or a script uses it."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.core.events import Reloaded
from sidecar.core.policy import Policy
from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.demo.reference.faults import Mode
from sidecar.settings import RetrySettings
from tests.harness import EVENTUALLY_SECONDS, Reference, Sidecar, raw_upstream, reference, settings_for, sidecar_with

EVIL = "evil\x1b[31m[red]x[/red]\u202e\r"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "COV"))} | {
    "PYTHONPATH": str(PACKAGE_ROOT),
    "TERM": "xterm",
}
TEMPLATES = {"explain": "Explain {{ topic }} in {{ style }}.", EVIL: "{{ topic }}"}
POLICY = Policy(ttl=0.0, stale_while_revalidate=0.0, stale_if_error=600.0, network_timeout=0.2)


class Said(NamedTuple):
    """How the command ended, and what it said."""

    code: int | None
    out: str
    err: str


@asynccontextmanager
async def here() -> AsyncIterator[tuple[Sidecar, Reference]]:
    async with reference(templates=TEMPLATES) as service:
        settings = settings_for(service.url, policy=POLICY, retry=RetrySettings(attempts=1))
        async with sidecar_with(settings) as sidecar:
            yield sidecar, service


async def said(*arguments: str) -> Said:
    """Run the command without a terminal, to its end."""
    process = await _start(arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(EVENTUALLY_SECONDS):
        out, err = await process.communicate()
    return Said(process.returncode, out.decode(), err.decode())


async def _start(
    arguments: tuple[str, ...], *, environment: Mapping[str, str] | None = None, **streams: Any
) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "sidecar", "status", *arguments)
    given = ENVIRONMENT | dict(environment or {})
    return await asyncio.create_subprocess_exec(*command, env=given, cwd=PACKAGE_ROOT, **streams)


async def test_a_healthy_sidecar_is_shown_as_plain_tables_and_the_exit_code_is_0() -> None:
    async with here() as (sidecar, service):
        await sidecar.ask()
        code, out, err = await said("--ops-url", sidecar.ops)
    assert (code, err) == (0, "")
    assert out.startswith("HEALTHY: All is well  (version ")
    assert "Last hour: 1 request, hit rate 0.0%, 0 stale, 0 errors, p50 " in out
    assert "explain   miss          0 s            -          1" in out
    assert f"{service.url}, prompt-data" in out
    assert "\x1b" not in out


async def test_a_degraded_sidecar_says_why_and_what_to_do_and_the_exit_code_is_1() -> None:
    async with here() as (sidecar, service):
        await sidecar.ask()
        service.fails(Mode.ERROR)
        await sidecar.ask()
        code, out, _ = await said("--url", sidecar.ops)
    assert code == 1
    assert out.startswith("DEGRADED: An outage is being covered  (version ")
    assert "- explain: prompts are made from stale data" in out
    assert "Runbook: docs/runbooks/stale-served.md" in out
    assert "stale, covered" in out
    assert "config service   failing" in out


async def test_as_json_it_is_what_status_says() -> None:
    async with here() as (sidecar, _):
        await sidecar.ask()
        code, out, _ = await said("--ops-url", sidecar.ops, "--json")
    assert code == 0
    assert json.loads(out)["nodes"][0]["name"] == "explain"


async def test_a_sidecar_that_is_not_there_is_a_sentence_and_the_exit_code_is_2() -> None:
    code, out, err = await said("--ops-url", "http://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert err == (
        "The sidecar at http://127.0.0.1:9/status cannot be asked: [Errno 111] Connection refused. "
        "Is it running, and is --ops-url right?\n"
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"<html>", "cannot be asked"),
        (b"[]", "is no status of this version: Expected `object`, got `array`."),
        (
            b'{"version": "0.0.1", "ready": true}',
            "is no status of this version: Object missing required field `state`.",
        ),
    ],
)
async def test_what_answers_something_else_is_told_so(body: bytes, sentence: str) -> None:
    async with raw_upstream(lambda exchange: exchange.answer(body)) as other:
        code, _, err = await said("--ops-url", other.url)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


async def test_characters_that_the_output_lacks_are_spelt_out() -> None:
    node = "объяснение"
    async with (
        reference(templates={node: "{{ topic }}"}) as service,
        sidecar_with(settings_for(service.url)) as sidecar,
    ):
        await sidecar.ask(node=node)
        process = await _start(
            ("--ops-url", sidecar.ops),
            environment={"PYTHONIOENCODING": "ascii"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert rb"\u043e\u0431" in out


async def test_a_state_that_cannot_be_written_is_not_taken_for_degraded() -> None:
    async with here() as (sidecar, _):
        full = os.open("/dev/full", os.O_WRONLY)
        process = await _start(("--ops-url", sidecar.ops), stdout=full, stderr=asyncio.subprocess.PIPE)
        os.close(full)
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            _, err = await process.communicate()
    assert (process.returncode, err) == (2, b"The status cannot be written: No space left on device.\n")


async def test_a_reader_that_has_seen_enough_ends_the_watch_without_a_word() -> None:
    async with here() as (sidecar, _):
        reading, writing = os.pipe()
        process = await _start(
            ("--ops-url", sidecar.ops, "--watch", "100ms"), stdout=writing, stderr=asyncio.subprocess.PIPE
        )
        os.close(writing)
        assert (await asyncio.to_thread(os.read, reading, 4096)).startswith(b"HEALTHY")
        os.close(reading)
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            _, err = await process.communicate()
    assert (process.returncode, err) == (2, b"")


async def test_the_address_may_come_from_the_sidecars_own_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.yaml"
    async with here() as (sidecar, _):
        path.write_text(f"ops: {{listen: '0.0.0.0:{sidecar.ops.rpartition(':')[2]}'}}\n")
        assert (await said("--config", str(path))).code == 0


async def test_a_hostile_name_can_do_nothing_to_a_terminal() -> None:
    async with here() as (sidecar, _):
        assert (await sidecar.ask(1, EVIL)).status == 200
        sidecar.core.observer(Reloaded(0.0, ("deadline: '\x1b]0;owned\x07' is not allowed",), ()))
        _, out, _ = await said("--ops-url", sidecar.ops)
    assert r"evil\x1b[31m[red]x[/red]\u202e\r" in out
    assert r"\x1b]0;owned\x07" in out
    assert set(out) & {"\x1b", "\x07", "\r", "\u202e"} == set()


async def test_watched_as_json_it_says_a_line_each_time_and_ends_with_the_last_exit_code() -> None:
    async with here() as (sidecar, _):
        process = await _start(("--ops-url", sidecar.ops, "--json", "--watch", "100ms"), stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        async with asyncio.timeout(EVENTUALLY_SECONDS):
            states = [json.loads(await process.stdout.readline())["state"] for _ in range(2)]
            process.send_signal(signal.SIGINT)
            await process.communicate()
        assert (states, process.returncode) == (["healthy", "healthy"], 0)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_watched_on_a_terminal_it_changes_in_place_and_gives_the_screen_back(stop: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    seen = bytearray()
    loop = asyncio.get_running_loop()
    healthy, degraded = asyncio.Event(), asyncio.Event()

    def read() -> None:
        seen.extend(os.read(ours, 65_536))
        for word, event in ((b"HEALTHY", healthy), (b"DEGRADED", degraded)):
            if word in seen:
                event.set()

    try:
        async with here() as (sidecar, _):
            loop.add_reader(ours, read)
            process = await _start(("--ops-url", sidecar.ops, "--watch", "100ms"), stdout=theirs, stdin=theirs)
            async with asyncio.timeout(EVENTUALLY_SECONDS):
                await healthy.wait()
                sidecar.core.observer(Reloaded(0.0, ("deadline: no",), ()))
                await degraded.wait()
                process.send_signal(stop)
                assert await process.wait() == 1
    finally:
        loop.remove_reader(ours)
        os.close(theirs)
        os.close(ours)
    assert b"\x1b[?1049h" in seen  # a screen of its own, so that what was there before comes back


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--watch", "3"], "'3'; allowed is a duration from 100ms to 60s, with its unit (ms, s)."),
        (["--watch", "1ms"], "'1ms'; allowed is a duration from 100ms to 60s"),
        (["--ops-url", "ftp://x"], "'ftp://x'; allowed is http(s)://host"),
        (["--ops-url", "http://x", "--config", "y"], "Say where once: --ops-url or --config."),
        (["--config", "{free}"], "is any free port; say --ops-url instead."),
    ],
)
def test_bad_usage_is_told_with_what_is_allowed(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    free = tmp_path / "sidecar.yaml"
    free.write_text("ops: {listen: '127.0.0.1:0'}\n")
    result = CliRunner().invoke(main, ["status", *(each.format(free=free) for each in arguments)])
    assert result.exit_code == 2
    assert sentence in result.stderr
