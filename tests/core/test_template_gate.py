"""What a template may consist of: each rule of the gate, by profile."""

import jinja2
import pytest

from sidecar.core.template_gate import TemplateRejected, admit
from sidecar.core.template_rules import (
    ADMITTED,
    CONSTANTS,
    FULL_FILTERS,
    ITEM_FILTERS,
    MAX_CONSTANT,
    MAX_CONSTANTS,
    MAX_DEPTH,
    MAX_NODES,
    SHAPES,
    STRICT_FILTERS,
    TESTS,
    Arg,
    Cost,
    Profile,
)

ENVIRONMENT = jinja2.Environment()
STRICT, FULL = Profile.STRICT, Profile.FULL


def check(source: str, profile: Profile = STRICT) -> None:
    admit(ENVIRONMENT.parse(source), profile)


def refusal(source: str, profile: Profile = STRICT) -> TemplateRejected:
    with pytest.raises(TemplateRejected) as caught:
        check(source, profile)
    return caught.value


ADMITTED_TEMPLATES = {
    "text": "just { text } % # }",
    "a name": "{{ name }}",
    "a private-looking name": "{{ _name }}",
    "a constant": "{{ 'a' }}{{ 1 }}{{ 1.5 }}{{ true }}{{ none }}",
    "raw": "{% raw %}{{ x }}{% endraw %}",
    "a comment": "{# {{ x() }} #}",
    "attributes and items": "{{ a.b.c[0]['d'][e] }}",
    "slices": "{{ a[1:2:3] }}",
    "arithmetic": "{{ a + 1 - 2 / 3 // 4 }}{{ -a }}{{ +a }}",
    "concatenation": "{{ a ~ 'b' ~ c }}",
    "logic": "{{ a and not b or c if d else e }}",
    "comparisons": "{{ a < b <= c == d != e > f >= g }}{{ a in b }}{{ a not in b }}",
    "literals": "{{ [1, a] }}{{ (1, a) }}{{ {'a': b} }}",
    "if": "{% if a %}b{% elif c %}d{% else %}e{% endif %}",
    "for": "{% for a, b in c if a %}{{ loop.index }}{{ a }}{% else %}none{% endfor %}",
    "two loops, nested": "{% for a in b %}{% for c in a %}{{ c }}{% endfor %}{% endfor %}",
    "a filter with arguments": "{{ a|replace('x', new='y', count=2)|truncate(length=20, killwords=true) }}",
    "map by attribute": "{{ a|map(attribute='b.c', default=d)|join(', ') }}",
    "sort by index": "{{ a|sort(attribute=0)|list }}",
    "a test with an argument": "{{ a is divisibleby 3 }}{{ a is not in b }}",
}


@pytest.mark.parametrize("source", ADMITTED_TEMPLATES.values(), ids=ADMITTED_TEMPLATES)
@pytest.mark.parametrize("profile", Profile)
def test_what_both_profiles_admit(source: str, profile: Profile) -> None:
    check(source, profile)


FULL_ONLY = {
    "a call": ("{{ f(1) }}", "a call"),
    "a method": ("{{ x.upper() }}", "a call"),
    "a range": ("{% for i in range(9) %}{% endfor %}", "a call"),
    "multiplication": ("{{ a * b }}", "the operator `*`"),
    "a power": ("{{ a ** b }}", "the operator `**`"),
    "a remainder or printf format": ("{{ a % b }}", "the operator `%`"),
    "set": ("{% set a = 1 %}", "`set`"),
    "a set block": ("{% set a %}b{% endset %}", "`set`"),
    "with": ("{% with a = 1 %}{{ a }}{% endwith %}", "`with`"),
    "a macro": ("{% macro a(b, c=1) %}{{ b }}{% endmacro %}", "`macro`"),
    "a call block": ("{% call a() %}b{% endcall %}", "`call`"),
    "a filter block": ("{% filter upper %}a{% endfilter %}", "a `filter` block"),
    "a recursive loop": ("{% for a in b recursive %}{% endfor %}", "a recursive `for`"),
    "the name self": ("{{ self }}", "name `self`"),
    "the name super": ("{{ super }}", "name `super`"),
    "the name caller": ("{{ caller }}", "name `caller`"),
    "the name varargs": ("{{ varargs }}", "name `varargs`"),
    "the name kwargs": ("{{ kwargs }}", "name `kwargs`"),
    "three loops, nested": ("{% for a in b %}" * 3 + "{% endfor %}" * 3, "`for`"),
    "two enlarging filters in one expression": ("{{ a|escape|tojson }}", "an expression"),
    "two enlarging filters side by side": ("{{ a|tojson ~ b|tojson }}", "an expression"),
    "many filters in one expression": ("{{ a" + "|upper" * 9 + " }}", "an expression"),
    "many terms in one expression": ("{{ a" + " ~ a" * 64 + " }}", "an expression"),
    "a long separator": ("{{ a|join('" + "-" * 17 + "') }}", "argument `d` of filter `join`"),
    "a separator that is a value": ("{{ a|join(b) }}", "argument `d` of filter `join`"),
    "a wide indentation": ("{{ a|indent(33) }}", "argument `width` of filter `indent`"),
    "an indentation that is a value": ("{{ a|indent(b) }}", "argument `width` of filter `indent`"),
    "a replacement that is a value": ("{{ a|replace('b', c) }}", "argument `new` of filter `replace`"),
    "many decimal places": ("{{ a|round(16) }}", "argument `precision` of filter `round`"),
    "a truth value as a number": ("{{ a|round(true) }}", "argument `precision` of filter `round`"),
    "map by a filter and its arguments": ("{{ a|map('truncate', 9, end='')|list }}", "argument `1` of filter `map`"),
    "map by filter": ("{{ a|map('upper')|list }}", "argument `1` of filter `map`"),
}


@pytest.mark.parametrize(("source", "construct"), FULL_ONLY.values(), ids=FULL_ONLY)
def test_what_only_the_full_profile_admits(source: str, construct: str) -> None:
    assert refusal(source).construct == construct
    check(source, FULL)


REFUSED = {
    "include": ("{% include 'a' %}", "`include`"),
    "import": ("{% import 'a' as b %}", "`import`"),
    "from import": ("{% from 'a' import b %}", "`from … import`"),
    "extends": ("{% extends 'a' %}", "`extends`"),
    "block": ("{% block a %}{% endblock %}", "`block`"),
    "autoescape": ("{% autoescape false %}{% endautoescape %}", "`autoescape`"),
    "a private attribute": ("{{ a.__class__ }}", "attribute `__class__`"),
    "a private item": ("{{ a['_b'] }}", "attribute `_b`"),
    "a private path": ("{{ a|map(attribute='b._c')|list }}", "argument `attribute` of filter `map`"),
    "a private path after a comma": ("{{ a|sort(attribute='b,_c') }}", "argument `attribute` of filter `sort`"),
    "a computed path": ("{{ a|map(attribute=b)|list }}", "argument `attribute` of filter `map`"),
    "a flag that is computed": ("{{ a|sort(reverse=b) }}", "argument `reverse` of filter `sort`"),
    "an unknown filter": ("{{ a|nope }}", "filter `nope`"),
    "an unknown test": ("{{ a is nope }}", "test `nope`"),
    "a filter inside an if": ("{% if a|nope %}{% endif %}", "filter `nope`"),
    "an argument too many": ("{{ a|upper(1) }}", "argument `1` of filter `upper`"),
    "an unknown argument": ("{{ a|int(base=16) }}", "argument `base` of filter `int`"),
    "unpacked arguments": ("{{ a|join(*b) }}", "`*` and `**` arguments"),
    "unpacked keywords": ("{{ a|join(**b) }}", "`*` and `**` arguments"),
    "unpacked arguments of a test": ("{{ a is divisibleby(*b) }}", "`*` and `**` arguments"),
    "a long constant": ("{{ '" + "x" * (MAX_CONSTANT + 1) + "' }}", "a constant"),
    "long constants": (("{{ '" + "x" * MAX_CONSTANT + "' }}") * (MAX_CONSTANTS // MAX_CONSTANT + 1), "a constant"),
    "a wide integer": ("{{ 18446744073709551616 }}", "a number"),
    "an infinite float": ("{{ 1e999 }}", "a number"),
    "many parts": ("{{ a }}x" * (MAX_NODES // 2), "a template this large"),
    "deep blocks": ("{% if a %}" * (MAX_DEPTH + 1) + "{% endif %}" * (MAX_DEPTH + 1), "a block"),
    "a chain of attributes": ("{{ a" + ".b" * 3000 + " }}", "an expression"),
}


@pytest.mark.parametrize(("source", "construct"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("profile", Profile)
def test_what_no_profile_admits(source: str, construct: str, profile: Profile) -> None:
    assert refusal(source, profile).construct == construct


FULL_REFUSED = {
    "unpacked arguments of a call": ("{{ f(*a) }}", "`*` and `**` arguments"),
    "unpacked keywords of a call": ("{{ f(**a) }}", "`*` and `**` arguments"),
    "a private argument": ("{{ f(_loop_vars=a) }}", "attribute `_loop_vars`"),
    "a private attribute that is set": ("{% set a._b = 1 %}", "attribute `_b`"),
    "a call block of a method": ("{% call a.b() %}{% endcall %}", "`call`"),
    "map by a filter that makes iterators": ("{{ a|map('reverse')|list }}", "argument `filter` of filter `map`"),
    "map by a filter with an argument that it may not have": (
        "{{ a|map('tojson', 9)|list }}",
        "argument `1` of filter `map`",
    ),
    "map by a filter with a keyword that it may not have": (
        "{{ a|map('int', base=16)|list }}",
        "argument `base` of filter `map`",
    ),
    "map by a filter that is computed": ("{{ a|map(b)|list }}", "argument `filter` of filter `map`"),
    "select by an unknown test": ("{{ a|select('callable')|list }}", "argument `test` of filter `select`"),
    "nine loops, nested": ("{% for a in b %}" * 9 + "{% endfor %}" * 9, "`for`"),
}


@pytest.mark.parametrize(("source", "construct"), FULL_REFUSED.values(), ids=FULL_REFUSED)
def test_what_the_full_profile_refuses_of_its_own(source: str, construct: str) -> None:
    assert refusal(source, FULL).construct == construct


KNOWN_FILTERS = sorted(jinja2.filters.FILTERS)
KNOWN_TESTS = sorted(name for name in jinja2.tests.TESTS if name.isidentifier() and name != "in")
STRICT_OUT = [
    *("attr", "batch", "center", "format", "groupby", "pprint", "random", "reject", "rejectattr", "select"),
    *("selectattr", "slice", "striptags", "urlize", "wordwrap", "xmlattr"),
]
FULL_OUT = ["attr", "pprint", "random", "urlize"]
TESTS_OUT = ["callable", "filter", "test"]


@pytest.mark.parametrize("name", KNOWN_FILTERS)
@pytest.mark.parametrize(("profile", "out"), [(STRICT, STRICT_OUT), (FULL, FULL_OUT)], ids=[*Profile])
def test_each_filter_of_jinja_is_in_or_out(name: str, profile: Profile, out: list[str]) -> None:
    source = "{{ a|" + name + " }}"
    if name in out:
        assert refusal(source, profile).construct == f"filter `{name}`"
    else:
        check(source, profile)


@pytest.mark.parametrize("name", KNOWN_TESTS)
@pytest.mark.parametrize("profile", Profile)
def test_each_test_of_jinja_is_in_or_out(name: str, profile: Profile) -> None:
    source = "{{ a is " + name + " }}"
    if name in TESTS_OUT:
        assert refusal(source, profile).construct == f"test `{name}`"
    else:
        check(source, profile)


def test_the_tables_name_filters_and_tests_that_exist() -> None:
    assert set(FULL_FILTERS) <= set(jinja2.filters.FILTERS)
    assert set(TESTS) <= set(jinja2.tests.TESTS)
    assert set(STRICT_FILTERS) >= ITEM_FILTERS
    assert all(arg in CONSTANTS for arg in Arg if arg is not Arg.ANY)


def test_an_enlarging_filter_is_metered() -> None:
    assert all(rule.cost is not Cost.FREE for rule in FULL_FILTERS.values() if rule.amplifies)


def test_the_profiles_reach_no_global_that_makes_text_or_chance() -> None:
    assert SHAPES[STRICT].globals == frozenset()
    assert "lipsum" not in SHAPES[FULL].globals


def test_a_refusal_is_one_sentence_with_line_construct_and_what_is_allowed() -> None:
    error = refusal("a\nb\n{{ c|d|center(9) }}")
    assert error.line == 3
    assert error.construct == "filter `center`"
    assert str(error).startswith("line 3: filter `center` is refused: admitted are abs, capitalize, ")
    assert str(refusal("{{ a * 2 }}")) == f"line 1: the operator `*` is refused: {ADMITTED[STRICT]}"


def test_a_refusal_without_a_line_names_none() -> None:
    assert str(TemplateRejected("a thing", "it is not admitted")) == "a thing is refused: it is not admitted"


def test_a_refusal_cuts_a_long_name() -> None:
    assert refusal("{{ a|" + "b" * 1000 + " }}").construct == "filter `" + "b" * 60 + "…`"


def test_a_refusal_never_quotes_constants_or_text() -> None:
    error = refusal("SECRET {{ 'SECRET' ~ 'SECRET'|join('SECRET SECRET SECRET') }} SECRET")
    assert "SECRET" not in str(error)
