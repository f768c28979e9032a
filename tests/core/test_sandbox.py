"""What a rendering may use, operation by operation; and that what stays within it renders as Jinja itself would."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jinja2
import pytest

from sidecar.core.budget import (
    Budget,
    OutputTooLarge,
    RenderFailed,
    RenderLimits,
    RenderTooSlow,
    UndefinedNames,
    weight,
)
from sidecar.core.guards import FILTER_ESTIMATES, METHODS, OPERATORS, TEST_ESTIMATES
from sidecar.core.meters import METERS
from sidecar.core.prompt import compile_template
from sidecar.core.sandbox import RenderOptions, Undefined, sandbox
from sidecar.core.template_rules import FULL_FILTERS, ITEM_FILTERS, SHAPES, STRICT_FILTERS, Profile

STRICT, FULL = Profile.STRICT, Profile.FULL
LIMITS = RenderLimits()
SMALL = RenderLimits(max_output_bytes=100_000, max_iterations=5_000)
BIG = "x" * 25_000
MANY = list(range(500))


def frozen_clock() -> float:
    return 0.0


def running_clock(step: float) -> Callable[[], float]:
    """Return a clock that moves by a step each time it is read; seconds."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def render(
    source: str,
    context: dict[str, Any] | None = None,
    *,
    profile: Profile = STRICT,
    undefined: Undefined = Undefined.STRICT,
    limits: RenderLimits = LIMITS,
    clock: Callable[[], float] = frozen_clock,
    autoescape: bool = True,
) -> str:
    options = RenderOptions(autoescape=autoescape, undefined=undefined)
    return compile_template(source, options, profile=profile, limits=limits, clock=clock).render({}, context or {})


def plain(source: str, context: dict[str, Any], *, autoescape: bool = True) -> str:
    environment = jinja2.Environment(
        autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(source).render(context)


VALUES: dict[str, Any] = {
    "text": 'it\'s <b> & "q" ünï',
    "words": "a-b c_d  e\nf\r\ng",
    "number": 42.5,
    "whole": 7,
    "yes": True,
    "nothing": None,
    "numbers": [3, 1, 2, 1],
    "names": ["b<", "A", "c", "a"],
    "people": [{"name": "Eve", "age": 3, "tags": ["x"]}, {"name": "Adam", "age": 5, "tags": []}],
    "person": {"name": "Eve", "age": 3},
    "empty": [],
}

SAME_IN_BOTH = {
    "outputs around text": "a {{ text }} b {{ whole }}{{ nothing }}{{ yes }}{{ number }}",
    "lists and mappings": "{{ numbers }}{{ person }}{{ (1, text) }}{{ {'a': text, text: 1} }}{{ [text, [whole]] }}",
    "a constant in markup": "{{ '<b>' }}{{ '<b>'|safe }}x{{ '<b>'|safe ~ '<' }}{{ '<b>'|safe ~ text }}"
    "{{ text ~ '<' ~ 1 }}",
    "concatenation": "{{ text ~ whole ~ nothing ~ numbers }}{{ 'a' ~ 'b' ~ text }}{{ 'a' ~ 1 }}",
    "addition": "{{ text + '<' }}{{ whole + 1 }}{{ numbers + [text] }}{{ 'a' + 'b' }}{{ text|safe + '<' }}",
    "arithmetic": "{{ whole - 1 }}{{ whole / 2 }}{{ whole // 2 }}{{ -whole }}{{ +number }}{{ 1 + 2 - 3 }}",
    "comparisons": "{{ whole > 3 }}{{ 1 < whole <= 7 }}{{ 'b' in text }}{{ 9 not in numbers }}{{ text == text }}",
    "conditions": "{% if whole and not empty %}a{% elif text %}b{% else %}c{% endif %}{{ 'y' if empty else 'n' }}",
    "an inline if without else": "[{{ 'y' if empty }}]",
    "attributes and items": "{{ person.name }}{{ person['age'] }}{{ people[0].tags[0] }}{{ numbers[-1] }}"
    "{{ numbers.0 }}",
    "slices": "{{ 'constant'[2:] }}{{ text[1:5] }}{{ numbers[::2] }}{{ names[:-1] }}",
    "definedness": "{{ nope is defined }}{{ nope is undefined }}{{ nope|default('<') }}{{ nope|d(text) }}"
    "{{ ''|default('e', true) }}{{ person.nope is defined }}{{ person.nope|default(whole) }}",
    "tests": "{% for x in [text, number, whole, yes, nothing, numbers, person] %}{{ x is string }}{{ x is number }}"
    "{{ x is mapping }}{{ x is iterable }}{{ x is sequence }}{{ x is none }}{{ x is boolean }}{{ x is sameas true }}"
    "{{ x is upper }}{{ x is lower }}{{ x is escaped }};{% endfor %}{{ whole is odd }}{{ whole is divisibleby 3 }}"
    "{{ whole is even }}{{ whole is gt 3 }}{{ 3 is in numbers }}{{ whole is not eq 1 }}",
    "a loop": "{% for x in names %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ', ' if not loop.last }}{% endfor %}",
    "all of loop": "{% for x in names %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}"
    "{{ loop.previtem|default('-') }}{{ loop.nextitem|default('-') }}{{ loop.depth }}{% endfor %}",
    "a loop with a filter": "{% for x in numbers if x > 1 %}{{ loop.index }}{{ loop.length }}{{ x }}{% endfor %}",
    "a loop with else": "{% for x in empty %}a{% else %}none{% endfor %}{% for x in numbers %}b{% else %}"
    "none{% endfor %}",
    "a loop over a mapping": "{% for key in person %}{{ key }}{% endfor %}",
    "a loop over pairs": "{% for key, value in person|items %}{{ key }}={{ value }}{{ loop.length }};{% endfor %}",
    "a loop over sorted pairs": "{% for key, value in person|dictsort(reverse=true) %}{{ key }}={{ value }}"
    ";{% endfor %}",
    "a loop over text": "{% for x in text %}{{ x }}.{% endfor %}",
    "a loop over a constant": "{% for x in [1, '<', whole] %}{{ x }}{% endfor %}{% for x in 'ab' %}{{ x }}{% endfor %}",
    "a loop backwards": "{% for x in names|reverse %}{{ loop.length }}{{ x }}{% endfor %}",
    "nested loops": "{% for p in people %}{% for t in p.tags %}{{ loop.index }}{{ t }}{% else %}-{% endfor %}"
    "{% endfor %}",
    "a name that a loop hides": "{{ whole }}{% for whole in numbers %}{{ whole }}{% endfor %}{{ whole }}",
    "white space": "a\n  {% if whole %}\n  b\n  {%- endif %}\n\n{{ text }}\n",
    "markup that is not escaped again": "{{ text|e }}{{ text|escape }}{{ text|forceescape }}{{ text|e|upper }}"
    "{{ text|safe }}",
}


@pytest.mark.parametrize("source", SAME_IN_BOTH.values(), ids=SAME_IN_BOTH)
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("autoescape", [True, False], ids=["autoescape", "plain"])
def test_renders_as_jinja_does(source: str, profile: Profile, *, autoescape: bool) -> None:
    ours = render(source, VALUES, profile=profile, autoescape=autoescape)
    assert ours == plain(source, VALUES, autoescape=autoescape)


FULL_SAME = {
    "set": "{% set a = text %}{{ a }}{% set b, c = numbers[:2] %}{{ b }}{{ c }}",
    "a set block": "{% set a %}<{{ text }}>{% endset %}{{ a }}{% set b | upper %}x{{ text }}{% endset %}{{ b }}",
    "with": "{% with a = text, b = 1 %}{{ a }}{{ b }}{% endwith %}",
    "a macro": "{% macro m(a, b='<') %}[{{ a }}{{ b }}{{ varargs }}{{ kwargs }}]{% endmacro %}"
    "{{ m(text) }}{{ m(1, 2, 3, c=4) }}",
    "a call block": "{% macro m(a) %}[{{ caller(a) }}]{% endmacro %}{% call(x) m(text) %}{{ x }}!{% endcall %}",
    "a filter block": "{% filter upper %}<{{ text }}>{% endfilter %}{% filter replace('a', 'b')|title %}"
    "a{% endfilter %}",
    "a recursive loop": "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
    "a namespace": "{% set n = namespace(a=0) %}{% for x in numbers %}{% set n.a = n.a + x %}{% endfor %}{{ n.a }}",
    "a range": "{% for i in range(3) %}{{ i }}{{ loop.cycle('a', text) }}{{ loop.changed(i // 2) }}"
    "{% endfor %}{{ range(4)|list }}",
    "a dict": "{{ dict(a=text, b=1) }}{{ dict(a=1).items()|list }}{% for k in dict(a=1).keys() %}{{ k }}{% endfor %}",
    "a cycler and a joiner": "{% set c = cycler('a', 'b') %}{% set j = joiner('|') %}{% for x in numbers %}{{ j() }}"
    "{{ c.next() }}{% endfor %}{{ c.current }}{{ c.reset() }}",
    "operators": "{{ whole * 2 }}{{ 2 ** 8 }}{{ 2 ** -1 }}{{ 1.5 * 2 }}{{ whole % 3 }}{{ '<' * 3 }}"
    "{{ 3 * 'a' }}{{ [1] * 2 }}{{ -1 * 'a' }}",
    "printf": "{{ '%s: %05.2f %d' % (text, number, whole) }}{{ '%(a)s' % {'a': text} }}"
    "{{ '%s-%s'|format(text, 1) }}{{ 'a%%' % () }}",
    "text methods": "{{ text.upper() }}{{ words.split() }}{{ words.split('-', 1) }}{{ words.splitlines() }}"
    "{{ '-'.join(names) }}"
    "{{ 'a'.center(5, '*') }}{{ 'a'.zfill(3) }}{{ text.replace('b', '<') }}"
    "{{ 'a\tb'.expandtabs(4) }}{{ 'abc'.startswith('a') }}",
    "mapping and list methods": "{{ person.get('name') }}{{ person.get('nope', 1) }}{{ numbers.count(1) }}"
    "{{ numbers.index(2) }}"
    "{{ person.values()|list }}{{ (1, 2).count(1) }}{{ person.copy() }}",
    "map, select and reject": "{{ names|map('upper')|join }}{{ people|map(attribute='name')|join }}"
    "{{ numbers|select('odd')|list }}"
    "{{ numbers|reject('gt', 1)|list }}{{ people|selectattr('tags')|list|length }}"
    "{{ people|rejectattr('age', 'lt', 4)|list|length }}"
    "{{ [nothing, 1]|map('default', 'x', true)|join }}",
    "grouping": "{% for age, group in people|groupby('age') %}{{ age }}{{ group|length }}{% endfor %}"
    "{{ numbers|batch(3, 0)|list }}{{ numbers|slice(3, 9)|list }}",
    "wide filters": "{{ 'a'|center(9) }}{{ words|indent(3, true) }}{{ words|indent('> ', blank=true) }}"
    "{{ words|wordwrap(3) }}"
    "{{ numbers|join(text) }}{{ text|replace('b', text) }}{{ number|round(-1, 'floor') }}"
    "{{ text|truncate(5, true, '') }}"
    "{{ {'a': text}|xmlattr }}{{ '<b>a</b>'|striptags }}",
    "a macro in a namespace": "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "a macro that is given": "{% macro a(x) %}<{{ x }}>{% endmacro %}{% macro b(f) %}{{ f(1) }}{% endmacro %}"
    "{{ b(a) }}",
}


@pytest.mark.parametrize("source", FULL_SAME.values(), ids=FULL_SAME)
@pytest.mark.parametrize("autoescape", [True, False], ids=["autoescape", "plain"])
def test_the_full_profile_renders_as_jinja_does(source: str, *, autoescape: bool) -> None:
    assert render(source, VALUES, profile=FULL, autoescape=autoescape) == plain(source, VALUES, autoescape=autoescape)


FILTER_USES = {
    **{name: f"text|{name}" for name in STRICT_FILTERS},
    "abs": "whole|abs",
    "round": "number|round(1, 'ceil')",
    "dictsort": "{'b': 1, 'a': 2}|dictsort(by='value')",
    "filesizeformat": "123456|filesizeformat(true)",
    "int": "'42.9'|int(1)",
    "float": "'x'|float(1.5)",
    "items": "person|items|list",
    "join": "names|join(', ')",
    "map": "people|map(attribute='name')|list",
    "max": "people|map(attribute='age')|max",
    "min": "numbers|min",
    "reverse": "numbers|reverse|list",
    "replace": "text|replace('b', '<', 1)",
    "sort": "people|sort(attribute='name', reverse=true)",
    "sum": "people|sum(attribute='age')",
    "truncate": "text|truncate(9, end='…')",
    "indent": "words|indent(2, first=true)",
    "unique": "numbers|unique|list",
}


@pytest.mark.parametrize("expression", FILTER_USES.values(), ids=FILTER_USES)
@pytest.mark.parametrize("autoescape", [True, False], ids=["autoescape", "plain"])
def test_each_admitted_filter_does_as_jinjas(expression: str, *, autoescape: bool) -> None:
    source = "[{{ " + expression + " }}]"
    assert render(source, VALUES, autoescape=autoescape) == plain(source, VALUES, autoescape=autoescape)


@pytest.mark.parametrize("name", sorted(ITEM_FILTERS))
def test_each_filter_that_map_may_name_does_as_jinjas(name: str) -> None:
    values = {"items": [1] if name in {"abs", "round"} else ["a<"]}
    source = "{{ items|map('" + name + "')|list }}"
    assert render(source, values, profile=FULL) == plain(source, values)


STRICT_CAPS: dict[str, tuple[str, dict[str, Any], type[RenderFailed]]] = {
    "loops over loops without a body": (
        "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
        {"x": MANY},
        RenderTooSlow,
    ),
    "a loop whose filter drops all": ("{% for a in x if a < 0 %}{% endfor %}" * 11, {"x": MANY}, RenderTooSlow),
    "a loop over text": ("{% for a in x %}{% endfor %}", {"x": BIG}, RenderTooSlow),
    "a loop that asks for its length": (
        "{% for a in x if a %}{{ loop.length }}{% endfor %}" * 11,
        {"x": MANY},
        RenderTooSlow,
    ),
    "sorting in a loop": ("{% for a in x %}{{ x|sort|first }}{% endfor %}", {"x": MANY}, RenderTooSlow),
    "sorting a large text": ("{{ x|sort|first }}", {"x": BIG}, RenderTooSlow),
    "an output in a loop": ("{% for a in x %}{{ y }}{% endfor %}", {"x": MANY, "y": BIG}, OutputTooLarge),
    "text in a loop": ("{% for a in x %}" + "t" * 1000 + "{% endfor %}", {"x": MANY}, OutputTooLarge),
    "escapes": ("{{ x if true }}", {"x": "'" * 25_000}, OutputTooLarge),
    "concatenation": ("{{ " + " ~ ".join(["x"] * 8) + " }}", {"x": BIG}, OutputTooLarge),
    "addition": ("{{ x + x + x + x + x }}", {"x": BIG}, OutputTooLarge),
    "addition of lists": ("{{ (" + " + ".join(["x"] * 30) + ")|length }}", {"x": MANY}, OutputTooLarge),
    "a list of texts": ("{{ [" + ", ".join(["x"] * 8) + "] }}", {"x": BIG}, OutputTooLarge),
    "a short text replaced everywhere": ("{{ x|replace('x', 'yyyyyyyy') }}", {"x": BIG}, OutputTooLarge),
    "indented lines": ("{{ x|indent(32) }}", {"x": "\n" * 25_000}, OutputTooLarge),
    "work whose result is dropped": ("{% if x|upper %}{% endif %}" * 70, {"x": BIG}, OutputTooLarge),
}


@pytest.mark.parametrize(("source", "context", "failure"), STRICT_CAPS.values(), ids=STRICT_CAPS)
def test_strict_stops_at_its_caps(source: str, context: dict[str, Any], failure: type[RenderFailed]) -> None:
    with pytest.raises(failure):
        render(source, context, limits=SMALL)


FULL_CAPS = {
    "a constant multiplied": ("{{ 'a' * 200000000 }}", OutputTooLarge),
    "a value multiplied": ("{% set n = 200000000 %}{{ 'a' * n }}", OutputTooLarge),
    "a value multiplied from the left": ("{% set n = 200000000 %}{{ n * 'a' }}", OutputTooLarge),
    "a list multiplied": ("{{ ([0] * 100000000)|length }}", OutputTooLarge),
    "a tower of powers": ("{{ 9 ** (9 ** 9) }}", OutputTooLarge),
    "a product of products": (
        "{% set n = namespace(a=2) %}{% for i in range(40) %}{% set n.a = n.a * n.a %}{% endfor %}",
        OutputTooLarge,
    ),
    "text doubled again and again": (
        "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "{{ x|length }}",
        OutputTooLarge,
    ),
    "text added to itself": ("{% set x = 'ab' %}" + "{% set x = x + x %}" * 60, OutputTooLarge),
    "a list doubled by reference": ("{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}", OutputTooLarge),
    "a tuple doubled by reference": ("{% set x = (1,) %}" + "{% set x = (x, x) %}" * 60, OutputTooLarge),
    "a mapping doubled by reference": ("{% set x = 1 %}" + "{% set x = {'a': x, 'b': x} %}" * 60, OutputTooLarge),
    "a mapping doubled by a call": ("{% set x = 1 %}" + "{% set x = dict(a=x, b=x) %}" * 60, OutputTooLarge),
    "a wide centre": ("{{ 'x'|center(1000000000) }}", OutputTooLarge),
    "a wide centre by name": ("{{ 'x'|center(width=1000000000) }}", OutputTooLarge),
    "a wide method": ("{{ 'x'.ljust(1000000000) }}", OutputTooLarge),
    "a wide tab": ("{{ '\t'.expandtabs(1000000000) }}", OutputTooLarge),
    "a wide indentation": ("{{ 'x\ny'|indent(1000000000) }}", OutputTooLarge),
    "a wide format": ("{{ '%1000000000d' % 1 }}", OutputTooLarge),
    "a precise format": ("{{ '%.1000000000f'|format(1.5) }}", OutputTooLarge),
    "a format whose width is an argument": ("{{ '%*d' % (1000000000, 1) }}", OutputTooLarge),
    "a named format whose width is an argument": ("{{ '%(a)-*d' % {'a': 1} }}", OutputTooLarge),
    "a format that repeats": (
        "{% set x = 'x' * 30000 %}{{ '%(a)s%(a)s%(a)s%(a)s%(a)s' % {'a': x} }}",
        OutputTooLarge,
    ),
    "a long separator": ("{% set x = 'x' * 9000 %}{{ range(100)|join(x) }}", OutputTooLarge),
    "a long separator by name": ("{% set x = 'x' * 9000 %}{{ range(100)|join(d=x) }}", OutputTooLarge),
    "a long glue": ("{% set x = 'x' * 9000 %}{{ x.join(['a'] * 100) }}", OutputTooLarge),
    "a long replacement": ("{% set x = 'x' * 9000 %}{{ x|replace('x', x) }}", OutputTooLarge),
    "a long replacement by a method": ("{% set x = 'x' * 9000 %}{{ x.replace('x', x) }}", OutputTooLarge),
    "an empty text replaced": ("{% set x = 'x' * 9000 %}{{ x|replace('', x) }}", OutputTooLarge),
    "a long fill": ("{{ [1]|batch(1000000000, 0)|list }}", OutputTooLarge),
    "many slices": ("{{ [1]|slice(1000000000)|list }}", OutputTooLarge),
    "many slices by name": ("{{ [1]|slice(slices=1000000000)|list }}", OutputTooLarge),
    "many decimal places": ("{{ 1|round(1000000000, 'floor') }}", OutputTooLarge),
    "a long text wrapped": ("{{ ('x' * 20000)|wordwrap(1) }}", OutputTooLarge),
    "a long text split": ("{{ ('x ' * 30000).split()|length }}", OutputTooLarge),
    "a long text split by a separator": ("{{ ('x,' * 30000).split(sep=',')|length }}", OutputTooLarge),
    "a long text split by lines": ("{{ ('x\n' * 30000).splitlines()|length }}", OutputTooLarge),
    "a range too far": ("{% for i in range(1000000000) %}{% endfor %}", RenderFailed),
    "ranges in ranges": ("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", RenderTooSlow),
    "a macro that calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", RenderFailed),
    "a loop that calls itself": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", RenderFailed),
    "a recursive loop over much": (
        "{% set r = range(2000)|list %}{% for x in [r, r, r] recursive %}{{ loop(x) if x is sequence }}{% endfor %}",
        RenderTooSlow,
    ),
    "a macro that makes much text": (
        "{% macro m() %}{% for i in range(900) %}" + "t" * 999 + "{% endfor %}{% endmacro %}{{ m() }}",
        OutputTooLarge,
    ),
    "a block that makes much text": (
        "{% set x %}{% for i in range(900) %}" + "t" * 999 + "{% endfor %}{% endset %}",
        OutputTooLarge,
    ),
    "a block that prints much": (
        "{% set y = 'x' * 90000 %}{% set x %}{% for i in range(900) %}{{ y }}{% endfor %}{% endset %}",
        OutputTooLarge,
    ),
    "a filter block that makes much text": (
        "{% filter replace('t', 'tttttttt') %}{% for i in range(999) %}" + "t" * 999 + "{% endfor %}{% endfilter %}",
        OutputTooLarge,
    ),
}


@pytest.mark.parametrize(("source", "failure"), FULL_CAPS.values(), ids=FULL_CAPS)
def test_full_stops_at_its_caps(source: str, failure: type[RenderFailed]) -> None:
    with pytest.raises(failure):
        render(source, profile=FULL, limits=SMALL)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in x %}{% endfor %}",
        "{% if x|upper %}{% endif %}" * 20,
        "{% if x %}{% endif %}" * 20,
        "{{ x|length }}" * 20,
    ],
    ids=["a loop", "filters", "conditions", "outputs"],
)
def test_a_rendering_stops_when_its_time_is_over(source: str) -> None:
    with pytest.raises(RenderTooSlow, match=r"longer than 0\.1 s"):
        render(source, {"x": "a" * 20}, clock=running_clock(0.01))


@pytest.mark.parametrize(
    "source",
    ["{% macro m() %}{% endmacro %}" + "{% set x = m() %}" * 20, "{% set x = 'a' %}" + "{% set x = x.lower() %}" * 20],
    ids=["calls", "methods"],
)
def test_a_full_rendering_stops_when_its_time_is_over(source: str) -> None:
    with pytest.raises(RenderTooSlow, match=r"longer than 0\.1 s"):
        render(source, profile=FULL, clock=running_clock(0.01))


def test_iterations_are_counted_over_all_loops_of_a_rendering_and_anew_for_the_next() -> None:
    source = "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}"
    template = compile_template(
        source, RenderOptions(), profile=STRICT, limits=RenderLimits(max_iterations=20), clock=frozen_clock
    )
    for _ in range(2):
        assert template.render({}, {"x": [1, 2, 3, 4]}) == ""
    with pytest.raises(RenderTooSlow, match="more than 20 iterations"):
        template.render({}, {"x": [1, 2, 3, 4, 5]})


WITHOUT_TEXT = {
    "a method of text": ("{{ x.upper }}", STRICT),
    "a method by item": ("{{ x['upper'] }}", STRICT),
    "a method that would format": ("{{ x.format }}", STRICT),
    "a method in a filter": ("{{ x.upper|string }}", STRICT),
    "a method in a list": ("{{ [x.upper] }}", STRICT),
    "a method that is asked for": ("{% if x.upper %}{% endif %}", STRICT),
    "an iterator": ("{{ {'a': 1}|items }}", STRICT),
    "a constant iterator": ("{{ [1]|reverse }}", STRICT),
    "a constant iterator in a concatenation": ("{{ ('a' ~ ([1]|reverse))|title }}", STRICT),
    "an iterator in a concatenation": ("{{ x ~ ([1, x]|reverse) }}", STRICT),
    "an iterator joined to": ("{{ ['a', 'b']|join(x|list|reverse) }}", FULL),
    "an iterator in a test": ("{{ ([x]|reverse) is upper }}", STRICT),
    "a global": ("{{ cycler }}", FULL),
    "an object": ("{{ joiner() }}", FULL),
    "an object in a list": ("{{ [joiner()]|join }}", FULL),
    "an object in a format": ("{{ '%s' % joiner() }}", FULL),
    "an object in a filter's argument": ("{{ x|replace('a', joiner()) }}", FULL),
    "a macro": ("{% macro m() %}{% endmacro %}{{ m }}", FULL),
    "a loop": ("{% for a in x %}{{ loop }}{% endfor %}", STRICT),
    "a loop as a list": ("{% for a in x %}{{ loop|list }}{% endfor %}", STRICT),
    "a complex number": ("{{ (-1) ** 0.5 }}", FULL),
}


@pytest.mark.parametrize(("source", "profile"), WITHOUT_TEXT.values(), ids=WITHOUT_TEXT)
def test_what_has_no_text_of_its_own_is_never_printed(source: str, profile: Profile) -> None:
    with pytest.raises(RenderFailed) as caught:
        render(source, {"x": "a"}, profile=profile)
    assert type(caught.value) is RenderFailed
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ x() }}",
        "{{ x.append(1) }}",
        "{{ x.sort() }}",
        "{{ 'a'.format(1) }}",
        "{{ 'a'.format_map({}) }}",
        "{{ 'a'.encode() }}",
        "{{ (1).bit_length() }}",
        "{{ x.nope() }}",
        "{{ x['copy']() }}",
        "{% set n = namespace(f=1) %}{{ n.f() }}",
    ],
)
def test_only_known_methods_and_macros_are_called(source: str) -> None:
    with pytest.raises(RenderFailed):
        render(source, {"x": [1]}, profile=FULL)


UNDEFINED_USES = {
    "printed": "{{ nope }}{{ 1 if true }}",
    "filtered": "{{ nope|upper }}",
    "joined": "{{ nope|join }}",
    "concatenated": "{{ 'a' ~ nope }}",
    "added": "{{ nope + 1 }}",
    "compared": "{{ nope == 1 }}",
    "looked into": "{{ nope.attribute }}",
    "asked for": "{% if nope %}{% endif %}",
    "looped over": "{% for a in nope %}{% endfor %}",
    "looped over with loop": "{% for a in nope %}{{ loop.index }}{% endfor %}",
    "sorted": "{{ nope|sort }}",
}


@pytest.mark.parametrize("source", UNDEFINED_USES.values(), ids=UNDEFINED_USES)
@pytest.mark.parametrize("profile", Profile)
def test_a_strict_undefined_fails_by_name(source: str, profile: Profile) -> None:
    with pytest.raises(UndefinedNames) as caught:
        render(source, profile=profile)
    assert caught.value.missing == ("nope",)


@pytest.mark.parametrize("source", ["{{ nope() }}", "{{ nope.upper() }}", "{{ 'a' * nope }}", "{{ nope % 1 }}"])
def test_a_strict_undefined_fails_by_name_in_full(source: str) -> None:
    with pytest.raises(UndefinedNames) as caught:
        render(source, profile=FULL)
    assert caught.value.missing == ("nope",)


@pytest.mark.parametrize(
    "source",
    [
        "[{{ nope }}]",
        "[{{ nope|upper }}{{ nope|join }}{{ 'a' ~ nope }}{{ nope|sort }}]",
        "{% for a in nope %}x{% endfor %}",
    ],
)
def test_an_empty_undefined_is_as_jinjas(source: str) -> None:
    expected = jinja2.Environment(autoescape=True).from_string(source).render()
    assert render(source, undefined=Undefined.EMPTY) == expected


def test_an_operation_on_an_empty_undefined_fails_by_name() -> None:
    with pytest.raises(UndefinedNames) as caught:
        render("{{ nope.attribute }}", undefined=Undefined.EMPTY)
    assert caught.value.missing == ("nope",)


def test_a_private_attribute_that_is_computed_is_undefined() -> None:
    with pytest.raises(UndefinedNames):
        render("{{ x[key] }}", {"x": "a", "key": "__class__"})
    assert render("[{{ x[key] }}]", {"x": "a", "key": "__class__"}, undefined=Undefined.EMPTY) == "[]"


def test_a_test_that_would_format_text_takes_numbers_only() -> None:
    for test in ("odd", "even", "divisibleby 2"):
        with pytest.raises(RenderFailed, match="TypeError"):
            render("{{ x is " + test + " }}", {"x": "%1000000000d"})


def test_a_slice_of_what_has_none_fails_without_a_warning() -> None:
    with pytest.raises(RenderFailed, match="TypeError"):
        render("{{ 1[1:] }}")


def test_integers_that_python_hashes_alike_are_not_made_unique() -> None:
    with pytest.raises(OutputTooLarge):
        render("{{ x|unique|list }}", {"x": [0, (2**61 - 1) * 2**30]})


def test_one_environment_serves_all_templates_of_its_options() -> None:
    options = RenderOptions(autoescape=False)
    assert sandbox(options, STRICT, LIMITS) is sandbox(RenderOptions(autoescape=False), STRICT, RenderLimits())
    assert sandbox(options, STRICT, LIMITS) is not sandbox(options, FULL, LIMITS)


@pytest.mark.parametrize("profile", Profile)
def test_an_environment_holds_what_its_profile_admits(profile: Profile) -> None:
    environment = sandbox(RenderOptions(), profile, LIMITS)
    assert set(environment.globals) == SHAPES[profile].globals
    assert set(environment.filters) == {*SHAPES[profile].filters, *METERS, *OPERATORS, "method"}
    assert not (set(METERS) | set(OPERATORS) | {"method"}) & set(FULL_FILTERS)


def test_each_estimate_belongs_to_something_that_is_admitted() -> None:
    assert set(FILTER_ESTIMATES) <= set(FULL_FILTERS)
    assert set(TEST_ESTIMATES) == {"divisibleby", "even", "odd"}
    assert all(callable(getattr(kind, name)) for kind, names in METHODS.items() for name in names)


def test_a_weight_is_the_text_and_a_constant_for_each_item() -> None:
    assert weight("abc", 100) == 3
    assert weight(["abc", {"d": None}, 1.5, True], 1000) == 3 + 4 * 16 + 16 + 1
    assert weight(2**800, 1000) == 100


def test_a_weight_past_its_room_stops_the_walk() -> None:
    shared: list[Any] = []
    for _ in range(1000):
        shared = [shared, shared]
    with pytest.raises(OutputTooLarge):
        weight(shared, 10_000)


def test_a_budget_is_spent_over_all_values() -> None:
    budget = Budget(RenderLimits(max_output_bytes=100), frozen_clock)
    for _ in range(16):
        budget.weigh("x" * 100)
    with pytest.raises(OutputTooLarge):
        budget.weigh("x")


def test_infinite_estimates_are_past_any_limit() -> None:
    assert OPERATORS["**"][1](2, 10**9) == math.inf
    assert OPERATORS["*"][1](2**60_000, 2**60_000) == math.inf
    assert OPERATORS["**"][1](2.0, 10**9) == 0
    assert OPERATORS["%"][1](7, 2) == 0
