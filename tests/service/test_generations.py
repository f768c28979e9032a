"""The generations that render here: how template and settings are come by in each; in faked time."""

import asyncio
from typing import Any

import pytest

from sidecar.core.cache_status import Forward, Provenance, cache_status
from sidecar.core.decision import NO_DIRECTIVES, Directives
from sidecar.core.errors import FailureKind, PromptError, UpstreamFailure
from sidecar.core.model import SettingsKey, UserSettings
from sidecar.core.policy import Policy, Strategy
from sidecar.service.generations import LARGEST_USER, FromPromptData, Wanted
from sidecar.service.resources import Diverted, Terms
from tests.fakes import TodaysWorld, World, answered, compiled, document, loop_time

pytestmark = pytest.mark.looptime

DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
KEPT = Policy(ttl=100, stale_while_revalidate=0, stale_if_error=900)
TOPIC: dict[str, Any] = {"topic": "tides"}


def terms(policy: Policy = KEPT, directives: Directives = NO_DIRECTIVES) -> Terms:
    return Terms(policy, directives, loop_time(), 4.0)


def wanted(node: str = "explain", user: int = 1, context: dict[str, Any] | None = TOPIC) -> Wanted:
    return Wanted(user, node, context)


async def test_one_fetch_serves_all_nodes_of_a_user() -> None:
    world = TodaysWorld(KEPT)
    assert (await world.ask()).prompt == "Explain tides in plain words."
    quiz = await world.ask(node="quiz")
    assert quiz.prompt == "Ask about tides in English."
    assert quiz.used_placeholders == {"language": "English", "topic": "tides"}
    assert cache_status(quiz.provenance) == "prompt-sidecar; hit; ttl=100"
    assert world.users.calls == [SettingsKey(1)]


async def test_each_user_has_a_fetch_and_settings_of_his_own() -> None:
    world = TodaysWorld(KEPT)
    await world.ask(user=1)
    world.users.serves = UserSettings({"style": "verse", "language": "Latin"})
    assert (await world.ask(user=12)).prompt == "Explain tides in verse."
    assert (await world.ask(user=1)).prompt == "Explain tides in plain words."
    assert world.users.calls == [SettingsKey(1), SettingsKey(12)]


async def test_eight_first_calls_at_once_cost_one_call_and_no_error() -> None:
    world = TodaysWorld()
    world.users.takes = 0.5
    answers = await asyncio.gather(*(world.ask(node=node) for node in ["explain", "quiz"] * 4))
    assert [answer.prompt for answer in answers] == [
        "Explain tides in plain words.",
        "Ask about tides in English.",
    ] * 4
    assert len(world.users.calls) == 1
    assert sum(answer.provenance.collapsed for answer in answers) == 7


async def test_each_prompt_asks_where_no_lifetime_is_stated() -> None:
    world = TodaysWorld(Policy())
    await world.ask()
    world.users.serves = UserSettings({"style": "verse"})
    assert (await world.ask()).prompt == "Explain tides in verse."
    world.users.serves = DOWN
    rendered = await world.ask()
    assert rendered.prompt == "Explain tides in verse."
    assert cache_status(rendered.provenance) == (
        "prompt-sidecar; fwd=stale; fwd-status=503; ttl=0; detail=stale-if-error"
    )


async def test_an_unknown_node_is_refused_in_todays_words_and_without_a_call() -> None:
    world = TodaysWorld()
    with pytest.raises(PromptError) as caught:
        await world.ask(node="no such")
    assert (caught.value.status, caught.value.reason) == (400, "unknown_node")
    assert caught.value.detail == "Template not found for node: no such"
    assert world.users.calls == []
    assert world.nodes.label("no such") is None


async def test_a_node_of_the_file_is_confirmed() -> None:
    world = TodaysWorld()
    await world.ask()
    assert world.nodes.label("explain") == "explain"


@pytest.mark.parametrize(
    "context",
    [
        pytest.param({"topic": "tides", "style": "verse"}, id="all of them"),
        pytest.param({"topic": "tides", "style": "verse", "more": "of it"}, id="and more"),
        pytest.param({"topic": "", "style": ""}, id="empty ones count"),
    ],
)
async def test_a_context_that_covers_every_variable_needs_no_settings(context: dict[str, Any]) -> None:
    world = TodaysWorld()
    world.users.serves = DOWN
    rendered = await world.ask(**context)
    assert rendered.prompt == f"Explain {context['topic']} in {context['style']}."
    assert rendered.used_placeholders == context
    assert rendered.provenance == Provenance(hit=True, detail="no-settings")
    assert cache_status(rendered.provenance) == "prompt-sidecar; hit; detail=no-settings"
    assert world.users.calls == []


async def test_a_node_that_reads_one_variable_needs_no_settings_when_that_is_given() -> None:
    world = TodaysWorld()
    assert (await world.ask(node="echo")).prompt == "Say tides."
    assert world.users.calls == []


async def test_a_context_that_lacks_one_variable_needs_the_settings_and_wins_over_them() -> None:
    world = TodaysWorld()
    rendered = await world.ask(style="verse")
    assert rendered.prompt == "Explain  in verse.", "today's service makes nothing of what is nowhere"
    assert rendered.used_placeholders == {"style": "verse", "topic": ""}
    assert world.users.calls == [SettingsKey(1)]


async def test_a_user_beyond_what_the_service_can_keep_has_no_settings_and_costs_no_call() -> None:
    world = TodaysWorld()
    rendered = await world.ask(user=LARGEST_USER + 1)
    assert rendered.prompt == "Explain tides in ."
    assert rendered.used_placeholders == {"topic": "tides", "style": ""}
    assert world.users.calls == []
    await world.ask(user=LARGEST_USER)
    assert world.users.calls == [SettingsKey(LARGEST_USER)]


@pytest.mark.parametrize("value", [1, 1.5, True, None, ["a"], {"a": 1}])
async def test_values_that_are_no_text_are_refused_in_todays_words_before_any_call(value: Any) -> None:
    world = TodaysWorld()
    with pytest.raises(PromptError) as caught:
        await world.ask(topic="tides", style=value)
    assert (caught.value.status, caught.value.reason) == (400, "schema")
    assert caught.value.detail.startswith(
        "1 validation error for GeneratePromptResponse\nused_placeholders.style\n  Input should be a valid string"
    )
    assert world.users.calls == []


async def test_an_unknown_node_is_refused_before_its_values_are() -> None:
    world = TodaysWorld()
    with pytest.raises(PromptError) as caught:
        await world.ask(node="no such", topic=1)
    assert caught.value.detail == "Template not found for node: no such"


async def test_a_setting_is_escaped_as_today_and_never_read_as_a_template() -> None:
    world = TodaysWorld()
    world.users.serves = UserSettings({"style": "{{ 7*7 }} & <b>"})
    assert (await world.ask()).prompt == "Explain tides in {{ 7*7 }} &amp; &lt;b&gt;."


async def test_what_the_settings_lack_is_required_of_one_who_renders_by_himself() -> None:
    world = TodaysWorld()
    ready = await world.todays.document(wanted(context=None), terms())
    assert ready.required == {"topic"}
    assert ready.document.settings == {"style": "plain words", "language": "English"}
    world.users.serves = UserSettings({})
    ready = await world.todays.document(wanted(user=2, context=None), terms())
    assert ready.required == {"topic", "style"}


async def test_a_user_without_settings_requires_everything() -> None:
    world = TodaysWorld()
    ready = await world.todays.document(wanted(user=LARGEST_USER + 1, context=None), terms())
    assert ready.required == {"topic", "style"}
    assert world.users.calls == []


async def test_one_who_renders_by_himself_gets_the_settings_whatever_the_template_reads() -> None:
    world = TodaysWorld()
    ready = await world.todays.document(wanted(node="echo", context=None), terms())
    assert ready.document.settings == {"style": "plain words", "language": "English"}
    assert world.users.calls == [SettingsKey(1)]


async def test_what_is_left_of_the_freshness_is_said() -> None:
    world = TodaysWorld(KEPT)
    assert (await world.todays.document(wanted(context=None), terms(world.policy))).fresh_for == 100
    await asyncio.sleep(60)
    assert (await world.todays.document(wanted(context=None), terms(world.policy))).fresh_for == 40
    world.users.serves = DOWN
    await asyncio.sleep(60)
    assert (await world.todays.document(wanted(context=None), terms(world.policy))).fresh_for == 0


async def test_nothing_is_left_of_what_must_be_asked_for_each_time() -> None:
    world = TodaysWorld(Policy())
    assert (await world.todays.document(wanted(context=None), terms(world.policy))).fresh_for == 0


async def test_who_shares_a_fetch_is_told_what_his_own_policy_leaves() -> None:
    brief = Policy(ttl=5, stale_if_error=0)
    world = TodaysWorld(KEPT, policies={"quiz": brief})
    world.users.takes = 1
    long = asyncio.ensure_future(world.todays.document(wanted(context=None), terms(KEPT)))
    await asyncio.sleep(0)
    short = await world.todays.document(wanted("quiz", context=None), terms(brief))
    assert (await long).fresh_for == 99
    assert short.fresh_for == 4, "kept for longer, it would be used for longer than the node's policy allows"
    assert len(world.users.calls) == 1


async def test_a_template_that_is_not_admitted_is_told_as_a_closed_way_without_a_call() -> None:
    world = TodaysWorld()
    world.templates.refused["explain"] = "line 3: a macro is not admitted"
    with pytest.raises(Diverted) as caught:
        await world.todays.document(wanted(), terms())
    assert caught.value.failure.kind is FailureKind.NOT_ADMITTED
    assert caught.value.failure.detail == "line 3: a macro is not admitted"
    assert caught.value.forward is Forward.BYPASS
    assert world.users.calls == []


async def test_a_document_is_put_together_once_for_the_same_settings_and_template() -> None:
    world = TodaysWorld(KEPT)
    first = await world.todays.document(wanted(), terms())
    assert (await world.todays.document(wanted(), terms())).document is first.document


async def test_a_new_template_is_used_at_once_with_the_settings_at_hand() -> None:
    world = TodaysWorld(KEPT)
    await world.ask()
    world.templates.templates["explain"] = compiled("{{ style }}: {{ topic }}!", autoescape=True)
    assert (await world.ask()).prompt == "plain words: tides!"
    assert len(world.users.calls) == 1


async def test_each_node_judges_the_shared_settings_by_its_own_policy() -> None:
    guard = Policy(strategy=Strategy.NETWORK_FIRST, stale_if_error=0, ttl=0)
    world = TodaysWorld(Policy(stale_if_error=900), policies={"quiz": guard})
    await world.ask(node="quiz")
    world.users.serves = DOWN
    await asyncio.sleep(600)
    assert (await world.ask(node="explain")).prompt == "Explain tides in plain words."
    with pytest.raises(PromptError) as caught:
        await world.ask(node="quiz")
    assert caught.value.status == 503
    await asyncio.sleep(301)
    with pytest.raises(PromptError):
        await world.ask(node="explain")


async def test_a_node_that_is_never_cached_feeds_the_others() -> None:
    never = Policy(strategy=Strategy.NETWORK_ONLY)
    world = TodaysWorld(KEPT, policies={"quiz": never})
    await world.ask(node="quiz")
    await world.ask(node="explain")
    assert len(world.users.calls) == 1
    await world.ask(node="quiz")
    assert len(world.users.calls) == 2


async def test_a_refusal_of_the_user_is_passed_on_and_evicts_for_all_nodes() -> None:
    world = TodaysWorld(Policy())
    await world.ask()
    world.users.serves = answered(404)
    with pytest.raises(PromptError) as caught:
        await world.ask(node="quiz")
    assert caught.value.answer is not None
    world.users.serves = DOWN
    with pytest.raises(PromptError) as after:
        await world.ask()
    assert after.value.status == 503


async def test_an_endpoint_that_is_gone_is_told_as_a_closed_way() -> None:
    world = TodaysWorld()
    world.users.serves = UpstreamFailure(FailureKind.ENDPOINT_GONE, "gone", status=404)
    with pytest.raises(Diverted) as caught:
        await world.todays.document(wanted(), terms())
    assert caught.value.failure.kind is FailureKind.ENDPOINT_GONE


async def test_what_is_kept_stands_in_for_a_way_that_is_closed() -> None:
    world = TodaysWorld(KEPT)
    await world.ask()
    ready = world.todays.instead(wanted("quiz"), terms(), DOWN, Forward.BYPASS)
    assert ready is not None
    assert ready.required == {"topic"}
    assert ready.provenance.detail == "stale-if-error"


async def test_nothing_stands_in_where_nothing_is_kept_or_there_is_no_template() -> None:
    world = TodaysWorld(KEPT)
    world.templates.refused["quiz"] = "a macro"
    assert world.todays.instead(wanted(), terms(), DOWN, Forward.BYPASS) is None
    await world.ask()
    assert world.todays.instead(wanted("no such"), terms(), DOWN, Forward.BYPASS) is None
    assert world.todays.instead(wanted("quiz"), terms(), DOWN, Forward.BYPASS) is None
    assert world.todays.instead(wanted(user=2), terms(), DOWN, Forward.BYPASS) is None


async def test_what_needs_no_settings_always_stands_in() -> None:
    world = TodaysWorld(KEPT)
    ready = world.todays.instead(wanted("echo"), terms(), DOWN, Forward.BYPASS)
    assert ready is not None
    assert ready.provenance.detail == "no-settings"


async def test_the_document_as_it_is_now_is_asked_for_anew() -> None:
    world = TodaysWorld(KEPT)
    await world.ask()
    world.users.serves = UserSettings({"style": "verse"})
    renewed = await world.todays.renew(wanted(), terms())
    assert renewed is not None
    assert renewed.settings == {"style": "verse"}
    assert (await world.ask()).prompt == "Explain tides in verse."
    assert len(world.users.calls) == 2


async def test_where_the_document_cannot_be_had_there_is_none() -> None:
    world = TodaysWorld(KEPT)
    world.users.serves = DOWN
    world.templates.refused["quiz"] = "a macro"
    assert await world.todays.renew(wanted(), terms()) is None
    assert await world.todays.renew(wanted("no such"), terms()) is None
    assert await world.todays.renew(wanted("quiz"), terms()) is None
    assert await world.todays.renew(wanted("echo"), terms()) is not None
    assert len(world.users.calls) == 1


async def test_settings_age_for_all_nodes_at_once() -> None:
    world = TodaysWorld(KEPT)
    assert world.todays.is_aging(wanted(), terms())
    await world.ask()
    assert not world.todays.is_aging(wanted("quiz"), terms())
    await asyncio.sleep(500)
    assert world.todays.is_aging(wanted("quiz"), terms())


async def test_prompt_data_comes_by_user_and_node_and_says_what_it_requires() -> None:
    world = World(KEPT)
    world.source.serves = document(required=["topic"], ttl=300)
    parts = FromPromptData(world.resources, world.nodes.confirm)
    assert parts.is_aging(wanted(), terms())
    ready = await parts.document(wanted(), terms())
    assert ready.required == {"topic"}
    assert ready.fresh_for == 100
    assert world.nodes.label("explain") == "explain"
    assert not parts.is_aging(wanted(), terms())
    await parts.document(wanted("quiz"), terms())
    await parts.document(wanted(user=2), terms())
    assert world.fetches == 3


async def test_prompt_data_that_fails_confirms_no_node() -> None:
    world = World(KEPT)
    world.source.serves = DOWN
    parts = FromPromptData(world.resources, world.nodes.confirm)
    with pytest.raises(PromptError):
        await parts.document(wanted("random"), terms())
    assert await parts.renew(wanted("random"), terms()) is None
    assert parts.instead(wanted("random"), terms(), DOWN, Forward.MISS) is None
    assert world.nodes.label("random") is None


async def test_prompt_data_is_renewed_whatever_is_kept() -> None:
    world = World(KEPT)
    parts = FromPromptData(world.resources, world.nodes.confirm)
    await parts.document(wanted(), terms())
    newer = document(settings={"style": "verse"})
    world.source.serves = newer
    assert await parts.renew(wanted(), terms()) is newer
    assert (await parts.document(wanted(), terms())).document is newer
    kept = parts.instead(wanted(), terms(), DOWN, Forward.BYPASS)
    assert kept is not None
    assert kept.document is newer
