"""Warm-up with a real sidecar: by the admin call, at start, by the command; an outage afterwards is covered."""

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from sidecar.core.policy import Policy
from sidecar.demo.processes import PACKAGE_ROOT
from sidecar.demo.reference.faults import Mode
from sidecar.demo.reference.state import TODAY, Generation
from sidecar.settings import BreakerSettings, StoreSettings, UpstreamApi, WarmUpSettings
from tests.harness import Reference, Sidecar, eventually, reference, settings_for, sidecar_with
from tests.redis_servers import server
from tests.scenarios.test_redis_shared import store_at

LONG = Policy(ttl=600, max_ttl=600, stale_while_revalidate=0, stale_if_error=600)
TEMPLATES = {"explain": "Explain {{ topic }} in {{ style }}.", "quiz": "Ask about {{ topic }} in {{ language }}."}
PAIRS = [(user, node) for user in (1, 2, 12) for node in TEMPLATES]


@asynccontextmanager
async def warming(**given: Any) -> AsyncIterator[tuple[Reference, Sidecar]]:
    async with (
        reference(templates=TEMPLATES, announce_version=False) as upstream,
        sidecar_with(settings_for(upstream.url, policy=LONG, **given)) as sidecar,
    ):
        yield upstream, sidecar


async def ended(sidecar: Sidecar, body: Any) -> Any:
    """Begin a warm-up, and return its status at the end."""
    async with sidecar.session.post(f"{sidecar.ops}/admin/warm", json=body) as response:
        assert response.status == 202, await response.text()
        status = (await response.json())["status"]

    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        async with sidecar.session.get(f"{sidecar.ops}{status}") as response:
            found.update(await response.json())
            return found["state"] not in {"queued", "running"}

    await eventually(has_ended)
    return found


async def is_covered(upstream: Reference, sidecar: Sidecar, *pairs: tuple[int, str]) -> bool:
    upstream.fails(Mode.UNAVAILABLE)
    return all([(await sidecar.ask(user, node)).status == 200 for user, node in pairs])


@pytest.mark.parametrize(
    "body", [{"pairs": PAIRS}, {"users": [1, 2, 12], "nodes": [*TEMPLATES]}], ids=["pairs", "users and nodes"]
)
async def test_an_outage_after_a_warm_up_is_covered_for_every_pair(body: Any) -> None:
    async with warming() as (upstream, sidecar):
        status = await ended(sidecar, body)
        assert (status["state"], status["done"], status["stored"], status["failed"]) == ("done", 6, 6, 0)
        assert upstream.state.calls["prompt-data-batch"] == 1
        assert upstream.calls == 0
        assert await is_covered(upstream, sidecar, *PAIRS)
        assert 'prompt_sidecar_warmup_pairs_total{result="stored"} 6.0' in await sidecar.metrics()


async def test_a_service_without_the_batch_call_is_asked_one_by_one() -> None:
    async with warming() as (upstream, sidecar):
        upstream.state.batch = False
        assert (await ended(sidecar, {"pairs": PAIRS}))["stored"] == 6
        assert upstream.calls == 6
        assert await is_covered(upstream, sidecar, *PAIRS)


async def test_in_todays_generation_one_read_serves_all_nodes_of_a_user(tmp_path: Path) -> None:
    templates = tmp_path / "prompts.yaml"
    templates.write_text("".join(f"{name}_system_prompt: '{text}'\n" for name, text in TEMPLATES.items()))
    upstream_settings = {"api": UpstreamApi.PLACEHOLDERS, "templates_file": templates}
    async with reference(generation=Generation.PLACEHOLDERS, render=TODAY) as upstream:
        settings = settings_for(upstream.url, policy=LONG, upstream=upstream_settings)
        async with sidecar_with(settings) as sidecar:
            status = await ended(sidecar, {"pairs": [*PAIRS, (1, "unknown")]})
            assert (status["stored"], status["duplicate"], status["failed"]) == (3, 3, 1)
            assert status["reasons"] == {"unknown node": 1}
            assert upstream.state.calls["user-placeholders"] == 3
            assert await is_covered(upstream, sidecar, *PAIRS)


async def test_it_goes_on_by_itself_after_an_outage_without_any_traffic() -> None:
    breaker = BreakerSettings(fail_max=2, reset_timeout=0.02)
    async with warming(breaker=breaker) as (upstream, sidecar):
        upstream.fails(Mode.UNAVAILABLE)
        warm_up = asyncio.ensure_future(ended(sidecar, {"users": [*range(1, 301)], "nodes": ["explain"]}))

        async def is_open() -> bool:
            await asyncio.sleep(0)
            return not sidecar.core.breaker.is_closed

        await eventually(is_open)
        upstream.fails(Mode.NONE)
        status = await warm_up
        assert (status["state"], status["failed"], status["done"]) == ("done", 0, 300)
        assert sidecar.core.breaker.is_closed


@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_what_the_store_has_is_taken_into_memory(tmp_path: Path, kind: str) -> None:
    async with server() as redis, reference(templates=TEMPLATES, announce_version=False) as upstream:
        store = StoreSettings(path=tmp_path / "cache.db") if kind == "file" else store_at(redis.url)
        settings = settings_for(upstream.url, policy=LONG, store=store)
        async with sidecar_with(settings) as sidecar:
            assert (await ended(sidecar, {"pairs": PAIRS}))["stored"] == 6
        async with sidecar_with(settings) as sidecar:
            status = await ended(sidecar, {"from_store": True})
            assert (status["state"], status["fresh"], status["failed"]) == ("done", 6, 0)
            assert len(sidecar.core.cache) == 6
            if kind == "redis":
                await redis.kill()
            assert await is_covered(upstream, sidecar, *PAIRS)


async def test_a_store_that_cannot_be_read_to_its_end_is_told_of() -> None:
    async with server() as redis, warming(store=store_at(redis.url)) as (_, sidecar):
        await ended(sidecar, {"pairs": PAIRS})
        await redis.kill()
        code, out, error = await command("--from-store", "--ops-url", sidecar.ops)
        assert (code, out.partition(":")[0]) == (3, "Stopped")
        assert "the store cannot be read to its end (unreachable)" in error


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, 'The body must be {"pairs"'),
        ({"pairs": [[0, "explain"]]}, 422, "The body must be"),
        ({"pairs": [[1, ""]]}, 422, "The body must be"),
        ({"pairs": [[1, "explain", 2]]}, 422, "The body must be"),
        ({"users": [1]}, 422, "The body must be"),
        ({"users": [1], "nodes": ["a"], "from_store": True}, 422, "The body must be"),
        ({"pairs": [], "rate": 0}, 422, "The body must be"),
        ({"users": [1] * 3, "nodes": ["a"] * 3}, 413, "9 pairs are more than warmup.max_pairs (8)"),
        ({"from_store": True}, 409, "There is no store"),
    ],
)
async def test_what_cannot_be_warmed_is_refused_with_a_sentence(body: Any, status: int, says: str) -> None:
    async with (
        warming(warmup=WarmUpSettings(max_pairs=8)) as (_, sidecar),
        sidecar.session.post(f"{sidecar.ops}/admin/warm", json=body) as response,
    ):
        assert response.status == status
        assert says in (await response.json())["detail"]


async def test_an_unknown_job_is_not_found() -> None:
    async with warming() as (_, sidecar):
        for method in ("GET", "DELETE"):
            async with sidecar.session.request(method, f"{sidecar.ops}/admin/warm?job=1") as response:
                assert response.status == 404


# At start


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines or [f"{user},{node}" for user, node in PAIRS]))
    return path


async def readiness(sidecar: Sidecar) -> tuple[int, str]:
    async with sidecar.session.get(f"{sidecar.ops}/readyz") as response:
        return response.status, await response.text()


async def is_ready(sidecar: Sidecar) -> bool:
    return (await readiness(sidecar))[0] == 200


async def test_readiness_waits_for_the_list_and_serving_does_not(tmp_path: Path) -> None:
    warmup = WarmUpSettings(file=listed(tmp_path), min_ratio=1.0)
    async with reference(templates=TEMPLATES, announce_version=False) as upstream:
        upstream.fails(Mode.HANG)
        async with sidecar_with(settings_for(upstream.url, policy=LONG, warmup=warmup)) as sidecar:
            status, text = await readiness(sidecar)
            assert status == 503
            assert "The sidecar is warming up: 0 of 6 pairs; ready at 100%, or in 60 s at the latest." in text
            async with sidecar.session.get(f"{sidecar.ops}/livez") as response:
                assert response.status == 200
            upstream.fails(Mode.NONE)
            assert (await sidecar.ask(99)).status == 200
            await eventually(lambda: is_ready(sidecar))
            assert await is_covered(upstream, sidecar, *PAIRS)


async def test_an_outage_keeps_nobody_unready_for_longer_than_the_timeout(tmp_path: Path) -> None:
    warmup = WarmUpSettings(file=listed(tmp_path), min_ratio=1.0, timeout=1.0)
    async with reference(templates=TEMPLATES) as upstream:
        upstream.fails(Mode.HANG)
        async with sidecar_with(settings_for(upstream.url, policy=LONG, warmup=warmup)) as sidecar:
            assert not await is_ready(sidecar)
            await eventually(lambda: is_ready(sidecar))


async def test_a_list_with_wrong_lines_warms_the_rest_and_one_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    path = listed(tmp_path, "1,explain", "x,explain", "", "2,quiz")
    async with warming(warmup=WarmUpSettings(file=path, min_ratio=1.0)) as (upstream, sidecar):
        await eventually(lambda: is_ready(sidecar))
        assert await is_covered(upstream, sidecar, (1, "explain"), (2, "quiz"))
    with pytest.raises(OSError, match=r"warmup\.file: .*nothing cannot be read"):
        async with warming(warmup=WarmUpSettings(file=tmp_path / "nothing")):
            pass


# The command


async def command(*arguments: str, interrupt_when: Any = None) -> tuple[int, str, str]:
    """Run `prompt-sidecar warm`; returns exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "warm", *arguments),
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if interrupt_when is not None:
        await eventually(interrupt_when)
        process.send_signal(signal.SIGINT)
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_the_command_warms_a_list_and_reports_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = listed(
        tmp_path, "user_id,node_name", "1,explain", "1,explain", "x,explain", "", '{"user_id":2,"node_name":"no"}'
    )
    async with warming() as (upstream, sidecar):
        code, out, error = await command(str(path), "--ops-url", sidecar.ops)
        assert code == 1
        assert "Done: 2 pairs" in out
        assert "1 brought, 0 fresh already, 0 twice, 1 failed." in out
        assert f"{path}, line 4: user_id: 'x' is no number from 1 to 9223372036854775807" in error
        assert "1 times: the config service answered 404" in error
        assert "user 2, no: the config service answered 404" in error
        assert "\x1b" not in error
        code, out, _ = await command("--users", "1,2", "--nodes", "explain,quiz", "--ops-url", sidecar.ops, "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["state"], found["done"], found["stored"], found["fresh"]) == ("done", 4, 3, 1)
        assert await is_covered(upstream, sidecar, (1, "explain"), (2, "quiz"))


async def test_on_a_terminal_a_bar_shows_how_far_it_is_how_fast_and_what_failed(tmp_path: Path) -> None:
    path = listed(tmp_path, *(f"{user},explain" for user in range(1, 301)), *(f"{user},no" for user in range(1, 101)))
    async with warming() as (_, sidecar):
        ours, its = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "warm", str(path), "--ops-url", sidecar.ops, "--rate", "400"),
            env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "TERM": "xterm-256color", "COLUMNS": "120"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=its,
        )
        os.close(its)
        shown = await asyncio.to_thread(_all_of, ours)
        assert await process.wait() == 1
    assert "━" in shown
    assert "\x1b[" in shown
    counts = [int(done) for done in re.findall(r"(\d+)/400", shown)]
    assert counts == sorted(counts)
    assert counts[-1] == 400
    assert any(0 < count < 400 for count in counts)
    assert re.search(r"\d+/s, 100 failed", shown)
    assert re.search(r"0:00:0\d", shown), "the time that remains"


def _all_of(terminal: int) -> str:
    """Return what is written to a terminal until nobody has it open."""
    read = bytearray()
    with suppress(OSError), open(terminal, "rb", buffering=0) as written:  # EIO is its end
        while piece := written.read(4096):
            read += piece
    return read.decode()


async def test_an_interrupted_command_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, resume = listed(tmp_path, "1,no", *(f"{user},explain" for user in range(1, 2500))), tmp_path / "resume"
    async with warming() as (_, sidecar):
        arguments = (str(path), "--ops-url", sidecar.ops, "--resume", str(resume))

        async def is_under_way() -> bool:
            await asyncio.sleep(0)
            return len(sidecar.core.cache) > 1100

        code, out, error = await command(*arguments, "--rate", "400", interrupt_when=is_under_way)
        assert code == 130
        assert out.startswith("Interrupted: ")
        assert "run it again with the same --resume file" in error
        noted = json.loads(resume.read_text())
        assert (noted["done"], noted["failed"]) == (1000, 1)
        kept = len(sidecar.core.cache)
        code, out, _ = await command(*arguments, "--rate", "100000", "--json")
        assert code == 1, "a pair of the first part failed"
        found = json.loads(out)
        assert (found["total"], found["done"], found["failed"], found["failed_before"]) == (1500, 1500, 0, 1)
        assert [(each["user_id"], each["node_name"]) for each in found["failures"]] == [(1, "no")]
        assert found["fresh"] >= kept - 999 - 1
        assert not resume.exists()
        assert len(sidecar.core.cache) == 2499
        other = tmp_path / "other.csv"
        other.write_text("1,explain\n")
        resume.write_text('{"digest": "another", "done": 5}')
        code, _, error = await command(str(other), "--ops-url", sidecar.ops, "--resume", str(resume))
        assert (code, "belongs to another list" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "Say what"),
        (("--users", "1"), 2, "go together"),
        (("--users", "x", "--nodes", "a"), 2, "'x' is no number from 1 to 9223372036854775807"),
        (("--from-store", "--resume", "r"), 2, "--resume needs a list"),
        (("--users", "1", "--nodes", "a", "--resume", "/no/such/r"), 2, "/no/such is no folder in which a file can be"),
        (("--users", "1", "--nodes", "a", "--resume", "/dev/null"), 2, "/dev/null is no file of this command's"),
        (("no-such-file",), 2, "no-such-file cannot be read: No such file or directory."),
        (("/dev/null",), 2, "No pair of user and node was found"),
        (("--users", "1", "--nodes", "a", "--ops-url", "http://127.0.0.1:1"), 3, "cannot be asked: "),
    ],
)
async def test_what_cannot_be_done_is_a_sentence_and_an_exit_code(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, _, error = await command(*arguments)
    assert found == code
    assert says in error


async def test_the_list_is_sent_in_parts_that_the_sidecar_takes(tmp_path: Path) -> None:
    path = listed(tmp_path, *(f"{user},explain" for user in range(1, 21)))
    async with warming(warmup=WarmUpSettings(max_pairs=8)) as (upstream, sidecar):
        code, out, _ = await command(str(path), "--ops-url", sidecar.ops)
        assert (code, out.partition(" in ")[0]) == (0, "Done: 20 pairs")
        assert await is_covered(upstream, sidecar, (1, "explain"), (20, "explain"))


async def test_where_nothing_can_be_resumed_nobody_is_told_to() -> None:
    async with warming() as (_, sidecar):
        code, _, error = await command("--from-store", "--ops-url", sidecar.ops)
        assert code == 3
        assert "There is no store whose working set could be warmed" in error
        assert "run it again" not in error


async def test_a_resume_file_that_cannot_be_written_any_more_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "resume.new").mkdir()
    async with warming() as (_, sidecar):
        given = ("--users", "1", "--nodes", "explain", "--resume", str(tmp_path / "resume"))
        code, out, error = await command(*given, "--ops-url", sidecar.ops)
        assert (code, out.partition(" in ")[0]) == (3, "Stopped: 1 pairs")
        assert f"--resume: {tmp_path}/resume cannot be written: Is a directory." in error
        assert "Traceback" not in error


async def test_a_job_whose_number_is_not_yet_known_is_cancelled_too() -> None:
    asked, interrupted, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            asked.set()
            await interrupted.wait()
            return web.json_response({"status": "/admin/warm?job=7"}, status=202)
        if request.method == "DELETE" and request.raw_path == "/admin/warm?job=7":
            cancelled.set()
        counts = dict.fromkeys(("done", "stored", "fresh", "duplicate", "failed"), 0)
        return web.json_response({"state": "running", "total": 1, "reasons": {}, "failures": [], "why": None} | counts)

    async with RawTestServer(answer) as ops:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "sidecar",
                "warm",
                "--users",
                "1",
                "--nodes",
                "a",
                "--ops-url",
                str(ops.make_url("/")).rstrip("/"),
            ),
            env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        await asked.wait()
        process.send_signal(signal.SIGINT)
        interrupted.set()
        out, _ = await process.communicate()
    assert out.startswith(b"Interrupted: ")
    assert (process.returncode, cancelled.is_set()) == (130, True)
