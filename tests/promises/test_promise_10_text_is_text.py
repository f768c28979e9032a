"""Promise 10: content that looks like a template stays as it is; rendering is bounded in size and time."""

import asyncio
import html
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.settings import RenderSettings
from tests.harness import (
    Answered,
    Client,
    Exchange,
    prompt_data,
    raw_upstream,
    settings_for,
    sidecar_process,
    sidecar_with,
)

PLAIN = {"autoescape": False}
MIB = 1024 * 1024
NO_LONGER_THAN = 1.0  # seconds that another user may have to wait
NO_MORE_THAN = 50 * MIB

LOOKS_LIKE_A_TEMPLATE = [
    "{{ 7*7 }}",
    "{{ config }}",
    "{{ topic }}",
    "{{ style }}",
    "{% for i in range(9) %}{{ i }}{% endfor %}",
    "{# a comment #}",
    "{% raw %}{{ style }}{% endraw %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{{",
    "}}",
    "{%",
    "{{ '{{ style }}' }}",
    "${7*7} #{7*7} <%= 7*7 %> %(style)s {style} {0} %s $style",
    "\\x7b\\x7b style }}",
    "line\n  {% if x %}\n  indented\n",
    "\u2028\u0000\ufeff{{ style }}",
]


async def ask_of(document: dict[str, Any], context: dict[str, Any]) -> Answered:
    """Ask twice, of an upstream that has only this document: once of the upstream, once of what is kept."""

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(document)

    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url)) as sidecar:
        first = await sidecar.ask(context=context)
        second = await sidecar.ask(context=context)
        assert (second.status, second.body) == (first.status, first.body)
        return second


@pytest.mark.parametrize("text", LOOKS_LIKE_A_TEMPLATE)
async def test_content_that_looks_like_a_template_stays_as_it_is(text: str) -> None:
    document = prompt_data("[{{ topic }}] [{{ style }}]", {"style": "plain words"}, render=PLAIN)
    answered = await ask_of(document, {"topic": text})
    assert answered.prompt == f"[{text}] [plain words]"
    assert answered.document["used_placeholders"]["topic"] == text


@pytest.mark.parametrize("text", LOOKS_LIKE_A_TEMPLATE)
async def test_where_prompts_are_escaped_content_is_escaped_once_and_nothing_else_happens_to_it(text: str) -> None:
    answered = await ask_of(prompt_data("[{{ topic }}]"), {"topic": text})
    assert html.unescape(answered.prompt) == html.unescape(html.escape(f"[{text}]"))
    assert answered.document["used_placeholders"]["topic"] == text


@pytest.mark.parametrize("text", LOOKS_LIKE_A_TEMPLATE)
async def test_a_setting_that_looks_like_a_template_stays_as_it_is(text: str) -> None:
    answered = await ask_of(prompt_data("[{{ topic }}] [{{ style }}]", {"style": text}, render=PLAIN), {"topic": "x"})
    assert answered.prompt == f"[x] [{text}]"


async def test_content_in_every_place_of_a_template_stays_as_it_is() -> None:
    template = (
        "{{ topic }}|{{ topic|trim }}|{{ topic ~ '' }}|{% if topic %}{{ topic }}{% endif %}|"
        "{% for each in [topic] %}{{ each }}{% endfor %}|{{ table.key }}|{{ topic|default('') }}|{{ topic|string }}"
    )
    text = "{{ 7*7 }}{% set x = 1 %}"
    answered = await ask_of(prompt_data(template, render=PLAIN), {"topic": text, "table": {"key": text}})
    assert answered.prompt == "|".join([text] * 8)


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(LOOKS_LIKE_A_TEMPLATE))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_through_whole(text: str) -> None:
    answered = asyncio.run(ask_of(prompt_data("[{{ topic }}]", render=PLAIN), {"topic": text}))
    assert answered.prompt == f"[{text}]"


@pytest.mark.parametrize("name", ["{{ 7*7 }}", "topic }}{{ style", "__class__", "", "a b", "{% raw %}"])
async def test_a_key_that_looks_like_a_template_is_a_key(name: str) -> None:
    answered = await ask_of(prompt_data("{{ topic }}"), {"topic": "x", name: "y"})
    assert answered.prompt == "x"
    assert answered.document["used_placeholders"] == {"topic": "x", name: "y"}


REFUSED = {  # template: what the problem must name, in order
    "{{ 'a'*200000000 }}": "line 1.*`[*]`",
    "fine\n{{ 'x'|center(10**9) }}": "line 2.*`center`",
    "fine\n\n{{ 'x'|center(1000000000) }}": "line 3.*`center`",
    "{{ '%1000000000d'|format(1) }}": "line 1.*`format`",
    "{{ 'a'|indent(1000000000) }}": "line 1.*`width`.*`indent`",
    "{{ x|join(y) }}": "line 1.*`join`",
    "{{ y|replace('y', y) }}": "line 1.*`replace`",
    "{% for a in 'ab' %}" * 10 + "{% endfor %}" * 10: "line 1.*`for`",
    "{% for a in range(1000000000) %}{% endfor %}": "line 1.*call",
    "{% set x = 'aaaaaaaaaa' %}": "line 1.*`set`",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "line 1.*`macro`",
    "{{ ''.__class__ }}": "line 1.*`__class__`",
    "{{ lipsum(100000) }}": "line 1.*call",
    "{% include 'x' %}": "line 1.*`include`",
    "{{ " + "(" * 50_000 + ")" * 50_000 + " }}": "a template",
    "{{ a }}" * 30_000: "a template this large",
    "{% if a %}" * 500 + "{% endif %}" * 500: "template",
    "{{ 9**9**9**9 }}": "line 1.*`[*][*]`",
    "{{ a" + "|e" * 1000 + " }}": "line 1.*expression",
    "x" * (5 * MIB): "larger than upstream.max_response",
    "x" * MIB: "a template this large",
    "{% if": "line 1.*syntax",
}
COSTLY: dict[str, tuple[str, dict[str, Any]]] = {  # admitted, and costly with the right content: (template, content)
    "loops": ("{% for a in x %}{% for b in x %}{{ a }}{% endfor %}{% endfor %}", {"x": ["a"] * 2000}),
    "growth": ("{% for a in x %}{{ y }}{% endfor %}", {"x": ["a"] * 5000, "y": "y" * 100_000}),
    "repetition": ("{{ y }}" * 100, {"y": "y" * 100_000}),
    "escaping": ("{{ y|e }}" * 20, {"y": "&" * 500_000}),
    "a long list as text": ("{{ x }}" * 50, {"x": [[[1, 2, 3]]] * 50_000}),
    "sorting": ("{% for a in x %}{{ x|sort }}{% endfor %}", {"x": [f"{n}" for n in range(3000)]}),
}


async def ask_meanwhile(client: Client, over: asyncio.Event) -> float:
    """Ask for another user's prompt again and again, and return the longest that it took; seconds."""
    longest = 0.0
    while not over.is_set():
        answered = await client.ask(999, "good")
        assert answered.prompt == "Explain tides in plain words."
        longest = max(longest, answered.seconds)
    return longest


async def test_a_template_or_content_that_would_take_the_pod_down_is_refused_while_others_are_served(
    tmp_path: Path,
) -> None:
    templates: dict[str, str] = {f"refused {n}": template for n, template in enumerate(REFUSED)}
    templates |= {name: template for name, (template, _) in COSTLY.items()}

    async def plays(exchange: Exchange) -> None:
        document = prompt_data(templates[exchange.node]) if exchange.node in templates else prompt_data()
        await exchange.answer(document)

    over = asyncio.Event()
    async with (
        raw_upstream(plays) as upstream,
        sidecar_process(upstream.url, tmp_path, BREAKER__FAIL_MAX="1000") as sidecar,
    ):
        await sidecar.ask(999, "good")
        process = psutil.Process(sidecar.pid)
        before = process.memory_info().rss
        meanwhile = asyncio.ensure_future(ask_meanwhile(sidecar, over))
        for n, (template, names) in enumerate(REFUSED.items()):
            refused = await sidecar.ask(1, f"refused {n}")
            assert refused.status == 502, template[:60]
            assert re.search(names, refused.document["detail"]), template[:60]
            assert refused.seconds < NO_LONGER_THAN, template[:60]
        for name, (_, context) in COSTLY.items():
            refused = await sidecar.ask(1, name, context)
            assert refused.status == 422, name
            assert refused.seconds < NO_LONGER_THAN, name
        over.set()
        assert await meanwhile < NO_LONGER_THAN
        assert process.memory_info().rss - before < NO_MORE_THAN


async def test_a_template_has_a_limit_of_its_own_below_that_of_the_answer() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data("x" * (5 * MIB)))

    async with (
        raw_upstream(plays) as upstream,
        sidecar_with(settings_for(upstream.url, upstream={"max_response": 16 * MIB})) as sidecar,
    ):
        refused = await sidecar.ask()
        assert (refused.status, refused.is_problem) == (502, True)
        assert "a template this large is refused: 262144 bytes are admitted" in refused.document["detail"]


async def test_an_output_is_admitted_up_to_its_limit_and_no_further() -> None:
    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data("{{ topic }}", render=PLAIN))

    render = RenderSettings(max_output=1000)
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url, render=render)) as sidecar:
        assert (await sidecar.ask(context={"topic": "x" * 1000})).prompt == "x" * 1000
        assert (await sidecar.ask(context={"topic": "x" * 1001})).status == 422
        assert (await sidecar.ask(context={"topic": "ü" * 501})).status == 422


async def test_rendering_ends_when_its_time_is_over_however_many_iterations_are_allowed() -> None:
    template = "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}"

    async def plays(exchange: Exchange) -> None:
        await exchange.answer(prompt_data(template))

    render = RenderSettings(max_time=0.01, max_iterations=100_000_000)
    async with raw_upstream(plays) as upstream, sidecar_with(settings_for(upstream.url, render=render)) as sidecar:
        refused = await sidecar.ask(context={"x": [1] * 5000})
        assert (refused.status, refused.is_problem) == (422, True)
        assert refused.seconds < NO_LONGER_THAN
