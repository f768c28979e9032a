"""Promise 4: no undefined placeholder is rendered silently."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.policy import Policy, Strategy
from sidecar.core.prompt import Undefined
from sidecar.settings import RenderSettings
from tests.harness import (
    KEPT,
    Answered,
    Exchange,
    prompt_data,
    raw_upstream,
    settings_for,
    sidecar_process,
    sidecar_with,
)

STRICT = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": "strict"}
EMPTY = {**STRICT, "undefined": "empty"}


async def ask_one(
    document: Mapping[str, Any], context: Mapping[str, Any], render: RenderSettings | None = None
) -> Answered:
    """Ask once, of an upstream that has only this document."""

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(document)

    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, render=render or RenderSettings())) as sidecar,
    ):
        return await sidecar.ask(context=context)


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ("{{ gone }}", ["gone"]),
        ("{{ zebra }} {{ topic }} {{ ant }} {{ zebra }}", ["ant", "zebra"]),
        ("{{ gone|upper }}", ["gone"]),
        ("{{ gone|trim|title }} {{ also }}", ["also", "gone"]),
        ("{{ 'x' ~ gone }}", ["gone"]),
        ("{% if gone %}never{% endif %}", ["gone"]),
        ("{% if topic == gone %}never{% endif %}", ["gone"]),
        ("{% for each in gone %}never{% endfor %}", ["gone"]),
        ("{% for each in [1, 2] %}{{ gone }}{% endfor %}", ["gone"]),
        ("{% if topic %}{{ gone }}{% endif %}", ["gone"]),
        ("{{ gone.attribute }}", ["gone"]),
        ("{{ gone['item'] }}", ["gone"]),
        ("{{ topic.attribute }}", ["attribute"]),
        ("{{ table.row.cell }}", ["cell"]),
        ("{{ {'a': gone}['a'] }}", ["gone"]),
        ("{{ gone if topic else topic }}", ["gone"]),
        ("{{ topic|default(gone) }}{{ gone }}", ["gone"]),
    ],
)
async def test_what_nobody_gives_is_named_and_not_rendered(template: str, missing: list[str]) -> None:
    answered = await ask_one(prompt_data(template), {"topic": "tides", "table": {"row": {}}})
    assert (answered.status, answered.document["missing"]) == (422, missing)
    assert answered.is_problem
    for name in missing:
        assert name in answered.document["detail"]
    assert "tides" not in answered.body.decode()


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ gone|default('a default') }}", "a default"),
        ("{% if gone is defined %}never{% else %}handled{% endif %}", "handled"),
        ("{% if topic %}{{ topic }}{% else %}{{ gone }}{% endif %}", "tides"),
    ],
)
async def test_what_the_template_itself_provides_for_is_not_missing(template: str, prompt: str) -> None:
    assert (await ask_one(prompt_data(template), {"topic": "tides"})).prompt == prompt


@pytest.mark.parametrize(
    "context",
    [{}, {"topic": None}, {"Topic": "wrong case"}, {"topic ": "a space"}],
    ids=["absent", "null", "case", "space"],
)
async def test_required_content_is_demanded_even_where_the_template_would_do_without_it(
    context: dict[str, Any],
) -> None:
    document = prompt_data("Only {{ style }}.", required=("topic",), render=EMPTY)
    answered = await ask_one(document, context)
    assert (answered.status, answered.document["missing"]) == (422, ["topic"])


async def test_a_setting_does_not_stand_in_for_required_content() -> None:
    document = prompt_data("{{ topic }}", {"topic": "from the settings"}, required=("topic",))
    assert (await ask_one(document, {})).document["missing"] == ["topic"]


async def test_settings_that_are_all_gone_on_the_first_answer_are_named() -> None:
    answered = await ask_one(prompt_data("{{ style }} {{ language }} {{ topic }}", {}), {"topic": "tides"})
    assert (answered.status, answered.document["missing"]) == (422, ["language", "style"])


async def test_a_document_that_does_not_say_is_held_to_the_strict_rule() -> None:
    assert (await ask_one(prompt_data("{{ gone }}"), {})).status == 422
    assert (await ask_one(prompt_data("{{ gone }}", render={"autoescape": False}), {})).status == 422


async def test_our_settings_word_goes_over_the_upstreams() -> None:
    document = prompt_data("{{ gone }}", render=EMPTY)
    assert (await ask_one(document, {}, RenderSettings(undefined=Undefined.STRICT))).status == 422


async def test_where_the_upstream_renders_nothing_for_it_the_answer_the_log_and_a_metric_say_so(tmp_path: Path) -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data("[{{ topic }}][{{ gone }}][{{ style }}]", render=EMPTY))

    async with raw_upstream(plays) as upstream, sidecar_process(upstream.url, tmp_path, LOG__FORMAT="json") as sidecar:
        answered = await sidecar.ask()
        assert answered.prompt == "[tides][][plain words]"
        assert answered.document["used_placeholders"] == {"topic": "tides", "style": "plain words", "gone": ""}
        assert "prompt_sidecar_undefined_rendered_empty_total 1.0" in await sidecar.metrics()
    (line,) = [line for line in sidecar.log.decode().splitlines() if "placeholder_rendered_empty" in line]
    assert '"names": ["gone"]' in line
    assert '"level": "warning"' in line


@pytest.mark.parametrize("strategy", Strategy)
async def test_no_way_of_serving_renders_what_is_missing(strategy: Strategy) -> None:
    down = False

    async def plays(exchange: Exchange) -> None:
        if down:
            await exchange.answer(status=503)
        else:
            await exchange.answer(prompt_data("{{ topic }} {{ gone }}", render=STRICT))

    policy = Policy(strategy=strategy, stale_while_revalidate=0)
    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, policy=policy, nodes={"stale": KEPT})) as sidecar,
    ):
        for node in ("explain", "stale"):
            for _ in range(2):
                answered = await sidecar.ask(1, node)
                assert (answered.status, answered.document["missing"]) == (422, ["gone"])
            complete = await sidecar.ask(1, node, {"topic": "tides", "gone": "here"})
            assert complete.prompt == "tides here"
        down = True
        assert (await sidecar.ask(1, "stale")).document["missing"] == ["gone"]
        assert (await sidecar.ask(1, "stale", {"topic": "tides", "gone": "here"})).prompt == "tides here"


NAMES = st.sampled_from(["a", "b", "c", "d", "név", "x_1"])
JINJAS_OWN = ["loop", "self", "range", "context", "environment"]


@given(
    names=st.lists(NAMES, min_size=1, max_size=6),
    preset=st.dictionaries(NAMES, st.just("set"), max_size=5),
    context=st.dictionaries(NAMES | st.sampled_from(JINJAS_OWN), st.just("said"), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_a_prompt_holds_everything_or_what_is_missing_is_named_exactly(
    names: list[str], preset: dict[str, str], context: dict[str, str]
) -> None:
    template = "".join(f"[{{{{ {name} }}}}]" for name in names)
    answered = asyncio.run(ask_one(prompt_data(template, preset), context))
    known = {**preset, **context}
    missing = sorted(set(names) - known.keys())
    if missing:
        assert (answered.status, answered.document["missing"]) == (422, missing)
    else:
        assert answered.prompt == "".join(f"[{known[name]}]" for name in names)
