"""Promise 7: a 4xx is an answer: passed on, never retried, counted or covered. Stale data covers what is no answer."""

import asyncio
import json
import re

import pytest

from sidecar.core.policy import Policy
from sidecar.demo.reference.faults import Mode
from sidecar.settings import BreakerSettings, RetrySettings
from tests.harness import (
    KEPT,
    Answered,
    Exchange,
    ManualClock,
    Sidecar,
    forever,
    head_of,
    prompt_data,
    quick_settings,
    raw_upstream,
    reference,
    settings_for,
    sidecar_with,
)

EVICTING = [404, 410]
KEEPING = [401, 403]
ANSWERS = [400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 415, 418, 421, 422, 423, 425, 428, 431, 451]
ONE_FAILURE_OPENS = BreakerSettings(fail_max=1)
STUBBORN = BreakerSettings(fail_max=1000)


class Says:
    """Serves a document until it is told to say something else."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> bytes:
        return json.dumps({"detail": f"said with {self.status}", "more": ["ü", 1]}, ensure_ascii=False).encode()

    async def __call__(self, exchange: Exchange) -> None:
        if self.status == 200:
            await exchange.answer(prompt_data())
        else:
            await exchange.answer(self.body, status=self.status, headers=self.headers)


def assert_passed_on(answered: Answered, says: Says) -> None:
    assert (answered.status, answered.body) == (says.status, says.body)
    assert answered.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [404, 400, 401, 403, 410, 422])
async def test_a_hundred_refusals_leave_the_circuit_closed_and_cost_a_hundred_calls(status: int) -> None:
    says = Says()
    says.status = status
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(settings_for(upstream.url, breaker=ONE_FAILURE_OPENS)) as sidecar,
    ):
        for _ in range(100):
            assert_passed_on(await sidecar.ask(), says)
        assert len(upstream.requests) == 100
        assert sidecar.core.breaker.state == "closed"
        metrics = await sidecar.metrics()
        assert 'prompt_sidecar_breaker_state{breaker="upstream",state="closed"} 1.0' in metrics
        assert 'prompt_sidecar_breaker_transitions_total{breaker="upstream",to="open"} 0.0' in metrics
        says.status = 200
        assert (await sidecar.ask()).status == 200


@pytest.mark.parametrize("status", ANSWERS)
async def test_no_refusal_is_retried_or_covered_with_stale_data(status: int) -> None:
    says = Says()
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(settings_for(upstream.url, policy=KEPT, breaker=ONE_FAILURE_OPENS)) as sidecar,
    ):
        await sidecar.ask()
        says.status = status
        refused = await sidecar.ask()
        assert_passed_on(refused, says)
        assert refused.how.startswith(f"prompt-sidecar; fwd=stale; fwd-status={status}")
        assert len(upstream.requests) == 2
        assert sidecar.core.breaker.state == "closed"


async def test_a_refusal_goes_to_everyone_who_waits_for_it() -> None:
    says, asked, go = Says(), asyncio.Event(), asyncio.Event()
    says.status = 404

    async def plays(exchange: Exchange) -> None:
        asked.set()
        await go.wait()
        await says(exchange)

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        asking = [asyncio.ensure_future(sidecar.ask()) for _ in range(10)]
        while "coalesced_requests_total 9.0" not in await sidecar.metrics():
            pass
        go.set()
        for answered in await asyncio.gather(*asking):
            assert_passed_on(answered, says)
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [*EVICTING, *KEEPING])
async def test_404_and_410_evict_and_401_and_403_do_not(status: int) -> None:
    says = Says()
    async with raw_upstream(says) as upstream, sidecar_with(settings_for(upstream.url, policy=KEPT)) as sidecar:
        await sidecar.ask()
        says.status = status
        assert (await sidecar.ask()).status == status
        says.status = 503
        after = await sidecar.ask()
        if status in EVICTING:
            assert (after.status, len(sidecar.core.cache)) == (503, 0)
        else:
            assert after.prompt == "Explain tides in plain words."
            assert "stale-if-error" in after.how


@pytest.mark.parametrize("status", EVICTING)
async def test_one_nodes_eviction_leaves_the_others_alone(status: int) -> None:
    says = Says()
    async with raw_upstream(says) as upstream, sidecar_with(settings_for(upstream.url, policy=KEPT)) as sidecar:
        keys = [(1, "explain"), (12, "explain"), (1, "explain2"), (1, "question")]
        for user, node in keys:
            await sidecar.ask(user, node)
        says.status = status
        await sidecar.ask(*keys[0])
        says.status = 503
        assert [(await sidecar.ask(*key)).status for key in keys] == [503, 200, 200, 200]


async def test_a_revalidation_that_hears_404_ends_the_prompt_for_the_next_request() -> None:
    says = Says()
    policy = Policy(ttl=0, stale_while_revalidate=100, stale_if_error=100)
    async with raw_upstream(says) as upstream, sidecar_with(settings_for(upstream.url, policy=policy)) as sidecar:
        await sidecar.ask()
        says.status = 404
        assert (await sidecar.ask()).status == 200
        await sidecar.settle()
        assert_passed_on(await sidecar.ask(), says)
        says.status = 503
        assert (await sidecar.ask()).status == 503


async def test_a_refusal_between_failures_keeps_the_circuit_closed() -> None:
    says = Says()
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(
            settings_for(upstream.url, retry=RetrySettings(attempts=1), breaker=BreakerSettings(fail_max=2))
        ) as sidecar,
    ):
        for status in (503, 404, 503, 404, 503):
            says.status = status
            await sidecar.ask()
        assert sidecar.core.breaker.state == "closed"


async def test_a_refusal_is_a_trial_calls_good_end() -> None:
    clock, says = ManualClock(), Says()
    breaker = BreakerSettings(fail_max=1, reset_timeout=10, success_threshold=1)
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(
            settings_for(upstream.url, retry=RetrySettings(attempts=1), breaker=breaker), clock=clock
        ) as sidecar,
    ):
        says.status = 503
        await sidecar.ask()
        assert sidecar.core.breaker.state == "open"
        clock.advance(10)
        says.status = 404
        assert_passed_on(await sidecar.ask(), says)
        assert sidecar.core.breaker.state == "closed"


async def test_429_says_when_to_come_back_and_is_not_asked_again_before() -> None:
    says = Says()
    says.status, says.headers = 429, {"Retry-After": "7"}
    async with raw_upstream(says) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        answered = await sidecar.ask()
        assert (answered.status, answered.headers["Retry-After"]) == (503, "7")
        assert answered.is_problem
        assert len(upstream.requests) == 1
        assert sidecar.core.breaker.state == "closed"


async def test_429_is_tried_again_after_the_pause_that_it_asks_for_if_that_fits() -> None:
    at: list[float] = []

    async def plays(exchange: Exchange) -> None:
        at.append(asyncio.get_running_loop().time())
        if len(at) == 1:
            await exchange.answer(status=429, headers={"Retry-After": "1"})
        else:
            await exchange.answer(prompt_data())

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        assert (await sidecar.ask()).prompt == "Explain tides in plain words."
    assert at[1] - at[0] >= 1


async def test_a_storm_of_429_does_not_open_the_circuit() -> None:
    says = Says()
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(settings_for(upstream.url, policy=KEPT, breaker=ONE_FAILURE_OPENS)) as sidecar,
    ):
        await sidecar.ask()
        asked = len(upstream.requests)
        says.status, says.headers = 429, {"Retry-After": "60"}
        for _ in range(20):
            assert (await sidecar.ask()).prompt == "Explain tides in plain words."
        assert len(upstream.requests) == asked + 1  # the others left it alone
        assert sidecar.core.breaker.state == "closed"


NO_ANSWERS = {  # mode of the reference service: what is said of it
    Mode.ERROR: "fwd-status=500",
    Mode.UNAVAILABLE: "fwd-status=503",
    Mode.TOO_MANY: "fwd-status=429",
    Mode.RESET: "",
    Mode.HALF: "",
    Mode.HANG: "",
    Mode.SLOW: "",
    Mode.DRIP: "",
    Mode.GARBAGE: "",
    Mode.EMPTY: "",
    Mode.WRONG_SHAPE: "",
    Mode.DATABASE_DOWN: "fwd-status=500",
}


async def assert_covered(sidecar: Sidecar, said: str) -> None:
    """Check that stale data stands in, with this request's content, and that it says so."""
    answered = await sidecar.ask(context={"topic": "comets"})
    assert answered.prompt.startswith("Explain comets in ")
    assert answered.how.startswith("prompt-sidecar; fwd=stale")
    assert said in answered.how
    assert answered.how.endswith(("detail=stale-if-error", "detail=network-timeout"))


@pytest.mark.parametrize("mode", NO_ANSWERS)
async def test_stale_data_covers_what_is_no_answer(mode: Mode) -> None:
    async with (
        reference(etag=False) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        upstream.fails(mode, retry_after=0)
        await assert_covered(sidecar, NO_ANSWERS[mode])
        upstream.fails(Mode.NONE)
        await sidecar.settle()
        assert "stored" in (await sidecar.ask()).how


async def test_stale_data_covers_a_refused_connection() -> None:
    async with (
        raw_upstream(Says()) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        await upstream.close()
        await assert_covered(sidecar, "")
        assert (await sidecar.ask(2)).status == 503


async def test_stale_data_covers_an_open_circuit_without_a_call() -> None:
    says = Says()
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(settings_for(upstream.url, policy=KEPT, breaker=ONE_FAILURE_OPENS)) as sidecar,
    ):
        await sidecar.ask()
        says.status = 500
        await sidecar.ask()
        calls = len(upstream.requests)
        answered = await sidecar.ask()
        assert re.fullmatch(r"prompt-sidecar; hit; ttl=-\d+; detail=stale-if-error", answered.how)
        assert answered.prompt == "Explain tides in plain words."
        assert len(upstream.requests) == calls


@pytest.mark.parametrize("status", [201, 204, 206, 300, 302, 304, 307])
async def test_a_status_that_nobody_asked_for_is_no_answer(status: int) -> None:
    says = Says()
    async with (
        raw_upstream(says) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        calls = len(upstream.requests)
        says.status, says.headers = status, {"Location": "http://127.0.0.1:1/elsewhere"}
        assert (await sidecar.ask()).prompt == "Explain tides in plain words."
        assert len(upstream.requests) == calls + 1
        assert (await sidecar.ask(2)).status in {502, 503}


async def test_a_head_that_is_no_http_is_no_answer() -> None:
    async def plays(exchange: Exchange) -> None:
        if len(upstream.requests) == 1:
            await exchange.answer(prompt_data())
        else:
            await exchange.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            await forever()

    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, policy=KEPT, breaker=STUBBORN)) as sidecar,
    ):
        await sidecar.ask()
        await assert_covered(sidecar, "")


async def test_nothing_kept_and_no_answer_is_an_error_by_its_cause() -> None:
    async def plays(exchange: Exchange) -> None:
        match exchange.node:
            case "reset":
                exchange.reset()
            case "hang":
                await forever()
            case "drip":
                await exchange.write(head_of(200, 10))
                await forever()
            case "html":
                await exchange.answer(b"<html>")
            case "shape":
                await exchange.answer({"template": 1})
            case status:
                await exchange.answer(status=int(status))

    expected = {"reset": 503, "500": 503, "503": 503, "429": 503, "hang": 504, "drip": 504, "html": 502, "shape": 502}
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(quick_settings(upstream.url, breaker=STUBBORN)) as sidecar,
    ):
        answers = await asyncio.gather(*(sidecar.ask(1, node) for node in expected))
        assert {node: answered.status for node, answered in zip(expected, answers, strict=True)} == expected
        for answered in answers:
            assert answered.is_problem
            assert ("Retry-After" in answered.headers) == (answered.status == 503)
