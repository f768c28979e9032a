"""Compiled templates: one for each source, as long as somebody uses it."""

import gc
import weakref
from dataclasses import replace

import pytest

from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, TemplateRejected, Undefined
from sidecar.upstream.templates import Templates

SOURCES = {
    "nothing but placeholders": "Explain {{ topic }}.",
    "something to evaluate": "{% if topic %}Explain {{ topic | upper }}.{% endif %}",
}
OPTIONS = RenderOptions()


@pytest.fixture
def templates() -> Templates:
    return Templates(profile=Profile.STRICT, limits=RenderLimits(), clock=lambda: 0.0)


def copy(text: str) -> str:
    """Return an equal text that is another object, as each answer brings it."""
    return text.encode().decode()


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_same_source_is_compiled_once_and_shared(templates: Templates, source: str) -> None:
    first = templates.get(source, OPTIONS)
    assert templates.get(copy(source), replace(OPTIONS)) is first
    assert first.render({}, {"topic": "tides"}).upper() == "EXPLAIN TIDES."


def test_another_source_is_another_template(templates: Templates) -> None:
    assert templates.get("{{ a }}", OPTIONS) is not templates.get("{{ a }} ", OPTIONS)


@pytest.mark.parametrize(
    "other",
    [
        RenderOptions(autoescape=False),
        RenderOptions(trim_blocks=False),
        RenderOptions(lstrip_blocks=False),
        RenderOptions(undefined=Undefined.EMPTY),
    ],
    ids=["autoescape", "trim_blocks", "lstrip_blocks", "undefined"],
)
def test_other_options_make_another_template(templates: Templates, other: RenderOptions) -> None:
    usual, unusual = (templates.get("{{ a }}", options) for options in (OPTIONS, other))
    assert usual is not unusual
    assert (usual.digest == unusual.digest, usual.options, unusual.options) == (False, OPTIONS, other)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_template_is_gone_when_nobody_uses_it(templates: Templates, source: str) -> None:
    template: CompiledTemplate | None = templates.get(source, OPTIONS)
    assert template is not None
    seen = weakref.ref(template)
    del template
    gc.collect()
    assert (seen(), len(templates._compiled)) == (None, 0)


def test_a_template_stays_as_long_as_one_of_its_users(templates: Templates) -> None:
    users = [templates.get(copy("{{ a }}"), OPTIONS) for _ in range(10)]
    last = users.pop()
    users.clear()
    assert templates.get("{{ a }}", OPTIONS) is last


def test_what_is_refused_is_refused_each_time_and_not_kept(templates: Templates) -> None:
    for _ in range(2):
        with pytest.raises(TemplateRejected):
            templates.get("{{ a.__class__ }}", OPTIONS)
    assert len(templates._compiled) == 0


def test_a_text_that_utf_8_cannot_hold_is_refused(templates: Templates) -> None:
    with pytest.raises(TemplateRejected, match="surrogate"):
        templates.get("\ud800", OPTIONS)
