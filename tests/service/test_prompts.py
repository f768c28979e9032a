"""PromptManager: look up, decide, serve or fetch, render; in faked time."""

import asyncio

import pytest

from sidecar.core.cache_status import Forward, Provenance, cache_status
from sidecar.core.decision import Directives
from sidecar.core.errors import FailureKind, PromptError, UpstreamFailure
from sidecar.core.events import Coalesced, Evicted, FetchFailed, NotRendered, Outcome, RenderedEmpty, RequestOutcome
from sidecar.core.model import Rendered
from sidecar.core.policy import Policy, Strategy
from sidecar.core.prompt import Undefined
from tests.fakes import World, answered, document

pytestmark = pytest.mark.looptime

DOWN = UpstreamFailure(FailureKind.SERVER_ERROR, "the config service answered 503", status=503)
POLICY = Policy(stale_while_revalidate=30, stale_if_error=900, network_timeout=1)


def said(rendered: Rendered) -> str:
    return cache_status(rendered.provenance)


async def test_a_miss_fetches_stores_and_serves_what_was_fetched() -> None:
    world = World(POLICY)
    rendered = await world.ask()
    assert rendered.prompt == "Explain tides in plain words."
    assert rendered.used_placeholders == {"style": "plain words", "topic": "tides"}
    assert said(rendered) == "prompt-sidecar; fwd=miss; stored"
    assert world.seen(RequestOutcome)[0].outcome is Outcome.MISS


async def test_a_fresh_entry_serves_without_asking_and_with_this_requests_own_content() -> None:
    world = World(POLICY)
    await world.ask(topic="tides")
    await asyncio.sleep(60)
    rendered = await world.ask(topic="comets")
    assert rendered.prompt == "Explain comets in plain words."
    assert said(rendered) == "prompt-sidecar; hit; ttl=40"
    assert rendered.provenance.age == 60
    assert world.fetches == 1


@pytest.mark.parametrize(
    ("age", "status", "fetches"),
    [
        pytest.param(99.9, "prompt-sidecar; hit; ttl=0", 1, id="last instant fresh"),
        pytest.param(100, "prompt-sidecar; hit; ttl=0; detail=stale-while-revalidate", 2, id="first instant stale"),
        pytest.param(130, "prompt-sidecar; hit; ttl=-30; detail=stale-while-revalidate", 2, id="last of revalidation"),
        pytest.param(130.1, "prompt-sidecar; fwd=stale; stored", 2, id="past it: asked first"),
        pytest.param(1000, "prompt-sidecar; fwd=stale; stored", 2, id="last usable"),
        pytest.param(1000.1, "prompt-sidecar; fwd=miss; stored", 2, id="past the policy"),
    ],
)
async def test_healthy_upstream_at_each_boundary(age: float, status: str, fetches: int) -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(age)
    assert said(await world.ask()) == status
    await world.settle()
    assert world.fetches == fetches


@pytest.mark.parametrize(
    ("age", "status"),
    [
        pytest.param(99.9, "prompt-sidecar; hit; ttl=0", id="fresh"),
        pytest.param(130.1, "prompt-sidecar; fwd=stale; fwd-status=503; ttl=-31; detail=stale-if-error", id="stale"),
        pytest.param(
            1000, "prompt-sidecar; fwd=stale; fwd-status=503; ttl=-900; detail=stale-if-error", id="last instant usable"
        ),
    ],
)
async def test_failing_upstream_is_covered_to_the_last_second(age: float, status: str) -> None:
    world = World(POLICY)
    await world.ask()
    world.source.serves = DOWN
    await asyncio.sleep(age)
    rendered = await world.ask(topic="comets")
    assert said(rendered) == status
    assert rendered.prompt == "Explain comets in plain words."


async def test_past_the_policy_a_failing_upstream_is_an_error() -> None:
    world = World(POLICY)
    await world.ask()
    world.source.serves = DOWN
    await asyncio.sleep(1000.1)
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert (caught.value.status, caught.value.retry_after, caught.value.reason) == (503, 1, "server_error")
    assert cache_status(caught.value.provenance) == "prompt-sidecar; fwd=miss; fwd-status=503; detail=server-error"


async def test_stale_while_the_circuit_is_open_serves_without_going_forward() -> None:
    world = World(POLICY)
    await world.ask()
    world.source.open_for = 7.5
    await asyncio.sleep(135)
    assert said(await world.ask()) == "prompt-sidecar; hit; ttl=-35; detail=stale-if-error"
    assert world.fetches == 1


async def test_nothing_kept_while_the_circuit_is_open_is_503_with_the_time_to_come_back() -> None:
    world = World(POLICY)
    world.source.open_for = 7.5
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert (caught.value.status, caught.value.retry_after) == (503, 7.5)
    assert world.fetches == 0


async def test_a_slow_upstream_is_waited_for_as_long_as_network_timeout_says_then_the_fetch_goes_on_behind() -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = document(settings={"style": "verse"})
    world.source.takes = 2
    before = asyncio.get_running_loop().time()
    rendered = await world.ask()
    assert asyncio.get_running_loop().time() - before == pytest.approx(1)
    assert said(rendered) == "prompt-sidecar; fwd=stale; ttl=-101; detail=network-timeout"
    await asyncio.sleep(2)
    assert (await world.ask()).prompt == "Explain tides in verse."
    assert world.fetches == 2


async def test_what_grows_too_old_while_waiting_is_not_served_and_the_whole_deadline_is_waited_for() -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(999.5)
    world.source.takes = 2
    rendered = await world.ask()
    assert said(rendered) == "prompt-sidecar; fwd=stale; stored"
    assert world.fetches == 2


async def test_a_request_with_nothing_to_fall_back_on_waits_for_the_whole_deadline_and_no_longer() -> None:
    world = World(POLICY)
    world.source.takes = 1000
    before = asyncio.get_running_loop().time()
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert caught.value.status == 504
    assert 3.5 < asyncio.get_running_loop().time() - before < 4


async def test_network_first_asks_every_time_and_falls_back_on_what_is_kept() -> None:
    world = World(Policy(strategy=Strategy.NETWORK_FIRST, stale_if_error=900))
    await world.ask()
    assert said(await world.ask()) == "prompt-sidecar; fwd=bypass; stored"
    world.source.serves = DOWN
    rendered = await world.ask()
    assert said(rendered) == "prompt-sidecar; fwd=bypass; fwd-status=503; ttl=100; detail=stale-if-error"
    assert [outcome.outcome for outcome in world.seen(RequestOutcome)] == [Outcome.MISS, Outcome.BYPASS, Outcome.FRESH]


async def test_auto_asks_every_time_where_no_lifetime_is_stated() -> None:
    world = World(POLICY)
    world.source.serves = document(ttl=None)
    await world.ask()
    await world.ask()
    assert world.fetches == 2
    world.source.serves = DOWN
    assert said(await world.ask()) == "prompt-sidecar; fwd=stale; fwd-status=503; ttl=0; detail=stale-if-error"


async def test_network_only_never_serves_from_the_cache_and_keeps_nothing() -> None:
    world = World(Policy(strategy=Strategy.NETWORK_ONLY))
    assert said(await world.ask()) == "prompt-sidecar; fwd=bypass"
    world.source.serves = DOWN
    with pytest.raises(PromptError):
        await world.ask()
    assert len(world.cache) == 0


async def test_no_cache_confirms_with_the_upstream_first() -> None:
    world = World(POLICY)
    await world.ask()
    world.source.serves = document(settings={"style": "verse"})
    rendered = await world.ask(directives=Directives(no_cache=True))
    assert rendered.prompt == "Explain tides in verse."
    assert said(rendered) == "prompt-sidecar; fwd=request; stored"
    world.source.serves = DOWN
    with pytest.raises(PromptError) as caught:
        await world.ask(directives=Directives(no_cache=True))
    assert caught.value.status == 503


async def test_no_cache_is_not_answered_by_a_fetch_that_began_before_it() -> None:
    world = World(POLICY)
    world.source.takes = 1
    first = asyncio.ensure_future(world.ask())
    await asyncio.sleep(0.5)
    world.source.serves = document(settings={"style": "verse"})
    rendered = await world.ask(directives=Directives(no_cache=True))
    assert rendered.prompt == "Explain tides in verse."
    assert (await first).prompt == "Explain tides in plain words."
    assert (await world.ask()).prompt == "Explain tides in verse."


async def test_only_if_cached_never_asks() -> None:
    world = World(POLICY)
    with pytest.raises(PromptError) as caught:
        await world.ask(directives=Directives(only_if_cached=True))
    assert caught.value.status == 504
    assert cache_status(caught.value.provenance) == "prompt-sidecar; detail=only-if-cached"
    await world.ask()
    assert said(await world.ask(directives=Directives(only_if_cached=True))) == "prompt-sidecar; hit; ttl=100"
    await asyncio.sleep(110)
    rendered = await world.ask(directives=Directives(only_if_cached=True))
    assert said(rendered) == "prompt-sidecar; hit; ttl=-10; detail=stale-while-revalidate"
    assert world.fetches == 1


async def test_max_stale_takes_what_is_stale_without_asking() -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(200)
    rendered = await world.ask(directives=Directives(max_stale=100))
    assert said(rendered) == "prompt-sidecar; hit; ttl=-100; detail=max-stale"
    assert said(await world.ask(directives=Directives(max_stale=99))) == "prompt-sidecar; fwd=stale; stored"


async def test_many_requests_at_once_cost_one_fetch() -> None:
    world = World(POLICY)
    world.source.takes = 0.5
    answers = await asyncio.gather(*(world.ask(topic=f"topic {n}") for n in range(50)))
    assert world.fetches == 1
    assert [answer.prompt for answer in answers] == [f"Explain topic {n} in plain words." for n in range(50)]
    assert sum(answer.provenance.collapsed for answer in answers) == 49
    assert len(world.seen(Coalesced)) == 49


async def test_one_fetch_at_most_revalidates_however_many_ask() -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(110)
    world.source.takes = 1
    await asyncio.gather(*(world.ask() for _ in range(20)))
    await world.settle()
    assert world.fetches == 2


async def test_the_last_waiters_leaving_does_not_cancel_the_fetch() -> None:
    world = World(POLICY)
    world.source.takes = 2
    waiter = asyncio.ensure_future(world.ask())
    await asyncio.sleep(1)
    waiter.cancel()
    await asyncio.sleep(1.5)
    assert said(await world.ask()) == "prompt-sidecar; hit; ttl=97"
    assert world.fetches == 1


async def test_each_waiter_keeps_its_own_deadline() -> None:
    world = World(POLICY)
    world.source.takes = 1000
    early = asyncio.ensure_future(world.ask())
    await asyncio.sleep(3)
    world.source.takes = 2
    late = asyncio.ensure_future(world.ask())
    with pytest.raises(PromptError):
        await early
    assert asyncio.get_running_loop().time() == pytest.approx(4, abs=0.2)
    world.source.takes = 0.5
    assert (await late).prompt == "Explain tides in plain words."


@pytest.mark.parametrize("status", [400, 404, 410, 422])
async def test_an_answer_that_there_is_no_such_prompt_is_passed_on_and_evicts(status: int) -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = answered(status)
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert caught.value.answer is not None
    assert (caught.value.answer.status, caught.value.answer.body) == (status, b'{"detail":"no"}')
    assert len(world.cache) == 0
    assert len(world.seen(Evicted)) == 1
    world.source.serves = DOWN
    with pytest.raises(PromptError) as after:
        await world.ask()
    assert after.value.status == 503


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_is_passed_on_and_evicts_nothing(status: int) -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = answered(status)
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert caught.value.answer is not None
    assert caught.value.answer.status == status
    assert len(world.cache) == 1


async def test_a_revalidation_that_finds_the_prompt_gone_evicts_it_for_the_next() -> None:
    world = World(POLICY)
    await world.ask()
    world.source.serves = answered(404)
    await asyncio.sleep(110)
    assert said(await world.ask()) == "prompt-sidecar; hit; ttl=-10; detail=stale-while-revalidate"
    await world.settle()
    with pytest.raises(PromptError) as caught:
        await world.ask()
    assert caught.value.status == 404


async def test_an_old_fetchs_404_does_not_evict_what_a_newer_one_brought() -> None:
    world = World(POLICY)
    world.source.takes = 3
    world.source.serves = answered(404)
    slow = asyncio.ensure_future(world.ask())
    await asyncio.sleep(1)
    world.source.takes = 0
    world.source.serves = document()
    await world.ask(directives=Directives(no_cache=True))
    with pytest.raises(PromptError):
        await slow
    assert len(world.cache) == 1


async def test_an_older_document_never_replaces_a_newer_one() -> None:
    world = World(POLICY)
    world.source.takes = 3
    world.source.serves = document(settings={"style": "old words"})
    slow = asyncio.ensure_future(world.ask())
    await asyncio.sleep(1)
    world.source.takes = 0
    world.source.serves = document(settings={"style": "new words"})
    await world.ask(directives=Directives(no_cache=True))
    assert said(await slow) == "prompt-sidecar; fwd=miss"
    assert (await world.ask()).prompt == "Explain tides in new words."


async def test_an_answer_that_lost_all_settings_does_not_replace_good_ones() -> None:
    world = World(POLICY)
    await world.ask()
    await asyncio.sleep(200)
    world.source.serves = document(settings={})
    rendered = await world.ask()
    assert rendered.prompt == "Explain tides in plain words."
    assert said(rendered) == "prompt-sidecar; fwd=stale; ttl=-100; detail=stale-if-error"
    assert world.seen(FetchFailed)[0].kind is FailureKind.BAD_DOCUMENT


async def test_required_content_that_is_missing_is_named() -> None:
    world = World(POLICY)
    world.source.serves = document(required=["topic", "audience"])
    with pytest.raises(PromptError) as caught:
        await world.ask(topic=None)
    assert (caught.value.status, caught.value.missing) == (422, ("audience", "topic"))
    assert world.seen(NotRendered)[0].reason == "required"


async def test_an_undefined_placeholder_is_named_not_rendered() -> None:
    world = World(POLICY)
    with pytest.raises(PromptError) as caught:
        await world.ask(other="x")
    assert (caught.value.status, caught.value.missing) == (422, ("topic",))


async def test_where_the_upstream_renders_nothing_for_what_is_missing_so_do_we_and_say_so() -> None:
    world = World(POLICY)
    world.source.serves = document(undefined=Undefined.EMPTY)
    rendered = await world.ask(other="x")
    assert rendered.prompt == "Explain  in plain words."
    assert rendered.used_placeholders == {"style": "plain words", "other": "x", "topic": ""}
    assert world.seen(RenderedEmpty)[0].names == ("topic",)


async def test_content_that_cannot_be_rendered_is_the_requests_error() -> None:
    world = World(POLICY)
    world.source.serves = document("{{ topic + 1 }} {{ style }}")
    with pytest.raises(PromptError) as caught:
        await world.ask(topic="tides")
    assert (caught.value.status, caught.value.reason) == (422, "error")
    assert "tides" not in str(caught.value)


async def test_the_known_document_is_offered_for_revalidation() -> None:
    world = World(POLICY)
    good = document(etag='"1"')
    world.source.serves = good
    await world.ask()
    await asyncio.sleep(200)
    await world.ask()
    assert world.source.known == [None, good]


async def test_a_node_is_a_label_only_once_the_upstream_confirmed_it_and_only_so_many_are() -> None:
    world = World(POLICY, max_nodes=2)
    world.source.serves = answered(404)
    for n in range(10):
        with pytest.raises(PromptError):
            await world.ask(node=f"random {n}")
    assert {outcome.node for outcome in world.seen(RequestOutcome)} == {None}
    world.source.serves = document()
    for n in range(5):
        await world.ask(node=f"node {n}")
    assert {outcome.node for outcome in world.seen(RequestOutcome)} == {None, "node 0", "node 1"}


async def test_an_entry_with_no_lifetime_at_all_is_not_said_to_be_stored() -> None:
    world = World(Policy(ttl=0, stale_if_error=0))
    assert said(await world.ask()) == "prompt-sidecar; fwd=miss"


async def test_provenance_of_a_forward_is_its_reason() -> None:
    world = World(POLICY)
    assert (await world.ask()).provenance == Provenance(forward=Forward.MISS, stored=True)
