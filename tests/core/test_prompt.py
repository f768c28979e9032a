"""Template + settings + context → prompt: what is compiled, prepared, rendered, and what failures say."""

import dataclasses
import hashlib
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from sidecar.core.prompt import (
    CompiledTemplate,
    OutputTooLarge,
    Profile,
    RenderFailed,
    RenderLimits,
    RenderOptions,
    RenderTooSlow,
    TemplateRejected,
    Undefined,
    UndefinedNames,
    compile_template,
)

STRICT, EMPTY = RenderOptions(), RenderOptions(undefined=Undefined.EMPTY)
LIMITS = RenderLimits()
UNDEFINED = {Undefined.STRICT: jinja2.StrictUndefined, Undefined.EMPTY: jinja2.Undefined}


def frozen_clock() -> float:
    return 0.0


def broken_clock() -> float:
    raise AssertionError("the clock is not needed here")


def compiled(
    source: str,
    options: RenderOptions = STRICT,
    *,
    profile: Profile = Profile.STRICT,
    limits: RenderLimits = LIMITS,
    clock: Callable[[], float] = frozen_clock,
) -> CompiledTemplate:
    return compile_template(source, options, profile=profile, limits=limits, clock=clock)


def render(
    source: str,
    context: dict[str, Any] | None = None,
    own: dict[str, str] | None = None,
    options: RenderOptions = STRICT,
    **kwargs: Any,
) -> str:
    template = compiled(source, options, **kwargs)
    return template.render(template.prepare(own or {}), context or {})


def plain(source: str, values: dict[str, Any], options: RenderOptions = STRICT) -> str:
    environment = jinja2.Environment(
        autoescape=options.autoescape,
        trim_blocks=options.trim_blocks,
        lstrip_blocks=options.lstrip_blocks,
        undefined=UNDEFINED[options.undefined],
    )
    return environment.from_string(source).render(values)


# --- what a compiled template is ---


def test_a_compiled_template_knows_its_size_and_names() -> None:
    source = "ü {{ a }}{% for b in c %}{{ b }}{{ d.e }}{{ loop.index }}{% endfor %}{{ range }}"
    template = compiled(source)
    assert template.size == len(source) + 1
    assert template.names == {"a", "c", "d", "range"}
    assert template.options == STRICT


def test_the_full_profiles_globals_are_no_names() -> None:
    assert compiled("{% for a in range(b) %}{% endfor %}", profile=Profile.FULL).names == {"b"}
    assert compiled("{{ range }}{{ b }}", profile=Profile.FULL).names == {"b"}


def test_the_digest_identifies_source_options_and_profile() -> None:
    variants = [
        compiled("{{ a }}"),
        compiled("{{ b }}"),
        compiled("{{ a }}", EMPTY),
        compiled("{{ a }}", RenderOptions(autoescape=False)),
        compiled("{{ a }}", RenderOptions(trim_blocks=False)),
        compiled("{{ a }}", RenderOptions(lstrip_blocks=False)),
        compiled("{{ a }}", profile=Profile.FULL),
    ]
    assert len({template.digest for template in variants}) == len(variants)
    assert compiled("{{ a }}").digest == variants[0].digest
    assert len(variants[0].digest) == hashlib.sha256().digest_size * 2


def test_a_compiled_template_is_immutable_and_can_be_referred_to_weakly() -> None:
    template = compiled("{{ a }}")
    with pytest.raises(dataclasses.FrozenInstanceError):
        template.size = 1  # type: ignore[misc]
    reference = weakref.ref(template)
    assert reference() is template


# --- settings and context ---


def test_settings_that_are_only_printed_are_escaped_once_at_arrival() -> None:
    static = compiled("{{ a }}{{ b|upper }}{{ c }}{% if c %}{% endif %}{{ a }}").prepare(
        {"a": "<a>", "b": "<b>", "c": "<c>", "unused": "<d>"}
    )
    assert static == {"a": "&lt;a&gt;", "b": "<b>", "c": "<c>"}
    assert [type(value) for value in static.values()] == [Markup, str, str]


@pytest.mark.parametrize(
    "use",
    [
        "{{ a|length }}",
        "{{ a ~ '' }}",
        "{{ a + '' }}",
        "{{ a == '<' }}",
        "{{ '<' in a }}",
        "{{ a[0] }}",
        "{% for x in a %}{{ x }}{% endfor %}",
        "{% for a in 'bc' %}{{ a }}{% endfor %}",
        "{{ a if a }}",
        "{{ [a] }}",
    ],
)
def test_a_setting_that_is_more_than_printed_stays_as_it_is(use: str) -> None:
    source = "{{ a }}" + use
    assert compiled(source).prepare({"a": "<"}) == {"a": "<"}
    assert render(source, own={"a": "<'>"}) == plain(source, {"a": "<'>"})


def test_without_autoescape_nothing_is_escaped() -> None:
    options = RenderOptions(autoescape=False)
    assert compiled("{{ a }}", options).prepare({"a": "<"}) == {"a": "<"}
    assert render("{{ a }}{{ b }}", {"b": "&"}, {"a": "<"}, options) == "<&"


def test_settings_that_were_not_prepared_are_escaped_all_the_same() -> None:
    assert compiled("{{ a }}").render({"a": "<"}, {}) == "&lt;"
    assert compiled("{% if a %}{{ a }}{% endif %}").render({"a": "<"}, {}) == "&lt;"


@pytest.mark.parametrize(
    "source", ["{{ a }}{{ b }}", "{% if true %}{{ a }}{{ b }}{% endif %}"], ids=["straight", "metered"]
)
def test_the_context_wins_and_is_escaped_when_rendered(source: str) -> None:
    assert render(source, {"a": "<context>"}, {"a": "<setting>", "b": "<b>"}) == "&lt;context&gt;&lt;b&gt;"


@pytest.mark.parametrize("content", ["{{ 7*7 }}", "{% raw %}", "{# a #}", "{%", "}}", "{{ self }}", "{{ config }}"])
@pytest.mark.parametrize("source", ["{{ a }}", "{% if a %}{{ a }}{% endif %}"], ids=["straight", "metered"])
def test_content_that_looks_like_a_template_is_text(source: str, content: str) -> None:
    options = RenderOptions(autoescape=False)
    assert render(source, {"a": content}, options=options) == content
    assert render(source, own={"a": content}, options=options) == content


RESERVED_KEYS = [
    *(
        "self",
        "loop",
        "range",
        "None",
        "none",
        "true",
        "True",
        "context",
        "environment",
        "missing",
        "undefined",
        "resolve",
    ),
    *(
        "concat",
        "root",
        "name",
        "blocks",
        "caller",
        "varargs",
        "kwargs",
        "__class__",
        "_loop_vars",
        "escape",
        "Markup",
        "budget",
    ),
    *("", "with space", "1", "t_1", "l_0_a", "ünï", "text", "loop length"),
]


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("source", ["{{ a }}", "{% for b in [a] %}{{ b|upper ~ loop.index }}{% endfor %}"])
def test_no_key_of_the_context_breaks_a_rendering(source: str, profile: Profile) -> None:
    context = dict.fromkeys(RESERVED_KEYS, "shadow")
    assert render(source, {**context, "a": "x"}, context, profile=profile) == plain(source, {"a": "x"})


def test_no_key_of_the_context_hides_a_global() -> None:
    source = "{% for i in range(2) %}{{ i }}{% endfor %}"
    assert render(source, {"range": "shadow"}, {"range": "shadow"}, profile=Profile.FULL) == "01"


def test_a_name_that_is_a_global_elsewhere_is_a_value_in_the_strict_profile() -> None:
    assert render("{{ range }}{{ dict }}{{ loop }}", {"range": "a", "dict": "b", "loop": "c"}) == "abc"


def test_renderings_at_the_same_time_do_not_mix() -> None:
    template = compiled("{% for x in xs %}{{ x }}{{ a }}{% endfor %}{{ b }}")
    static = template.prepare({"a": "<"})

    def one(number: int) -> bool:
        prompt = template.render(static, {"xs": [number] * 50, "b": number})
        return prompt == f"{number}&lt;" * 50 + str(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))


def test_text_and_names_alone_need_no_clock() -> None:
    assert render("a {{ b }}{{ 1 }}", {"b": "c"}, clock=broken_clock) == "a c1"


# --- parity with Jinja ---

ALL_OPTIONS = [
    RenderOptions(autoescape, trim, lstrip, undefined)
    for autoescape in (True, False)
    for trim in (True, False)
    for lstrip in (True, False)
    for undefined in Undefined
]
OPTION_IDS = [
    "-".join([*(word for word, on in dataclasses.asdict(options).items() if on is True), options.undefined])
    for options in ALL_OPTIONS
]
NAMES = ["a", "b", "c_1", "ünï"]
TEXT = st.text(alphabet=st.sampled_from(list("ab <>&\"'{}%#\n\r\t\\é😀\x00\x85\u2028-+")), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=5,
)
SLOT = st.sampled_from(
    ["{{ %s }}", "{{%s}}", "{{- %s }}", "{{ %s -}}", "\n{{ %s }}\n", "  {{ %s }}", "{{ '<' }}{{ %s }}"]
)
STRAIGHT_PART = TEXT.filter(lambda text: "{" not in text) | st.builds(str.__mod__, SLOT, st.sampled_from(NAMES))
METERED_PART = st.builds(
    str.replace,
    st.sampled_from(
        [
            "{% if $ %}x{{ $ }}{% else %}\n y{% endif %}\n",
            "  {% if $ is string %}\n{{ $|upper }}{% endif %}",
            "{{ $|default('<d>', true) }}",
            "{{ [$, '<'] }}{{ $ ~ '<' }}",
            "{% for x in [$, 1] %}{{ loop.index }}{{ x }}{% else %}none{% endfor %}",
            "{# $ #}{{ $ }}",
            "{% raw %}{{ $ }}{% endraw %}",
            "{{ $|tojson }}",
            "{{ $|string|trim|replace('a', '<b>') }}",
            "{% if $ == 'ab' or $ is none %}z{% endif %}",
        ]
    ),
    st.just("$"),
    st.sampled_from(NAMES),
)
VALUES = st.fixed_dictionaries(dict.fromkeys(NAMES, JSON))


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=OPTION_IDS)
@pytest.mark.parametrize(
    "source",
    [
        "{{ a }}\n<b>  {{ b }}\n\n{# c #}\n  {# d #}  \n{{- a -}} \n{{ '<' }}{{ 1.0 }}\n",
        "  {% if a %}\n <{{ a }}>{{ b }}\n  {% endif %}\n\n",
    ],
    ids=["straight", "metered"],
)
def test_each_combination_of_options_renders_as_jinja_does(source: str, options: RenderOptions) -> None:
    own, context = {"a": "it's <a>\n"}, {"b": '"&" {{ a }}'}
    assert render(source, context, own, options) == plain(source, {**own, **context}, options)


@settings(max_examples=80, deadline=None)
@given(
    options=st.sampled_from(ALL_OPTIONS),
    parts=st.lists(STRAIGHT_PART, max_size=6),
    values=VALUES,
    own=st.dictionaries(st.sampled_from(NAMES), TEXT),
)
def test_straight_templates_render_as_jinja_does(
    options: RenderOptions, parts: list[str], values: dict[str, Any], own: dict[str, str]
) -> None:
    source = "".join(parts)
    context = {name: value for name, value in values.items() if name not in own}
    assert render(source, context, own, options, clock=broken_clock) == plain(source, {**own, **context}, options)


@settings(max_examples=80, deadline=None)
@given(
    options=st.sampled_from(ALL_OPTIONS),
    parts=st.lists(STRAIGHT_PART | METERED_PART, max_size=5),
    values=VALUES,
    own=st.dictionaries(st.sampled_from(NAMES), TEXT),
    profile=st.sampled_from(Profile),
)
def test_metered_templates_render_as_jinja_does(
    options: RenderOptions, parts: list[str], values: dict[str, Any], own: dict[str, str], profile: Profile
) -> None:
    source = "".join(parts)
    context = {name: value for name, value in values.items() if name not in own}
    assert render(source, context, own, options, profile=profile) == plain(source, {**own, **context}, options)


LEARNFLOW = Path(__file__).parents[2] / os.environ.get("LEARNFLOW_DATA", "../shared/learnflow") / "prompts.yaml"


def test_learnflows_own_templates_render_as_jinja_does() -> None:
    if not LEARNFLOW.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{LEARNFLOW} is needed in CI")
        pytest.skip(f"{LEARNFLOW} is not here; set LEARNFLOW_DATA")
    for name, source in yaml.safe_load(LEARNFLOW.read_text(encoding="utf-8")).items():
        for options in (STRICT, EMPTY, RenderOptions(autoescape=False), RenderOptions(lstrip_blocks=False)):
            template = compiled(source, options, clock=broken_clock)
            own = {key: f'it\'s <{key}> & "{key}"' for key in sorted(template.names)[::2]}
            context = {key: f"{{{{ {key} }}}} \\n<ü'>" for key in sorted(template.names)[1::2]}
            expected = plain(source, {**own, **context}, options)
            assert template.render(template.prepare(own), context) == expected, name


# --- undefined ---


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("{{ z }}{{ a }}{{ given }}{{ b }}", ("a", "b", "z")),
        ("{% if given %}{{ z }}{{ a }}{% endif %}{{ b }}", ("a", "b", "z")),
        ("{{ z|upper }}{{ a|default('x') }}{{ b is defined }}", ("z",)),
        ("{% if b is defined %}{{ b }}{% endif %}{{ z }}", ("b", "z")),
        ("{{ given.nested }}", ("nested",)),
        ("{{ given['nested'] }}", ("nested",)),
        ("{{ given.nested.deeper }}", ("nested",)),
        ("{{ given[5] }}", ()),
        ("{{ given[[1]] }}", ()),
        ("{{ given[given] }}", ()),
        ("{{ []|first }}", ()),
        ("{{ ('x' if not given).attribute }}", ()),
    ],
)
def test_a_strict_rendering_names_all_that_is_missing(source: str, missing: tuple[str, ...]) -> None:
    with pytest.raises(UndefinedNames) as caught:
        render(source, {"given": {"a": 1}}, {"other": "x"})
    assert caught.value.missing == missing
    assert caught.value.reason == "undefined"


@pytest.mark.parametrize("source", ["[{{ a }}{{ b }}]", "[{% if true %}{{ a }}{{ b }}{% endif %}]"])
def test_an_empty_rendering_prints_nothing_for_what_is_missing(source: str) -> None:
    assert render(source, {"b": "<"}, options=EMPTY) == "[&lt;]"
    assert render(source, {"b": "<"}, options=RenderOptions(autoescape=False, undefined=Undefined.EMPTY)) == "[<]"


def test_defined_and_default_work_in_a_strict_rendering() -> None:
    source = "{{ a is defined }}{{ a|default('d') }}{{ a|d('e') }}{% if a is undefined %}u{% endif %}"
    assert render(source) == "Falsedeu"


# --- limits ---


@pytest.mark.parametrize("source", ["{{ a }}", "{% if a %}{{ a }}{% endif %}"], ids=["straight", "metered"])
@pytest.mark.parametrize(("text", "bytes_each"), [("x", 1), ("ü", 2), ("<", 4), ("😀", 4), ("\ud800", 3)])
def test_the_output_is_bounded_in_bytes(source: str, text: str, bytes_each: int) -> None:
    limits = RenderLimits(max_output_bytes=120)
    assert len(render(source, {"a": text * (120 // bytes_each)}, limits=limits)) > 0
    with pytest.raises(OutputTooLarge) as caught:
        render(source, {"a": text * (120 // bytes_each + 1)}, limits=limits)
    assert caught.value.reason == "output_limit"


def test_a_repeated_name_is_bounded_before_it_is_joined() -> None:
    with pytest.raises(OutputTooLarge):
        render("{{ a }}{{ b }}" * 1000, {"a": "x" * 1_000_000, "b": ""})
    assert render("{{ a }}-{{ b }}-{{ a }}", {"a": 1, "b": 2}) == "1-2-1"


def test_text_counts_for_the_output_too() -> None:
    with pytest.raises(OutputTooLarge):
        render("x" * 11, limits=RenderLimits(max_output_bytes=10))
    with pytest.raises(OutputTooLarge):
        render("x" * 11 + "{% if true %}{% endif %}", limits=RenderLimits(max_output_bytes=10))


def test_a_large_template_is_refused_at_once() -> None:
    limits = RenderLimits(max_template_bytes=10)
    assert compiled("ü" * 5, limits=limits).size == 10
    for source in ("x" * 11, "ü" * 6):
        with pytest.raises(TemplateRejected, match="10 bytes are admitted"):
            compiled(source, limits=limits)
    began = time.monotonic()
    with pytest.raises(TemplateRejected, match="262144 bytes are admitted"):
        compiled("{{ a }}" * 800_000)
    assert time.monotonic() - began < 0.1


def test_loops_in_loops_over_long_lists_stop_in_time() -> None:
    source = "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(RenderTooSlow) as caught:
        render(source, {"x": list(range(10_000))}, clock=time.monotonic)
    assert caught.value.reason == "time_limit"
    assert time.monotonic() - began < 1


HOSTILE = {
    "a constant multiplied": "{{ 'a'*200000000 }}",
    "a wide centre": "{{ 'x'|center(10**9) }}",
    "ten nested loops": "{% for a in x %}" * 10 + "{% endfor %}" * 10,
    "set doubling": "{% set a = 'ab' %}" + "{% set a = a ~ a %}" * 60,
    "nested parentheses": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "nested lists": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "nested ifs": "{% if a %}" * 500 + "{% endif %}" * 500,
    "a long chain": "{{ a" + ".b" * 5000 + " }}",
    "many elifs": "{% if a %}" + "{% elif a %}" * 5000 + "{% endif %}",
    "many tokens": "{{ a }}" * 20_000,
    "a huge integer": "{{ " + "9" * 5000 + " }}",
    "a huge hexadecimal": "{{ 0x" + "f" * 100_000 + " }}",
    "a lone surrogate": "ok\nok \ud800",
    "an unclosed expression": "{{ a",
    "an unclosed comment": "{# a",
    "an unclosed raw": "{% raw %}a",
    "an unknown tag": "{% nope %}",
    "an assignment to loop": "{% for loop in a %}{% endfor %}",
    "a broken escape": "{{ '\\x' }}",
    "a keyword twice": "{{ a|default(boolean=true, boolean=false) }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_refused_when_they_arrive(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateRejected):
        compiled(source)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("source", "line", "sentence"),
    [
        ("a\n{{ b", 2, "line 2: the syntax is refused: unexpected end of template, expected 'end of print statement'."),
        ("a\n\n{% nope %}", 3, "line 3: the syntax is refused: Encountered unknown tag 'nope'."),
        ("a\nb\ud800", 2, "line 2: a lone surrogate is refused: the template must be text that UTF-8 can hold"),
        ("{{ " + "[" * 500, None, "the template is refused: compiling it ends in RecursionError"),
    ],
)
def test_a_refusal_says_where_and_why(source: str, line: int | None, sentence: str) -> None:
    with pytest.raises(TemplateRejected) as caught:
        compiled(source)
    assert caught.value.line == line
    assert str(caught.value) == sentence


def test_nul_is_a_character_like_any_other() -> None:
    assert render("a\x00{{ b }}", {"b": "\x00"}) == "a\x00\x00"
    assert render("a\x00{% if b %}\x00{% endif %}", {"b": "\x00"}) == "a\x00\x00"


SNIPPETS = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            "-",
            "+",
            "|",
            "(",
            ")",
            "[",
            "]",
            ".",
            ",",
            ":",
            "~",
            "*",
            "**",
            "%",
            "=",
            "==",
        ),
        *(
            " if ",
            " else ",
            " elif ",
            " endif ",
            " for ",
            " in ",
            " endfor ",
            " is ",
            " not ",
            " and ",
            " or ",
            " recursive ",
        ),
        *(
            " set ",
            " endset ",
            " macro ",
            " endmacro ",
            " call ",
            " endcall ",
            " filter ",
            " endfilter ",
            " with ",
            " endwith ",
        ),
        *(
            " block ",
            " endblock ",
            " raw ",
            " endraw ",
            " autoescape ",
            " print ",
            " do ",
            " import ",
            " from ",
            " include ",
        ),
        *(
            " a ",
            " b ",
            " loop ",
            " self ",
            " range ",
            " _c ",
            " upper ",
            " default ",
            " join ",
            " defined ",
            " true ",
            " none ",
        ),
        *("'x'", '"', "'", "\\", "1", "2.5", "9e999", "0x", "\n", " ", "x", "\x00", "é", "\ud800"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(source=st.lists(SNIPPETS, max_size=25).map("".join) | st.text(max_size=30), profile=st.sampled_from(Profile))
def test_garbage_is_refused_or_rendered_and_nothing_else(source: str, profile: Profile) -> None:
    try:
        template = compiled(source, EMPTY, profile=profile)
    except TemplateRejected:
        return
    with suppress(RenderFailed):
        assert isinstance(template.render({}, {"a": ["x"], "b": "y"}), str)


# --- what failures say ---

CANARY = "canary-7f3a"
TELLING = {
    "an undefined item": "{{ d[secret] }}",
    "an undefined attribute of a value": "{{ secret[secret] }}",
    "a wrong type": "{{ secret + 1 }}",
    "a wrong call": "{{ secret|abs }}",
    "a number that is none": "{{ secret - 1 }}",
    "an unknown key": "{{ {'a': 1}[secret].b }}",
    "an attribute filter": "{{ [secret]|map(attribute='nope')|join }}",
    "a loop over a number": "{% for x in 5 + secret %}{% endfor %}",
    "a method": "{{ secret.upper }}",
    "too much": "{{ secret * 9999999 }}",
    "a format": "{{ secret % secret }}",
    "a forbidden call": "{{ secret() }}",
    "a date that is none": "{{ [secret, 1]|sort }}",
}


@pytest.mark.parametrize("source", TELLING.values(), ids=TELLING)
def test_no_failure_tells_a_value(source: str) -> None:
    with pytest.raises(RenderFailed) as caught:
        render(source, {"secret": CANARY, "d": {}}, profile=Profile.FULL)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value.args)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_failure_of_a_straight_template_tells_a_value() -> None:
    deep: Any = CANARY
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(RenderFailed, match="RecursionError in an expression") as caught:
        render("{{ a }}", {"a": deep})
    assert caught.value.reason == "error"


def test_no_refusal_tells_the_templates_text() -> None:
    for source in (
        f"{CANARY} {{{{ '{CANARY}' ",
        f"{{# {CANARY}",
        f"{{{{ '{CANARY}' * 2 }}}}",
        f"{CANARY}\n{{% for %}}",
    ):
        with pytest.raises(TemplateRejected) as caught:
            compiled(source)
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("autoescape", [True, False])
def test_a_context_that_overrides_a_setting_changes_each_of_its_places(autoescape: bool) -> None:
    template = compiled("{{ a }}-{{ b }}-{{ a }}-{{ c }}-{{ c }}", RenderOptions(autoescape=autoescape))
    static = template.prepare({"a": "<a>", "b": "b"})
    assert template.render(static, {"c": "c"}) == ("&lt;a&gt;-b-&lt;a&gt;-c-c" if autoescape else "<a>-b-<a>-c-c")
    assert template.render(static, {"a": "&", "c": 1}) == ("&amp;-b-&amp;-1-1" if autoescape else "&-b-&-1-1")
    assert template.render(static, {"c": "c"}).startswith("&lt;" if autoescape else "<")  # nothing was left behind


def test_a_value_that_is_no_text_becomes_one_once_however_many_places_it_has() -> None:
    class Counted:
        def __init__(self) -> None:
            self.times = 0

        def __str__(self) -> str:
            self.times += 1
            return "x"

    value = Counted()
    assert render("{{ a }}" * 50, {"a": value}, options=RenderOptions(autoescape=False)) == "x" * 50
    assert value.times == 1
