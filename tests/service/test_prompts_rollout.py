"""PromptManager: who is answered from here, who by the service, and what each gets in an outage; in faked time."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.cache_status import Forward, cache_status
from sidecar.core.decision import Directives
from sidecar.core.errors import Answer, FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import (
    Crashed,
    NotAdmitted,
    Outcome,
    ParityChecked,
    RequestOutcome,
    RolledBack,
)
from sidecar.core.model import Rendered, UserSettings
from sidecar.core.policy import Policy, Strategy
from sidecar.core.rollout import RolloutRule, bucket
from sidecar.service.generations import Generation, Ready
from sidecar.service.ports import Generated
from sidecar.service.prompts import NOT_ADMITTED_SECONDS
from sidecar.service.shadow import ShadowRule
from tests.fakes import EVERYONE, TodaysWorld, World, answered, document

pytestmark = pytest.mark.looptime

DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
REFUSING = UpstreamFailure(FailureKind.NOT_ADMITTED, "line 3: a macro is not admitted")
GONE = UpstreamFailure(FailureKind.ENDPOINT_GONE, "there is no /api/v1/prompt-data", status=404)
KEPT = Policy(ttl=100, stale_while_revalidate=30, stale_if_error=900, network_timeout=1)
NOBODY = RolloutRule(fraction=0.0, nodes=None, exclude=frozenset())
OURS = "Explain tides in plain words."
THEIRS = "Rendered by the service, as it does today."
ALL_COMPARED = ShadowRule(sample_rate=1.0, max_in_flight=4, max_mismatches=1, window=600.0)


def said(rendered: Rendered) -> str:
    return cache_status(rendered.provenance)


def adopts(world: World, **rules: Any) -> None:
    world.manager.adopt(replace(world.manager.rules, **rules))


async def refusal(world: World, **how: Any) -> PromptError:
    with pytest.raises(PromptError) as caught:
        await world.ask(**how)
    return caught.value


async def test_everyone_is_answered_from_here_at_a_hundred_percent() -> None:
    world = World(KEPT, rollout=EVERYONE)
    assert {(await world.ask(user=user)).prompt for user in range(1, 30)} == {OURS}
    assert world.service.calls == []


async def test_everyone_is_answered_by_the_service_at_zero_percent_and_nothing_is_kept() -> None:
    world = World(KEPT, rollout=NOBODY)
    rendered = await world.ask(topic="tides")
    assert (rendered.prompt, rendered.used_placeholders) == (THEIRS, {"a": "b"})
    assert said(rendered) == "prompt-sidecar; fwd=bypass; detail=rollout"
    assert world.seen(RequestOutcome)[0].outcome is Outcome.BYPASS
    assert (world.fetches, len(world.cache)) == (0, 0)
    ((context, deadline_at, shadow),) = world.service.asked
    assert (context, shadow) == ({"topic": "tides"}, False)
    assert deadline_at == pytest.approx(3.9)


async def test_a_share_is_answered_from_here_and_always_the_same_users() -> None:
    world = World(KEPT, rollout=replace(NOBODY, fraction=0.3))
    for _ in range(2):
        for user in range(1, 60):
            assert (await world.ask(user=user)).prompt == (OURS if bucket(user) < 0.3 else THEIRS)


async def test_nodes_are_included_and_excluded_by_name() -> None:
    world = World(KEPT, rollout=RolloutRule(fraction=1.0, nodes=frozenset({"a", "b"}), exclude=frozenset({"b"})))
    assert [(await world.ask(node=node)).prompt for node in "abc"] == [OURS, THEIRS, THEIRS]


async def test_what_is_kept_does_not_answer_one_who_is_not_in_the_rollout() -> None:
    world = World(KEPT)
    await world.ask()
    adopts(world, rollout=NOBODY)
    assert (await world.ask()).prompt == THEIRS


async def test_a_bypassed_refusal_is_the_services_own_word() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    world.service.serves = answered(400)
    error = await refusal(world)
    assert error.answer is not None
    assert (error.answer.status, error.answer.body) == (400, b'{"detail":"no"}')
    assert cache_status(error.provenance) == "prompt-sidecar; fwd=bypass; fwd-status=400; detail=rollout"


async def test_the_kill_switch_leaves_requests_in_flight_the_rules_that_they_began_with() -> None:
    world = World(KEPT)
    world.source.takes = 2
    before = [asyncio.ensure_future(world.ask(topic=f"topic {n}")) for n in range(5)]
    await asyncio.sleep(1)
    adopts(world, rollout=NOBODY)
    after = await world.ask()
    assert after.prompt == THEIRS
    assert [(await task).prompt for task in before] == [f"Explain topic {n} in plain words." for n in range(5)]


async def test_switching_on_leaves_requests_in_flight_to_the_service() -> None:
    world = World(KEPT, rollout=NOBODY)
    world.service.takes = 2
    before = asyncio.ensure_future(world.ask())
    await asyncio.sleep(1)
    adopts(world, rollout=EVERYONE)
    assert (await world.ask()).prompt == OURS
    assert (await before).prompt == THEIRS


async def test_a_request_in_flight_keeps_policy_deadline_and_what_failure_brings() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    adopts(world, rollout=EVERYONE)
    await world.ask()
    adopts(world, rollout=NOBODY)
    world.service.serves, world.service.takes = DOWN, 2
    before = asyncio.ensure_future(world.ask())
    await asyncio.sleep(1)
    never = Policy(strategy=Strategy.NETWORK_ONLY)
    adopts(world, local_on_failure=False, policy_for=lambda _: never, deadline=1.0)
    assert (await before).prompt == OURS
    assert (await refusal(world)).status == 503


async def test_a_policy_that_was_adopted_holds_for_what_is_kept_already() -> None:
    world = World(KEPT)
    await world.ask()
    strict = Policy(ttl=1, stale_if_error=0, stale_while_revalidate=0)
    adopts(world, policy_for=lambda _: strict)
    await asyncio.sleep(2)
    assert said(await world.ask()) == "prompt-sidecar; fwd=miss; stored"


async def test_without_a_word_on_it_an_outage_is_an_error_for_the_bypassed_as_without_a_sidecar() -> None:
    world = World(KEPT)
    await world.ask()
    adopts(world, rollout=NOBODY)
    world.service.serves = DOWN
    error = await refusal(world)
    assert (error.status, error.reason) == (503, "server_error")
    assert cache_status(error.provenance) == "prompt-sidecar; fwd=bypass; fwd-status=503; detail=rollout"
    assert world.seen(RequestOutcome)[-1].outcome is Outcome.ERROR


async def test_local_on_failure_serves_the_bypassed_from_what_is_at_hand_within_the_policy() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    await world.ask()
    await world.settle()
    world.service.serves = DOWN
    rendered = await world.ask(topic="comets")
    assert rendered.prompt == "Explain comets in plain words."
    assert said(rendered) == "prompt-sidecar; fwd=bypass; fwd-status=503; ttl=100; detail=stale-if-error"
    await asyncio.sleep(1000.1)
    assert (await refusal(world)).status == 503
    assert world.fetches == 1


@pytest.mark.parametrize("kind", [FailureKind.CIRCUIT_OPEN, FailureKind.DEADLINE, FailureKind.GARBAGE])
async def test_whatever_is_no_answer_is_an_outage(kind: FailureKind) -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    await world.ask()
    await world.settle()
    world.service.serves = UpstreamFailure(kind, "no answer")
    assert (await world.ask()).prompt == OURS


async def test_local_on_failure_has_nothing_where_nothing_was_kept() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    world.service.serves = DOWN
    assert (await refusal(world)).status == 503
    undetected = World(KEPT, rollout=NOBODY, local_on_failure=True, generation=None)
    undetected.service.serves = DOWN
    assert (await refusal(undetected)).status == 503


async def test_static_parts_are_kept_warm_behind_bypassed_requests_and_seldom() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    for _ in range(20):
        await world.ask()
    await world.settle()
    assert world.fetches == 1
    await asyncio.sleep(499)
    await world.ask()
    assert world.fetches == 1
    await asyncio.sleep(2)
    await world.ask()
    await world.settle()
    assert world.fetches == 2


async def test_nothing_is_kept_warm_where_it_is_not_wanted_or_there_is_no_room() -> None:
    fails = World(KEPT, rollout=NOBODY)
    await fails.ask()
    busy = World(KEPT, rollout=NOBODY, local_on_failure=True)
    busy.service.room = False
    await busy.ask()
    for world in (fails, busy):
        await world.settle()
        assert world.fetches == 0


async def test_keeping_warm_that_fails_disturbs_nobody() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    world.source.serves = DOWN
    assert (await world.ask()).prompt == THEIRS
    await world.settle()
    assert world.seen(Crashed) == []


async def test_keeping_warm_that_takes_too_long_is_no_crash() -> None:
    world = World(KEPT, rollout=NOBODY, local_on_failure=True)
    world.source.takes = 1000
    assert (await world.ask()).prompt == THEIRS
    await world.settle()
    assert world.seen(Crashed) == []


async def test_the_static_parts_of_todays_service_are_kept_warm_too() -> None:
    world = TodaysWorld(KEPT, rollout=NOBODY, local_on_failure=True)
    await world.ask(node="echo")
    await world.ask()
    await world.settle()
    assert len(world.users.calls) == 1
    world.service.serves = DOWN
    assert (await world.ask()).prompt == OURS
    assert said(await world.ask(node="echo")) == "prompt-sidecar; hit; detail=no-settings"


async def test_only_if_cached_is_never_passed_on() -> None:
    world = World(KEPT, rollout=NOBODY)
    error = await refusal(world, directives=Directives(only_if_cached=True))
    assert (error.status, error.reason) == (504, "not_cached")
    assert cache_status(error.provenance) == "prompt-sidecar; detail=only-if-cached"
    assert world.service.calls == []


async def test_a_service_that_only_renders_is_asked_each_time_and_nothing_is_kept() -> None:
    world = World(KEPT, generation=Generation.PASSTHROUGH)
    for _ in range(3):
        assert said(await world.ask()) == "prompt-sidecar; fwd=bypass; detail=passthrough"
    assert (len(world.service.calls), world.fetches, len(world.cache)) == (3, 0, 0)
    world.service.serves = DOWN
    assert (await refusal(world)).status == 503


async def test_as_long_as_nothing_is_known_of_the_service_it_renders_itself() -> None:
    world = World(KEPT, generation=None)
    assert said(await world.ask()) == "prompt-sidecar; fwd=bypass; detail=undetected"
    world.exists = True
    assert (await world.ask()).prompt == OURS
    world.exists = False
    await world.selection.endpoint_exists(1)
    assert said(await world.ask()) == "prompt-sidecar; fwd=bypass; detail=passthrough"


async def test_a_service_that_is_slow_to_say_what_it_is_costs_no_more_than_the_deadline() -> None:
    world = World(KEPT, generation=None)

    async def never() -> bool | None:
        await asyncio.sleep(1000)
        return None

    world.selection._probe = never
    before = asyncio.get_running_loop().time()
    await world.ask()
    assert asyncio.get_running_loop().time() - before <= 4
    await world.background.drain(0)


async def test_a_template_that_is_not_admitted_is_left_to_the_service_and_warned_of_once() -> None:
    world = World(KEPT)
    world.source.serves = REFUSING
    rendered = await world.ask()
    assert rendered.prompt == THEIRS
    assert said(rendered) == "prompt-sidecar; fwd=bypass; detail=not-admitted"
    assert world.manager.not_admitted == {"explain": REFUSING.detail}
    assert world.seen(NotAdmitted) == [NotAdmitted("explain", REFUSING.detail)]
    await asyncio.sleep(NOT_ADMITTED_SECONDS - 1)
    await world.ask()
    assert (world.fetches, len(world.service.calls)) == (1, 2)
    await asyncio.sleep(1)
    assert world.manager.not_admitted == {}
    await world.ask()
    assert (world.fetches, len(world.service.calls)) == (2, 3)
    assert len(world.seen(NotAdmitted)) == 1


async def test_another_reason_is_warned_of_again() -> None:
    world = World(KEPT)
    world.source.serves = REFUSING
    await world.ask()
    await asyncio.sleep(NOT_ADMITTED_SECONDS)
    world.source.serves = UpstreamFailure(FailureKind.NOT_ADMITTED, "line 9: an import is not admitted")
    await world.ask()
    assert [event.detail for event in world.seen(NotAdmitted)] == [REFUSING.detail, world.source.serves.detail]


async def test_a_template_that_is_admitted_again_is_rendered_here_again() -> None:
    world = World(KEPT)
    world.source.serves = REFUSING
    await world.ask()
    world.source.serves = document()
    assert (await world.ask()).prompt == THEIRS
    await asyncio.sleep(NOT_ADMITTED_SECONDS)
    assert (await world.ask()).prompt == OURS


async def test_a_node_that_is_not_admitted_is_none_of_the_others() -> None:
    world = TodaysWorld(KEPT)
    world.templates.refused["quiz"] = "line 3: a macro is not admitted"
    assert said(await world.ask(node="quiz")) == "prompt-sidecar; fwd=bypass; detail=not-admitted"
    assert (await world.ask()).prompt == OURS


async def test_only_so_many_nodes_are_noted_as_not_admitted() -> None:
    world = World(KEPT, max_nodes=3)
    world.source.serves = REFUSING
    for n in range(10):
        await world.ask(node=f"node {n}")
    assert [*world.manager.not_admitted] == ["node 7", "node 8", "node 9"]


@pytest.mark.parametrize("noted", [False, True])
async def test_where_the_service_fails_too_what_is_kept_stands_in_for_what_is_not_admitted(noted: bool) -> None:
    world = World(KEPT)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = REFUSING
    if noted:
        assert (await world.ask()).prompt == THEIRS
    world.service.serves = DOWN
    rendered = await world.ask(topic="comets")
    assert rendered.prompt == "Explain comets in plain words."
    assert rendered.provenance.detail == "stale-if-error"
    await asyncio.sleep(900)
    assert (await refusal(world)).status == 503


@pytest.mark.parametrize("noted", [False, True])
async def test_nothing_old_stands_in_for_what_the_service_says_of_a_node_that_is_not_admitted(noted: bool) -> None:
    world = World(KEPT)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = REFUSING
    if noted:
        assert (await world.ask()).prompt == THEIRS
    world.service.serves = answered(404)
    error = await refusal(world)
    assert error.answer is not None
    assert error.answer.status == 404


async def test_an_outage_of_the_service_is_no_reason_to_warn_again_of_what_is_not_admitted() -> None:
    world = World(KEPT)
    world.source.serves = REFUSING
    world.service.serves = DOWN
    for _ in range(5):
        assert (await refusal(world)).status == 503
    world.service.serves = Generated(THEIRS, {})
    assert (await world.ask()).prompt == THEIRS
    assert world.seen(NotAdmitted) == [NotAdmitted("explain", REFUSING.detail)]


def upgraded(world: TodaysWorld, *, to: bool) -> None:
    """Have the service found in another generation, as soon as a fetch finds its endpoint gone."""
    world.exists = to
    gone = GONE

    async def looks_again(*_: Any) -> Any:
        await world.selection.endpoint_exists(1)
        raise gone

    source: Any = world.users if to else world.source
    source.fetch = looks_again


async def test_after_a_roll_back_the_same_request_is_answered_in_the_older_way() -> None:
    world = TodaysWorld(KEPT, generation=None)
    world.exists = True
    await world.ask()
    assert world.selection.current is Generation.PROMPT_DATA
    upgraded(world, to=False)
    rendered = await world.ask(user=2)
    assert (rendered.prompt, said(rendered)) == (OURS, "prompt-sidecar; fwd=miss; stored")
    assert len(world.users.calls) == 1


async def test_after_an_upgrade_the_same_request_is_answered_in_the_newer_way() -> None:
    world = TodaysWorld(KEPT, generation=None)
    world.exists = False
    await world.ask()
    upgraded(world, to=True)
    world.source.serves = document(settings={"style": "verse"})
    assert (await world.ask(user=2)).prompt == "Explain tides in verse."


async def test_after_a_roll_back_to_a_service_that_only_renders_it_does() -> None:
    world = World(KEPT, generation=None)
    world.exists = True
    await world.ask()
    world.exists = False

    async def looks_again(*_: Any) -> Any:
        await world.selection.endpoint_exists(1)
        raise GONE

    source: Any = world.source
    source.fetch = looks_again
    assert said(await world.ask(user=2)) == "prompt-sidecar; fwd=bypass; detail=passthrough"


async def test_an_endpoint_that_is_gone_while_nothing_else_is_found_is_an_outage() -> None:
    world = World(KEPT)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = GONE
    assert said(await world.ask()) == "prompt-sidecar; fwd=bypass; detail=endpoint-gone"  # every generation has that
    world.service.serves = answered(404)  # which says as little as the other 404
    rendered = await world.ask()
    assert said(rendered) == "prompt-sidecar; fwd=stale; fwd-status=404; ttl=-100; detail=stale-if-error"
    error = await refusal(world, user=2)
    assert (error.status, error.reason) == (503, "endpoint_gone")
    assert world.seen(RequestOutcome)[-1].status == 503


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_an_endpoint_that_is_gone_leaves_the_word_to_the_service_where_it_has_one(status: int) -> None:
    world = World(KEPT)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = GONE
    world.service.serves = answered(status)
    error = await refusal(world)
    assert error.answer is not None
    assert error.answer.status == status
    assert error.provenance.detail == "endpoint-gone"


async def test_each_request_that_is_compared_is_compared_behind_its_answer() -> None:
    world = World(KEPT, shadow=ALL_COMPARED)
    world.service.takes = 2
    before = asyncio.get_running_loop().time()
    assert (await world.ask()).prompt == OURS
    assert asyncio.get_running_loop().time() == before
    await world.settle()
    assert [event.result for event in world.seen(ParityChecked)] == ["mismatch"]


async def test_a_node_that_differs_goes_to_the_service_until_a_person_brings_it_back() -> None:
    world = World(KEPT, shadow=ALL_COMPARED)
    await world.ask()
    await world.settle()
    assert world.seen(RolledBack) == [RolledBack("explain", back=True, reason="parity")]
    rendered = await world.ask()
    assert (rendered.prompt, said(rendered)) == (THEIRS, "prompt-sidecar; fwd=bypass; detail=parity")
    assert (await world.ask(node="quiz")).prompt == OURS
    await world.settle()
    adopts(world, shadow=replace_rate(0.0))
    world.shadow.reset()
    assert (await world.ask()).prompt == OURS


def replace_rate(rate: float) -> ShadowRule:
    return ALL_COMPARED._replace(sample_rate=rate)


async def test_a_node_that_differs_is_looked_at_again_and_comes_back_with_another_template() -> None:
    world = World(KEPT, shadow=ALL_COMPARED)
    await world.ask()
    await world.settle()
    adopts(world, shadow=replace_rate(0.0))
    world.source.serves = document("Now {{ topic }} in {{ style }}.")
    world.service.serves = Generated("Now tides in plain words.", {"style": "plain words", "topic": "tides"})
    await asyncio.sleep(9)
    await world.ask()
    await world.settle()
    assert "explain" in world.shadow.set_aside
    await asyncio.sleep(1)
    assert (await world.ask()).provenance.detail == "parity"
    await world.settle()
    assert world.shadow.set_aside == {}
    assert (await world.ask()).prompt == "Now tides in plain words."


async def test_an_outage_of_the_service_is_no_reason_to_trust_a_node_that_differs() -> None:
    world = World(KEPT, shadow=ALL_COMPARED, local_on_failure=True)
    await world.ask()
    await world.settle()
    world.service.serves = DOWN
    assert (await refusal(world)).status == 503


@pytest.mark.parametrize("context", [{"topic": 1}, {"topic": ["a"]}])
async def test_a_context_that_todays_service_refuses_is_not_compared(context: dict[str, Any]) -> None:
    world = World(KEPT, shadow=ALL_COMPARED)
    await world.manager.get_rendered_prompt(1, "explain", context)
    await world.settle()
    assert world.service.calls == []


async def test_bypassed_requests_are_compared_too() -> None:
    world = World(KEPT, rollout=NOBODY, shadow=ALL_COMPARED)
    world.service.serves = Generated(OURS, {"style": "plain words", "topic": "tides"})
    await world.ask()
    await world.settle()
    assert [event.result for event in world.seen(ParityChecked)] == ["match"]
    assert len(world.service.calls) == 1


async def test_who_renders_by_himself_gets_the_static_parts_from_the_cache() -> None:
    world = World(KEPT)
    world.source.serves = document(required=["topic"])
    for provenance in ("prompt-sidecar; fwd=miss; stored", "prompt-sidecar; hit; ttl=100"):
        ready = await world.manager.get_prompt_data(1, "explain")
        assert isinstance(ready, Ready)
        assert cache_status(ready.provenance) == provenance
        assert (ready.document.settings, set(ready.required)) == ({"style": "plain words"}, {"topic"})
    assert world.fetches == 1
    assert [event.outcome for event in world.seen(RequestOutcome)] == [Outcome.MISS, Outcome.FRESH]


async def test_who_renders_by_himself_is_no_part_of_the_rollout() -> None:
    world = World(KEPT, rollout=NOBODY)
    assert isinstance(await world.manager.get_prompt_data(1, "explain"), Ready)


async def test_who_renders_by_himself_gets_stale_parts_in_an_outage_and_errors_past_it() -> None:
    world = World(KEPT)
    await world.manager.get_prompt_data(1, "explain")
    world.source.serves = DOWN
    await asyncio.sleep(200)
    ready = await world.manager.get_prompt_data(1, "explain")
    assert isinstance(ready, Ready)
    assert (ready.provenance.detail, ready.fresh_for) == ("stale-if-error", 0)
    await asyncio.sleep(900)
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(1, "explain")
    assert caught.value.status == 503


async def test_the_parts_of_todays_service_are_put_together_for_who_renders_by_himself() -> None:
    world = TodaysWorld(KEPT)
    ready = await world.manager.get_prompt_data(1, "explain")
    assert isinstance(ready, Ready)
    assert ready.document.template.source == "Explain {{ topic }} in {{ style }}."
    assert ready.required == {"topic"}
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(1, "no such")
    assert caught.value.reason == "unknown_node"


async def test_parts_that_are_not_admitted_here_are_passed_on_as_they_are() -> None:
    world = World(KEPT)
    world.source.serves = REFUSING
    world.service.answers = Answer(200, b'{"template":"{% macro a() %}{% endmacro %}"}', "application/json")
    assert await world.manager.get_prompt_data(1, "explain") is world.service.answers
    assert world.service.calls == [(1, "explain")]
    assert world.seen(RequestOutcome)[0].outcome is Outcome.BYPASS
    world.service.answers = DOWN
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(1, "explain")
    assert caught.value.status == 503
    assert caught.value.provenance.forward is Forward.BYPASS


@pytest.mark.parametrize("generation", [Generation.PASSTHROUGH, None])
async def test_there_are_no_static_parts_where_the_service_has_none_or_nothing_is_known(
    generation: Generation | None,
) -> None:
    world = World(KEPT, generation=generation)
    assert not await world.manager.renders_here(1)
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(1, "explain")
    assert (caught.value.status, caught.value.reason) == (503, "endpoint_gone")
    assert world.seen(RequestOutcome)[0].outcome is Outcome.ERROR


async def test_where_there_are_static_parts_is_looked_for_once() -> None:
    world = World(KEPT, generation=None)
    world.exists = True
    assert await world.manager.renders_here(1)


async def test_after_a_roll_back_static_parts_are_put_together_in_the_older_way() -> None:
    world = TodaysWorld(KEPT, generation=None)
    world.exists = True
    await world.manager.get_prompt_data(1, "explain")
    upgraded(world, to=False)
    ready = await world.manager.get_prompt_data(2, "explain")
    assert isinstance(ready, Ready)
    assert ready.document.settings == {"style": "plain words", "language": "English"}


@pytest.mark.parametrize("failure", [GONE, REFUSING], ids=["endpoint gone", "not admitted"])
async def test_static_parts_that_are_kept_stand_in_where_every_way_is_closed(failure: UpstreamFailure) -> None:
    world = World(KEPT)
    await world.manager.get_prompt_data(1, "explain")
    await asyncio.sleep(200)
    world.source.serves = failure
    world.service.answers = DOWN
    ready = await world.manager.get_prompt_data(1, "explain")
    assert isinstance(ready, Ready)
    assert ready.provenance.detail == "stale-if-error"
    assert [event.outcome for event in world.seen(RequestOutcome)] == [Outcome.MISS, Outcome.STALE]
    await asyncio.sleep(900)
    with pytest.raises(PromptError) as caught:
        await world.manager.get_prompt_data(1, "explain")
    assert caught.value.status == 503


async def test_a_write_is_seen_by_the_next_prompt_and_by_the_next_who_renders_by_himself() -> None:
    world = TodaysWorld(KEPT)
    await world.ask()
    world.users.serves = UserSettings({"style": "verse"})
    world.writes.ended(1)
    assert (await world.ask()).prompt == "Explain tides in verse."
    world.users.serves = UserSettings({"style": "prose"})
    world.writes.ended(1)
    ready = await world.manager.get_prompt_data(1, "explain")
    assert isinstance(ready, Ready)
    assert ready.document.settings == {"style": "prose"}


async def test_a_write_is_seen_on_the_way_that_looks_at_nothing_else() -> None:
    world = World(KEPT)
    await world.ask()
    assert world.manager._straight
    world.source.serves = document(settings={"style": "verse"})
    world.writes.ended(12)
    assert (await world.ask()).prompt == OURS
    world.writes.ended(1)
    assert (await world.ask()).prompt == "Explain tides in verse."
