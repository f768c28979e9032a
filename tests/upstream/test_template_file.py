"""The template file of today's service: taken whole, or not at all; a mistake is named by key and line."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event as Gate
from unittest.mock import patch

import pytest
import yaml

from sidecar.core.errors import FailureKind, UpstreamFailure
from sidecar.core.events import Event, TemplatesLoaded
from sidecar.core.prompt import CompiledTemplate, Profile, RenderLimits, RenderOptions, Undefined
from sidecar.upstream import template_file
from sidecar.upstream.template_file import SUFFIX, TODAY, TemplateFile, TemplateFileError
from sidecar.upstream.templates import Templates

LEARNFLOW = Path(os.environ.get("LEARNFLOW_DATA", Path(__file__).parents[3] / "shared" / "learnflow"))
CANARY = "canary-7f3a"
GOOD = "explain_system_prompt: Explain {{ topic }}.\nquiz_system_prompt: Ask about {{ topic }}.\n"
ODD = "{{ topic | center(9) }}"
"""Renders at the service; the gate admits no `center`."""


class World:
    """A template file in a folder, and what is told of it."""

    def __init__(self, folder: Path, *, options: RenderOptions = TODAY, max_template: int = 10_000) -> None:
        self.path = folder / "prompts.yaml"
        self.events: list[Event] = []
        limits = RenderLimits(max_template_bytes=max_template)
        templates = Templates(profile=Profile.STRICT, limits=limits, clock=lambda: 0.0)
        self.file = TemplateFile(self.path, templates, options, self.events.append)

    def write(self, content: str | bytes) -> None:
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def opened(self, content: str | bytes) -> "World":
        self.write(content)
        self.file.open()
        return self

    def source(self, node: str) -> str | None:
        template = self.file.find(node)
        return None if template is None else template.source

    def told(self) -> tuple[int, str | None]:
        """Return the last event's fields."""
        event = self.events[-1]
        assert isinstance(event, TemplatesLoaded)
        return event.nodes, event.error

    def error(self) -> str:
        """Return what is wrong with the file as it is now, which was told, too."""
        error = self.file.error
        assert error is not None
        assert error.startswith(str(self.path))
        assert self.told() == (len(self.file.nodes), error)
        return error

    def mistake(self) -> str:
        """Return what the first reading of the file is refused with."""
        with pytest.raises(TemplateFileError) as caught:
            self.file.open()
        assert self.events == []
        return str(caught.value)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rendered(template: CompiledTemplate | None, **context: str) -> str:
    assert template is not None
    return template.render(template.prepare({}), context)


# What it takes


def test_the_template_of_a_node_is_under_its_name_with_the_suffix(world: World) -> None:
    world.opened(GOOD)
    assert world.file.nodes == ["explain", "quiz"]
    assert rendered(world.file.find("explain"), topic="tides") == "Explain tides."
    assert world.told() == (2, None)
    assert (world.file.error, world.file.refused, world.file.path) == (None, {}, world.path)


@pytest.mark.parametrize("node", ["", "Explain", "explain ", "explain_system_prompt", "no-such", "_system_prompt"])
def test_any_other_node_has_none(world: World, node: str) -> None:
    assert world.opened(GOOD).file.find(node) is None


@pytest.mark.parametrize(
    ("content", "sources"),
    [
        pytest.param("a_system_prompt: x", {"a": "x"}, id="one line"),
        pytest.param("{a_system_prompt: x, b_system_prompt: y}", {"a": "x", "b": "y"}, id="flow style"),
        pytest.param("a_system_prompt: |\n  x\n   y\n\n", {"a": "x\n y\n"}, id="a block"),
        pytest.param("a_system_prompt: | # said\n  x\n", {"a": "x\n"}, id="a block with a comment"),
        pytest.param("a_system_prompt: >-\n  x\n  y\n", {"a": "x y"}, id="folded"),
        pytest.param("a_system_prompt: 'it''s'", {"a": "it's"}, id="single quotes"),
        pytest.param('a_system_prompt: "\\u0434\\n"', {"a": "д\n"}, id="double quotes"),
        pytest.param("a_system_prompt: !!str 123", {"a": "123"}, id="said to be text"),
        pytest.param('a_system_prompt: "123"\nb_system_prompt: "null"', {"a": "123", "b": "null"}, id="quoted words"),
        pytest.param('"a b/ответ_system_prompt": x', {"a b/ответ": "x"}, id="any name"),
        pytest.param("a_system_prompt: &x one\nb_system_prompt: *x", {"a": "one", "b": "one"}, id="an alias"),
        pytest.param("---\na_system_prompt: x\n...\n", {"a": "x"}, id="document marks"),
        pytest.param("%YAML 1.1\n---\na_system_prompt: x\n", {"a": "x"}, id="a directive"),
        pytest.param("# only\n\na_system_prompt: x", {"a": "x"}, id="comments"),
        pytest.param(b"\xef\xbb\xbfa_system_prompt: x\r\n", {"a": "x"}, id="byte order mark and CRLF"),
        pytest.param("a_system_prompt: x\nversion: '2'\nexplain: y", {"a": "x"}, id="keys without the suffix"),
        pytest.param("a_system_prompt: x\nold: '{{ broken'", {"a": "x"}, id="a broken text without the suffix"),
        pytest.param("a_system_prompt: x\nb_System_Prompt: y\nsystem_prompt: z", {"a": "x"}, id="nearly the suffix"),
        pytest.param("a_system_prompt_system_prompt: x", {"a_system_prompt": "x"}, id="the suffix twice"),
    ],
)
def test_what_today_s_service_reads_is_read(world: World, content: str | bytes, sources: dict[str, str]) -> None:
    world.opened(content)
    assert {node: world.source(node) for node in world.file.nodes} == sources


def test_it_is_compiled_as_the_service_renders_or_as_the_settings_say(tmp_path: Path) -> None:
    content = "a_system_prompt: |\n  {% if x %}\n  <{{ x }}{{ y }}>\n  {% endif %}\n"
    today = World(tmp_path).opened(content)
    assert rendered(today.file.find("a"), x="&") == "<&amp;>\n"
    plain = RenderOptions(autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=Undefined.EMPTY)
    assert rendered(World(tmp_path, options=plain).opened(content).file.find("a"), x="&") == "<&>\n"


def test_a_template_of_many_nodes_is_compiled_once(world: World) -> None:
    world.opened("a_system_prompt: &x one\nb_system_prompt: *x\nc_system_prompt: one")
    assert world.file.find("a") is world.file.find("b") is world.file.find("c")


# What it does not

BROKEN: list[tuple[str, str | bytes, str]] = [
    ("empty", "", ": is not a mapping"),
    ("blank", " \n\n", ": is not a mapping"),
    ("comments only", "# nothing\n---\n", ": is not a mapping"),
    ("null", "null", ": is not a mapping"),
    ("a text", "Explain", ": is not a mapping"),
    ("a list", "- a_system_prompt: x", ": is not a mapping"),
    ("a list of texts", "[a, b]", ": is not a mapping"),
    ("no template in it", "a: x\nb: y", ": there is no template (a key that ends with _system_prompt) in it"),
    ("an empty mapping", "{}", ": there is no template"),
    ("half a mapping", "a_system_prompt: x\nb_system_prompt: {x", ", line 2: is not YAML: "),
    ("a tab", "a_system_prompt:\n\tx", ", line 2: is not YAML: "),
    ("two documents", "a_system_prompt: x\n---\nb_system_prompt: y", ", line 2: is not YAML: "),
    ("an unknown alias", "a_system_prompt: x\nb_system_prompt: *x", ", line 2: is not YAML: "),
    ("an open quote", 'a_system_prompt: "x\n', ", line 2: is not YAML: "),
    ("a template without quotes", "a_system_prompt: x\nb_system_prompt: {{ topic }}", ", line 2"),
    ("JSON of another kind", '{"a_system_prompt": ["x"]}', ", line 1, key 'a_system_prompt': is not a text"),
    ("deep nesting", "a_system_prompt: " + "[" * 20_000, ": is not YAML"),
    ("not UTF-8", b"a_system_prompt: x\nb_system_prompt: \xff", ", line 2: is not UTF-8"),
    ("UTF-16", "a_system_prompt: x".encode("utf-16"), ", line 1: is not UTF-8"),
    ("binary", b"\x7fELF\n\n\xff\xfe", ", line 3: is not UTF-8"),
    ("a control character", "a_system_prompt: x\nb_system_prompt: x\x00y", ", line 2: is not YAML"),
    ("no such character", 'a_system_prompt: "\\UFFFFFFFF"', ": is not YAML"),
    ("nor such a one", 'a_system_prompt: "\\U00110000"', ": is not YAML"),
    ("no such version", f"%YAML 1.{'1' * 5000}\n---\na_system_prompt: x", ": is not YAML"),
    ("a value: null", "a_system_prompt: x\nb_system_prompt:", ", line 2, key 'b_system_prompt': is not a text"),
    ("a value: a number", "a_system_prompt: 7", ", line 1, key 'a_system_prompt': is not a text"),
    ("a value: a yes", "\na_system_prompt: yes", ", line 2, key 'a_system_prompt': is not a text"),
    ("a value: a date", "a_system_prompt: 2024-01-01", ", line 1, key 'a_system_prompt': is not a text"),
    ("a value: a list", "a_system_prompt:\n- x", ", line 1, key 'a_system_prompt': is not a text"),
    ("a value: a mapping", "a_system_prompt: {x: y}", ", line 1, key 'a_system_prompt': is not a text"),
    ("a value: itself", "&a {a_system_prompt: *a}", ", line 1, key 'a_system_prompt': is not a text"),
    ("a number elsewhere", "a_system_prompt: x\nversion: 2", ", line 2, key 'version': is not a text"),
    ("a key: a number", "a_system_prompt: x\n7: y", ", line 2: a key is not a text"),
    ("a key: a yes", "a_system_prompt: x\nyes: y", ", line 2: a key is not a text"),
    ("a key: null", "a_system_prompt: x\n~: y", ", line 2: a key is not a text"),
    ("a key: a list", "a_system_prompt: x\n? [y]\n: z", ", line 2: a key is not a text"),
    ("a key: a mapping", "a_system_prompt: x\n? {y: z}\n: z", ", line 2: a key is not a text"),
    ("a merge key", "a_system_prompt: x\n<<: {b_system_prompt: y}", ", line 2: a key is not a text"),
    ("a merge key of an alias", "base: &b {c: d}\n<<: *b\na_system_prompt: x", "line 1, key 'base': is not a text"),
    (
        "a duplicate key",
        "a_system_prompt: x\nb_system_prompt: y\n\na_system_prompt: z",
        ", line 4, key 'a_system_prompt': is there twice, see line 1",
    ),
    ("a duplicate in quotes", "a_system_prompt: x\n'a_system_prompt': x", ", line 2, key 'a_system_prompt': is there"),
    ("a duplicate elsewhere", "a_system_prompt: x\nb: y\nb: y", ", line 3, key 'b': is there twice, see line 2"),
    ("an object", "a_system_prompt: !!python/object:os.system x", ", line 1, key 'a_system_prompt': is not a text"),
    (
        "a call",
        "a_system_prompt: !!python/object/apply:os.system ['exit 1']",
        ", line 1, key 'a_system_prompt': is not a text",
    ),
    ("an object for a key", "!!python/name:os.system : x", ", line 1: a key is not a text"),
    ("a tag of somebody's own", "a_system_prompt: !secret x", ", line 1, key 'a_system_prompt': is not a text"),
    ("binary data", "a_system_prompt: !!binary eA==", ", line 1, key 'a_system_prompt': is not a text"),
    (
        "a template that does not compile",
        f"a_system_prompt: x\nb_system_prompt: |\n  {CANARY}\n  {{{{ {CANARY[:6]}",
        ", line 2, key 'b_system_prompt': line ",
    ),
    ("an unknown tag of Jinja's", "a_system_prompt: '{% boom %}'", ", line 1, key 'a_system_prompt': line 1: "),
    ("a lone surrogate", 'a_system_prompt: "\\ud800"', ", line 1, key 'a_system_prompt': line 1: a lone surrogate"),
]
CASES = [pytest.param(content, says, id=name) for name, content, says in BROKEN]


@pytest.mark.parametrize(("content", "says"), CASES)
def test_at_the_start_a_file_that_cannot_be_used_is_refused_by_key_and_line(
    world: World, content: str | bytes, says: str
) -> None:
    world.write(content)
    mistake = world.mistake()
    assert mistake.startswith(str(world.path))
    assert says in mistake
    assert CANARY not in mistake
    assert "\n" not in mistake


@pytest.mark.parametrize(("content", "says"), CASES)
async def test_later_a_file_that_cannot_be_used_leaves_the_old_templates_in_force(
    world: World, content: str | bytes, says: str
) -> None:
    world.opened(GOOD)
    kept = {node: world.file.find(node) for node in ("explain", "quiz", "a", "b")}
    world.write(content)
    await world.file.reload()
    assert {node: world.file.find(node) for node in kept} == kept
    assert says in world.error()
    world.write(GOOD.replace("Ask", "Question"))
    await world.file.reload()
    assert (world.file.error, world.told()) == (None, (2, None))
    assert world.source("quiz") == "Question about {{ topic }}."


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def too_large(path: Path) -> None:
    path.write_bytes(b"#" * 2001)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(missing, ": cannot be read: No such file or directory", id="missing"),
        pytest.param(directory, ": cannot be read: Is a directory", id="a directory"),
        pytest.param(link_to_nothing, ": cannot be read: No such file or directory", id="a link to nothing"),
        pytest.param(link_to_itself, ": cannot be read: Too many levels of symbolic links", id="a link to itself"),
        pytest.param(named_pipe, ": is a named pipe, and no file", id="a named pipe"),
        pytest.param(too_large, ": is larger than 2000 bytes", id="too large"),
    ],
)
async def test_what_cannot_be_read_is_refused_at_the_start_and_later_changes_nothing(
    world: World, make: Callable[[Path], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_file, "LARGEST_FILE", 2000)
    world.opened(GOOD)
    make(world.path)
    await world.file.reload()
    assert world.file.nodes == ["explain", "quiz"]
    assert world.told() == (2, f"{world.path}{says}")
    other = World(world.path.parent)
    assert other.mistake() == f"{world.path}{says}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read_changes_nothing(world: World) -> None:
    world.opened(GOOD)
    world.path.chmod(0)
    await world.file.reload()
    assert world.told() == (2, f"{world.path}: cannot be read: Permission denied")


def test_a_file_of_just_the_size_is_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_file, "LARGEST_FILE", len(GOOD))
    assert world.opened(GOOD).file.nodes == ["explain", "quiz"]


# Swapped whole


async def test_a_changed_file_is_taken_with_all_that_is_new_and_gone(world: World) -> None:
    world.opened(GOOD)
    world.write("explain_system_prompt: Teach {{ topic }}.\nnew_system_prompt: New.\n")
    await world.file.reload()
    assert world.file.nodes == ["explain", "new"]
    assert (world.source("explain"), world.source("quiz"), world.source("new")) == ("Teach {{ topic }}.", None, "New.")
    assert world.told() == (2, None)


async def test_what_did_not_change_is_the_same_object(world: World) -> None:
    world.opened(GOOD)
    kept = world.file.find("quiz")
    world.write(GOOD.replace("Explain", "Teach"))
    await world.file.reload()
    assert world.file.find("quiz") is kept
    assert world.source("explain") == "Teach {{ topic }}."


async def test_of_a_file_with_one_bad_template_nothing_is_taken(world: World) -> None:
    world.opened(GOOD)
    world.write("explain_system_prompt: Teach.\nnew_system_prompt: New.\nquiz_system_prompt: '{{ broken'\n")
    await world.file.reload()
    assert world.file.nodes == ["explain", "quiz"]
    assert world.source("explain") == "Explain {{ topic }}."


async def test_while_it_is_read_the_old_templates_are_in_force_and_then_all_the_new_ones(world: World) -> None:
    world.opened("a_system_prompt: old\nb_system_prompt: old\n")
    world.write("a_system_prompt: new\nb_system_prompt: new\n")
    reached, go_on = asyncio.Event(), Gate()
    loop, get = asyncio.get_running_loop(), world.file._templates.get
    seen = []

    def slow(source: str, options: RenderOptions) -> CompiledTemplate:
        template = get(source, options)
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(10)
        return template

    with patch.object(world.file._templates, "get", slow):
        reading = asyncio.ensure_future(world.file.reload())
        await reached.wait()
        seen.append((world.source("a"), world.source("b")))
        go_on.set()
        await reading
    assert [*seen, (world.source("a"), world.source("b"))] == [("old", "old"), ("new", "new")]


# A template that is not admitted


def not_admitted(world: World, node: str) -> str:
    with pytest.raises(UpstreamFailure) as caught:
        world.file.find(node)
    assert caught.value.kind is FailureKind.NOT_ADMITTED
    return caught.value.detail


WITH_ODD = f"explain_system_prompt: Explain.\nodd_system_prompt: |\n  {CANARY}\n  {ODD}\n"


def test_at_the_start_it_is_left_to_the_service_and_the_others_are_rendered_here(world: World) -> None:
    world.opened(WITH_ODD)
    assert world.file.nodes == ["explain"]
    assert world.source("explain") == "Explain."
    detail = not_admitted(world, "odd")
    assert detail.startswith(f"{world.path}, line 2, key 'odd_system_prompt': line 2: ")
    assert CANARY not in detail
    assert world.file.refused == {"odd": detail}
    assert (world.file.error, world.told()) == (None, (1, None))


def test_a_file_with_nothing_else_can_be_used_too(world: World) -> None:
    world.opened(f"odd_system_prompt: '{ODD}'")
    assert (world.file.nodes, list(world.file.refused)) == ([], ["odd"])
    assert world.told() == (0, None)


def test_a_template_that_is_too_large_is_left_to_the_service(tmp_path: Path) -> None:
    world = World(tmp_path, max_template=100).opened(f"a_system_prompt: {'x' * 101}\nb_system_prompt: {'x' * 100}")
    assert world.file.nodes == ["b"]
    assert "100 bytes are admitted" in not_admitted(world, "a")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD.replace("Ask about {{ topic }}.", f"'{ODD}'"), id="a node that was admitted"),
        pytest.param(f"{GOOD}odd_system_prompt: '{ODD}'", id="a new node"),
    ],
)
async def test_later_it_is_a_mistake_and_the_old_templates_stay(world: World, content: str) -> None:
    world.opened(GOOD)
    world.write(content)
    await world.file.reload()
    assert world.source("quiz") == "Ask about {{ topic }}."
    assert world.file.find("odd") is None
    assert world.file.refused == {}
    line = content.count("\n", 0, content.index("center")) + 1
    assert f", line {line}, key '" in world.error()


async def test_one_that_was_left_to_the_service_before_holds_no_other_change_up(world: World) -> None:
    world.opened(WITH_ODD)
    world.write("# another line\n" + WITH_ODD.replace("Explain.", "Teach."))
    await world.file.reload()
    assert (world.source("explain"), world.file.error) == ("Teach.", None)
    assert ", line 3, key 'odd_system_prompt'" in not_admitted(world, "odd")


async def test_one_that_was_left_to_the_service_and_changes_to_another_such_is_a_mistake(world: World) -> None:
    world.opened(WITH_ODD)
    before = not_admitted(world, "odd")
    world.write(WITH_ODD.replace("center(9)", "center(10)").replace("Explain.", "Teach."))
    await world.file.reload()
    assert (world.source("explain"), not_admitted(world, "odd")) == ("Explain.", before)
    assert ", line 2, key 'odd_system_prompt'" in world.error()


async def test_one_that_was_left_to_the_service_is_rendered_here_as_soon_as_it_is_admitted(world: World) -> None:
    world.opened(WITH_ODD)
    world.write(WITH_ODD.replace(ODD, "{{ topic }}"))
    await world.file.reload()
    assert world.source("odd") == f"{CANARY}\n{{{{ topic }}}}\n"
    assert (world.file.refused, world.told()) == ({}, (2, None))
    world.write("explain_system_prompt: Explain.\n")
    await world.file.reload()
    assert world.file.find("odd") is None


EMPTY = [
    pytest.param("''", id="empty"),
    pytest.param('" \\t\\n"', id="blank"),
    pytest.param("|\n\n", id="a block of nothing"),
]


@pytest.mark.parametrize("template", EMPTY)
def test_an_empty_template_is_left_to_the_service_at_the_start(world: World, template: str) -> None:
    world.opened(f"{GOOD}blank_system_prompt: {template}")
    assert world.file.nodes == ["explain", "quiz"]
    assert not_admitted(world, "blank").endswith(", line 3, key 'blank_system_prompt': is empty")


@pytest.mark.parametrize("template", EMPTY)
async def test_an_empty_template_never_takes_the_place_of_a_good_one(world: World, template: str) -> None:
    world.opened(GOOD)
    world.write(f"explain_system_prompt: Teach.\nquiz_system_prompt: {template}")
    await world.file.reload()
    assert world.source("quiz") == "Ask about {{ topic }}."
    assert world.source("explain") == "Explain {{ topic }}."
    assert ", line 2, key 'quiz_system_prompt': is empty" in world.error()


# The real file


@pytest.fixture
def real() -> Path:
    path = LEARNFLOW / "prompts.yaml"
    if not path.exists():
        reason = f"no prompts.yaml in {LEARNFLOW}; LEARNFLOW_DATA names its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def test_learnflows_own_file_is_taken_with_all_its_nodes(real: Path, world: World) -> None:
    read = yaml.safe_load(real.read_text("utf-8"))
    world.opened(real.read_bytes())
    assert world.file.refused == {}
    assert world.file.nodes == sorted(key.removesuffix(SUFFIX) for key in read)
    assert {node + SUFFIX: world.source(node) for node in world.file.nodes} == read
    assert world.told() == (len(read), None)
    assert len(read) >= 11
