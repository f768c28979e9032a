"""LearnFlow as it calls: a new TCP connection for every attempt, 5 s of patience, three attempts."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from sidecar.core.policy import Policy
from sidecar.demo import processes
from sidecar.demo.reference.faults import Mode
from sidecar.settings import BreakerSettings, LimitSettings
from tests.harness import (
    KEPT,
    PATH,
    Answered,
    Chance,
    Client,
    Exchange,
    ManualClock,
    client_of,
    forever,
    prompt_data,
    quick_settings,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

ATTEMPTS = 3
PATIENCE = 5.0
SHORTEST_PROMPT = 50  # characters: LearnFlow takes less for a failure
TOPIC = "Why do the tides rise twice a day? <b>Give</b> a formula & an example."
STUBBORN = BreakerSettings(fail_max=1000)


class LearnFlowFailed(Exception):
    """The user's workflow ends here."""


async def get_prompt(base: str, user: int, node: str, context: Mapping[str, Any]) -> Answered:
    """Ask as LearnFlow's client does; its pauses between attempts are left out."""
    last: object = None
    for _ in range(ATTEMPTS):
        try:
            async with client_of(base, base, timeout_seconds=PATIENCE) as client:
                last = answered = await client.ask(user, node, context)
                if answered.status == 200 and len(answered.prompt) >= SHORTEST_PROMPT:
                    return answered
        except (aiohttp.ClientError, TimeoutError) as error:
            last = error
    raise LearnFlowFailed(last)


def address_in(line: str) -> str:
    found = re.search(r"127\.0\.0\.1:\d+", line)
    assert found is not None, line
    return found[0]


@asynccontextmanager
async def config_service(
    listen: str = "127.0.0.1:0", cache_ttl: str = "0"
) -> AsyncIterator[tuple[processes.Child, str]]:
    """Run the reference config service as a process of its own."""
    async with processes.child("upstream", "--listen", listen, "--cache-ttl", cache_ttl) as child:
        yield child, address_in(child.first_line)


async def test_an_outage_goes_unnoticed_and_so_does_its_end() -> None:
    """The upstream is killed as by a crash; both are the real commands, as processes."""
    nodes = ("generating_content", "generating_questions", "answer_question")
    context = {"input_content": TOPIC, "study_material": TOPIC, "user_answer": TOPIC, "question": TOPIC}
    async with config_service() as (upstream, address):
        settings = {
            "SIDECAR_POLICY__DEFAULT__STALE_WHILE_REVALIDATE": "0s",
            "SIDECAR_BREAKER__RESET_TIMEOUT": "50ms",
            "SIDECAR_BREAKER__FAIL_MAX": "2",
            "SIDECAR_LOG__FORMAT": "json",
        }
        async with processes.child(
            *("run", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"),
            *("--upstream-url", f"http://{address}"),
            settings=settings,
        ) as sidecar:
            base = f"http://{json.loads(sidecar.first_line)['listen']}"
            before = [await get_prompt(base, user, node, context) for user in (1, 2) for node in nodes]
            assert all("stored" in answered.how for answered in before)
            await upstream.kill()
            during = [await get_prompt(base, user, node, context) for user in (1, 2) for node in nodes]
            assert [answered.prompt for answered in during] == [answered.prompt for answered in before]
            assert all("stale-if-error" in answered.how for answered in during)
            with pytest.raises(LearnFlowFailed):
                await get_prompt(base, 3, nodes[0], context)
            async with config_service(address):
                async with asyncio.timeout(PATIENCE):
                    while "stored" not in (await get_prompt(base, 1, nodes[0], context)).how:
                        pass  # until the circuit has closed
                assert (await get_prompt(base, 3, nodes[0], context)).status == 200


async def test_learnflow_sees_what_its_config_service_would_have_sent() -> None:
    async with config_service(cache_ttl="300") as (_, address), client_of(f"http://{address}", "") as service:
        context = {"input_content": TOPIC}
        expected = await service.ask(1, "generating_content", context)
        async with sidecar_with(settings_for(f"http://{address}")) as sidecar:
            for _ in range(2):
                answered = await sidecar.ask(1, "generating_content", context)
                assert answered.document == expected.document
                assert answered.headers["Content-Type"] == expected.headers["Content-Type"]


async def test_each_answer_says_how_it_was_made() -> None:
    clock, down = ManualClock(), False

    async def plays(exchange: Exchange) -> None:
        if down:
            await exchange.answer(status=503)
        else:
            await exchange.answer(prompt_data(cache_ttl=100))

    policy = Policy(stale_while_revalidate=30, stale_if_error=900)
    breaker = BreakerSettings(fail_max=3, reset_timeout=1000)
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, policy=policy, breaker=breaker), clock=clock, rng=Chance()) as sidecar,
    ):

        async def said(headers: Mapping[str, str] | None = None) -> tuple[str, str | None]:
            answered = await sidecar.ask(headers=headers)
            await sidecar.settle()
            return answered.how.removeprefix("prompt-sidecar; "), answered.headers.get("Age")

        assert await said() == ("fwd=miss; stored", "0")
        clock.advance(12)
        assert await said() == ("hit; ttl=88", "12")
        assert await said({"Cache-Control": "no-cache"}) == ("fwd=request; stored", "0")
        clock.advance(110)
        assert await said() == ("hit; ttl=-10; detail=stale-while-revalidate", "110")
        assert await said() == ("hit; ttl=100", "0")
        clock.advance(135)
        down = True
        assert await said() == ("fwd=stale; fwd-status=503; ttl=-35; detail=stale-if-error", "135")
        assert sidecar.core.breaker.state == "open"
        assert await said() == ("hit; ttl=-35; detail=stale-if-error", "135")
        clock.advance(865)
        assert await said() == ("hit; ttl=-900; detail=stale-if-error", "1000")
        clock.advance(0.5)
        assert await said() == ("detail=circuit-open", None)


async def test_a_shared_fetch_says_so() -> None:
    go = asyncio.Event()

    async def plays(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(prompt_data())

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        asking = [asyncio.ensure_future(sidecar.ask()) for _ in range(3)]
        while "coalesced_requests_total 2.0" not in await sidecar.metrics():
            pass
        go.set()
        answers = await asyncio.gather(*asking)
    assert sorted(answered.how for answered in answers) == [
        "prompt-sidecar; fwd=miss; stored",
        *["prompt-sidecar; fwd=miss; stored; collapsed"] * 2,
    ]


async def test_a_request_says_by_cache_control_what_it_takes() -> None:
    clock = ManualClock()
    policy = Policy(stale_while_revalidate=0, stale_if_error=900)
    async with (
        reference(cache_ttl=100) as upstream,
        sidecar_with(settings_for(upstream.url, policy=policy), clock=clock) as sidecar,
    ):

        async def ask(control: str) -> Answered:
            return await sidecar.ask(headers={"Cache-Control": control})

        nothing = await ask("only-if-cached")
        assert (nothing.status, nothing.is_problem, upstream.calls) == (504, True, 0)
        await sidecar.ask()
        assert (await ask("only-if-cached")).status == 200
        assert upstream.calls == 1
        assert "fwd=request" in (await ask("no-cache")).how
        assert upstream.calls == 2
        clock.advance(150)
        stale = await ask("max-stale=60")
        assert (stale.status, upstream.calls) == (200, 2)
        assert stale.how.endswith("detail=max-stale")
        assert (await ask("only-if-cached, max-stale=60")).status == 200
        assert (await ask("only-if-cached, max-stale=5")).status == 504
        assert (await ask("max-stale=5")).how.startswith("prompt-sidecar; fwd=")
        assert upstream.calls == 3
        assert (await ask("unknown-directive, no-store=?1")).status == 200
        upstream.fails(Mode.TOO_MANY, retry_after=60)
        assert (await ask("no-cache")).status == 503
        assert (await sidecar.ask()).status == 200


async def plays_every_failure(exchange: Exchange) -> None:
    """Fail as the node's name says."""
    match exchange.node:
        case "unknown":
            await exchange.answer(b'{"detail":"Template not found for node: unknown"}', status=404)
        case "bad user":
            await exchange.answer(b"<h1>no</h1>", status=400, headers={"Content-Type": "text/html; charset=utf-8"})
        case "garbage":
            await exchange.answer(b"<html>")
        case "shape":
            await exchange.answer({"template": 7})
        case "uncompilable":
            await exchange.answer(prompt_data("fine\n{% if %}"))
        case "down":
            await exchange.answer(status=503, headers={"Retry-After": "17"})
        case "hang":
            await forever()
        case _:
            await exchange.answer(prompt_data("{{ topic }} {{ who }} {{ where }}", required=("when",)))


def assert_problem(answered: Answered, status: int) -> Any:
    """Check RFC 9457's members, and return the document."""
    assert answered.status == status, answered
    assert answered.headers["Content-Type"] == "application/problem+json"
    assert answered.headers["Cache-Status"].startswith("prompt-sidecar; ")
    document = answered.document
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    assert len(document["detail"]) > 20
    return document


@asynccontextmanager
async def failing(**settings: Any) -> AsyncIterator[Client]:
    async with (
        raw_upstream(plays_every_failure) as upstream,
        sidecar_with(quick_settings(upstream.url, **{"breaker": STUBBORN, **settings})) as sidecar,
    ):
        yield sidecar


async def test_the_upstreams_own_4xx_comes_with_its_body() -> None:
    async with failing() as sidecar:
        unknown = await sidecar.ask(1, "unknown")
        assert (unknown.status, unknown.body) == (404, b'{"detail":"Template not found for node: unknown"}')
        assert unknown.headers["Content-Type"] == "application/json"
        bad_user = await sidecar.ask(1, "bad user")
        assert (bad_user.status, bad_user.body) == (400, b"<h1>no</h1>")
        assert bad_user.headers["Content-Type"] == "text/html; charset=utf-8"
        assert bad_user.how.startswith("prompt-sidecar; fwd=miss; fwd-status=400")


async def test_422_names_what_is_missing_or_where_the_schema_is_broken() -> None:
    async with failing() as sidecar:
        required = assert_problem(await sidecar.ask(1, "explain", {}), 422)
        assert required["missing"] == ["when"]
        undefined = assert_problem(await sidecar.ask(1, "explain", {"when": "now", "topic": "x"}), 422)
        assert undefined["missing"] == ["where", "who"]
        schema = assert_problem(await sidecar.send(b'{"user_id": 0, "node_name": 7}'), 422)
        assert "node_name" in schema["detail"]
        assert "missing" not in schema


async def test_413_415_and_431_are_limits_of_the_configuration() -> None:
    async with failing(limits=LimitSettings(max_body=1024, max_header=1024, max_headers=30)) as sidecar:
        assert "limits.max_body" in assert_problem(await sidecar.ask(context={"topic": "x" * 2000}), 413)["detail"]
        for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
            assert_problem(await sidecar.send(b"{}", headers), 415)
        many = {f"X-{n}": "x" for n in range(40)}
        for headers in ({"X-Long": "x" * 2000}, many):
            answered = await sidecar.ask(headers=headers)
            assert (answered.status, answered.is_problem) == (431, True)
            assert "limits.max_header" in answered.document["detail"]


async def test_502_is_for_nonsense_and_says_which() -> None:
    async with failing() as sidecar:
        assert_problem(await sidecar.ask(1, "garbage"), 502)
        assert "$.template" in assert_problem(await sidecar.ask(1, "shape"), 502)["detail"]
        assert "line 2" in assert_problem(await sidecar.ask(1, "uncompilable"), 502)["detail"]


async def test_503_says_when_to_come_back() -> None:
    async with failing() as sidecar:
        down = await sidecar.ask(1, "down")
        assert_problem(down, 503)
        assert down.headers["Retry-After"] == "17"
    async with failing(breaker=BreakerSettings(fail_max=1, reset_timeout=600)) as sidecar:
        await sidecar.ask(1, "down")
        circuit = await sidecar.ask(1, "explain")
        assert_problem(circuit, 503)
        assert 590 < int(circuit.headers["Retry-After"]) <= 600


async def test_504_is_for_a_deadline_that_ran_out() -> None:
    async with failing() as sidecar:
        hung = await sidecar.ask(1, "hang")
        assert_problem(hung, 504)
        assert "Retry-After" not in hung.headers


async def test_no_error_keeps_a_connection_or_a_later_request_waiting() -> None:
    """The same connection is used again after each error that leaves it in order."""
    connector = aiohttp.TCPConnector(limit=1)
    async with failing(policy=KEPT) as sidecar, aiohttp.ClientSession(connector=connector) as session:
        for node, status in (("unknown", 404), ("garbage", 502), ("explain", 422), ("down", 503), ("unknown", 404)):
            async with session.post(sidecar.base + PATH, json={"user_id": 1, "node_name": node}) as response:
                assert response.status == status
                await response.read()
