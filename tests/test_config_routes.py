"""Settings of today's service: the table of routes, lists of names, the rollout's share, the template file."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config_file import ConfigError, load
from sidecar.core.policy import Policy, Strategy
from sidecar.core.routes import RoutePattern
from sidecar.settings import STATIC_READS, RolloutSettings, Settings, UpstreamApi, UpstreamSettings, effective

Write = Callable[[str], Path]
PATTERN = "a path from / on, where {name} is one segment and a * at the end anything"
POLICY = "strategy, ttl, max_ttl, stale_while_revalidate, stale_if_error, network_timeout"
PERCENT = "a percentage from 0% to 100%, with its unit (%) or as a whole number"
NAMES = "a list of names such as [a, b]"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(content: str) -> Path:
        path = Path("s.yaml")
        path.write_text(content, "utf-8")
        return path

    return write


def read(path: Path | None = None, environ: Mapping[str, str] | None = None, **flags: str) -> Settings:
    return load(path, environ=environ or {}, flags=flags)


def problems(
    path: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(path, environ=environ or {}, flags=flags or {})
    return [str(problem) for problem in refused.value.problems]


# Routes


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="an empty file"),
        pytest.param("deadline: 4s", id="no such section"),
        pytest.param("routes:", id="a section with nothing in it"),
        pytest.param("routes: null", id="null"),
        pytest.param("routes:\n  # /api/v1/any: {}\n", id="all commented out"),
    ],
)
def test_without_a_table_of_its_own_a_file_has_the_screens_of_the_bot(write: Write, content: str) -> None:
    assert read(write(content)).routes == dict.fromkeys(STATIC_READS, Policy())
    assert all(RoutePattern.parse(path) for path in STATIC_READS)


def test_the_default_policy_is_that_of_the_default_routes_too(write: Write) -> None:
    found = read(write("policy: {default: {stale_if_error: 1h}}"), {"SIDECAR_POLICY__DEFAULT__TTL": "5m"})
    assert found.routes == dict.fromkeys(STATIC_READS, Policy(ttl=300.0, stale_if_error=3600.0))


def test_a_table_replaces_the_default_one_and_is_not_added_to_it(write: Write) -> None:
    found = read(write("routes: {/api/v1/any: {ttl: 1s}}"))
    assert found.routes == {"/api/v1/any": Policy(ttl=1.0)}


def test_an_empty_table_is_none(write: Write) -> None:
    assert read(write("routes: {}")).routes == {}


@pytest.mark.parametrize("value", ["{}", "null", "~", ""])
def test_a_path_with_nothing_said_of_it_has_the_default_policy(write: Write, value: str) -> None:
    found = read(write(f"routes:\n  /api/v1/any: {value}\npolicy: {{default: {{ttl: 5m}}}}\n"))
    assert found.routes == {"/api/v1/any": Policy(ttl=300.0)}


def test_own_keys_are_laid_over_the_default_policy_wherever_that_stands(write: Write) -> None:
    path = write(
        "routes:\n"
        '  "/api/v1/profiles*": {strategy: cache-first, stale_if_error: 1d}\n'
        "  /api/v1/users/{id}/placeholders: {ttl: 1m}\n"
        "policy: {default: {ttl: 5m, network_timeout: 200ms}, nodes: {explain: {ttl: 9m}}}\n"
    )
    found = read(path, {"SIDECAR_POLICY__DEFAULT__STALE_IF_ERROR": "10m"})
    assert found.routes == {
        "/api/v1/profiles*": Policy(
            strategy=Strategy.CACHE_FIRST, ttl=300.0, stale_if_error=86400.0, network_timeout=0.2
        ),
        "/api/v1/users/{id}/placeholders": Policy(ttl=60.0, stale_if_error=600.0, network_timeout=0.2),
    }


def test_the_order_is_that_of_the_file(write: Write) -> None:
    assert list(read(write("routes: {/z: {}, /a: {ttl: 1s}, /m: }")).routes) == ["/z", "/a", "/m"]


@pytest.mark.parametrize("path", ["/", "/*", "/a", "/a/", "/a/{id}", "/a/{id}/b*", "/{x}/{y}", "/a.b-c_d~e", "/A/b@c"])
def test_a_path_is_named_as_it_is_written(write: Write, path: str) -> None:
    assert read(write(f'routes: {{"{path}": {{ttl: 1s}}}}')).routes == {path: Policy(ttl=1.0)}


def test_a_flag_or_a_variable_names_a_path_and_then_the_table_is_its_own() -> None:
    assert load(None, environ={}, flags={"routes./api/v1/any*.ttl": "1m"}).routes == {"/api/v1/any*": Policy(ttl=60.0)}
    found = read(environ={"SIDECAR_ROUTES__/Api/v1/Any__TTL": "2m"})
    assert found.routes == {"/Api/v1/Any": Policy(ttl=120.0)}


def test_a_flag_wins_over_the_file_for_its_own_key_of_a_path(write: Write) -> None:
    path = write("routes: {/a: {ttl: 1m, stale_if_error: 2m}, /b: }")
    found = load(path, environ={}, flags={"routes./a.ttl": "3m"})
    assert found.routes == {"/a": Policy(ttl=180.0, stale_if_error=120.0), "/b": Policy()}


BAD_PATTERNS = [
    ("api/v1", "it must begin with /"),
    ("'*'", "it must begin with /"),
    ("''", "it must begin with /"),
    ("http://x/a", "it must begin with /"),
    ("/a?b=c", "it must have no query and no fragment"),
    ("'/a#b'", "it must have no query and no fragment"),
    ("/a%20b", "it must hold no %, for an encoded path is never matched"),
    ("/a/*/b", "* stands at the end only"),
    ("/a**", "* stands at the end only"),
    ("'/a/{id}x'", "{name} must be a whole segment, its name of letters, digits and _"),
    ("'/a/{}'", "{name} must be a whole segment, its name of letters, digits and _"),
    ("'/a/{1}'", "{name} must be a whole segment, its name of letters, digits and _"),
    ("'/{a}/{a}'", "each name once"),
    ("/a//b", "it must be plain: no //, no . or .. segment, only characters of an ASCII URL"),
    ("/a/../b", "it must be plain: no //, no . or .. segment, only characters of an ASCII URL"),
    ("/путь", "it must be plain: no //, no . or .. segment, only characters of an ASCII URL"),
]


@pytest.mark.parametrize(("pattern", "why"), BAD_PATTERNS, ids=[pattern for pattern, _ in BAD_PATTERNS])
@pytest.mark.parametrize("policy", ["{ttl: 1s}", "{}", ""], ids=["own keys", "empty", "nothing"])
def test_a_bad_pattern_is_named_with_its_line_and_what_is_allowed(
    write: Write, pattern: str, why: str, policy: str
) -> None:
    (found,) = problems(write(f"routes:\n  /good: {{}}\n  {pattern}: {policy}\n"))
    named = yaml.safe_load(pattern)
    assert found == f"routes: {named!r} is not allowed (s.yaml line 3); allowed: {PATTERN}; {why}"


def test_a_bad_pattern_of_a_variable_or_a_flag_is_named_with_it() -> None:
    (found,) = problems(environ={"SIDECAR_ROUTES__api__TTL": "1s"})
    assert found.startswith("routes: 'api' is not allowed (environment SIDECAR_ROUTES__api__TTL); ")
    (found,) = problems(flags={"routes.api.ttl": "1s"})
    assert found.startswith("routes: 'api' is not allowed (flag --routes-api-ttl); ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(
            "routes: [/a]", "routes: a list is not allowed (s.yaml line 1); allowed: a mapping of paths", id="a list"
        ),
        pytest.param(
            "routes: /a", "routes: '/a' is not allowed (s.yaml line 1); allowed: a mapping of paths", id="a text"
        ),
        pytest.param(
            "routes: {/a: 5m}",
            f"routes./a: '5m' is not allowed (s.yaml line 1); allowed: a mapping of {POLICY}",
            id="a text for a policy",
        ),
        pytest.param(
            "routes: {/a: {tll: 5m}}",
            f"routes./a.tll: is no known key (s.yaml line 1); allowed: {POLICY}; did you mean routes./a.ttl?",
            id="an unknown key",
        ),
        pytest.param(
            "routes:\n  /a: {}\n  /a: {}",
            "routes./a: is set twice (s.yaml line 3); allowed: each key once; see s.yaml line 2",
            id="twice",
        ),
    ],
)
def test_another_mistake_in_the_table_is_named_as_elsewhere(write: Write, content: str, found: str) -> None:
    assert problems(write(content)) == [found]


def test_a_bad_value_is_named_by_path_and_key(write: Write) -> None:
    (found,) = problems(write("routes:\n  /a:\n    ttl: soon\n"))
    assert found.startswith("routes./a.ttl: 'soon' is not allowed (s.yaml line 3); allowed: upstream | a duration ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            "routes: {/a: {network_timeout: 5s}}",
            (
                "routes./a.network_timeout: '5s' is not allowed (s.yaml line 1); "
                "allowed: at most deadline, which is 4s (default)"
            ),
        ),
        (
            "deadline: 2s\nroutes:\n  /a: {network_timeout: 3s}",
            (
                "routes./a.network_timeout: '3s' is not allowed (s.yaml line 3); "
                "allowed: at most deadline, which is 2s (s.yaml line 1)"
            ),
        ),
        (
            "routes: {/a: {ttl: 2h}}",
            (
                "routes./a.ttl: '2h' is not allowed (s.yaml line 1); "
                "allowed: at most policy.default.max_ttl, which is 1h (default)"
            ),
        ),
        (
            "routes: {/a: {ttl: 2m, max_ttl: 1m}}",
            (
                "routes./a.ttl: '2m' is not allowed (s.yaml line 1); "
                "allowed: at most routes./a.max_ttl, which is 1m (s.yaml line 1)"
            ),
        ),
        (
            "policy: {default: {ttl: 5m}}\nroutes: {/a: {max_ttl: 1m}}",
            (
                "policy.default.ttl: '5m' is not allowed (s.yaml line 1); "
                "allowed: at most routes./a.max_ttl, which is 1m (s.yaml line 2)"
            ),
        ),
        (
            "policy: {default: {network_timeout: 5s}}",
            (
                "policy.default.network_timeout: '5s' is not allowed (s.yaml line 1); "
                "allowed: at most deadline, which is 4s (default)"
            ),
        ),
    ],
    ids=["network_timeout", "lines of both", "ttl over the default's cap", "own cap", "default's ttl", "told once"],
)
def test_a_contradiction_names_the_keys_as_they_were_written(write: Write, content: str, found: str) -> None:
    assert problems(write(content)) == [found]


# Names


@pytest.mark.parametrize(
    ("value", "nodes"),
    [
        ('"*"', None),
        ("'*'", None),
        ("[]", frozenset()),
        ("[a]", {"a"}),
        ("[a, b]", {"a", "b"}),
        ("[b, a, b]", {"a", "b"}),
        ("\n  - a\n  - b", {"a", "b"}),
        ("a", {"a"}),
        ("a, b", {"a", "b"}),
        ("'[a, b]'", {"a", "b"}),
        ('["a, b", "c d", "[e]"]', {"a, b", "c d", "[e]"}),
        ("[on, 1, null, 1:30, 0x1F]", {"on", "1", "null", "1:30", "0x1F"}),
        ('[ответ, \'say "hi"\', "back\\\\slash"]', {"ответ", 'say "hi"', "back\\slash"}),
    ],
)
def test_nodes_are_a_list_of_names_or_all_of_them(write: Write, value: str, nodes: set[str] | None) -> None:
    found = read(write(f"rollout:\n nodes: {value}")).rollout
    assert found.nodes == nodes
    assert found.exclude == frozenset()


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("*", None),
        ("a", {"a"}),
        ("a,b", {"a", "b"}),
        (" a , b ", {"a", "b"}),
        ("[a,b]", {"a", "b"}),
        ("[]", frozenset()),
        ('"a, b",c', {"a, b", "c"}),
    ],
)
def test_a_variable_or_a_flag_takes_the_names_with_commas_between_them(text: str, nodes: set[str] | None) -> None:
    assert read(environ={"SIDECAR_ROLLOUT__NODES": text}).rollout.nodes == nodes
    assert load(None, environ={}, flags={"rollout.nodes": text}).rollout.nodes == nodes


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("[a, [b]]", "a list", id="a list in it"),
        pytest.param("[a, {b: c}]", "a list", id="a mapping in it"),
        pytest.param("[a, !secret b]", "a list", id="a tag in it"),
        pytest.param("{a: b}", "a mapping", id="a mapping"),
        pytest.param('["a*"]', "'[\"a*\"]'", id="a pattern"),
        pytest.param('["*"]', "'[\"*\"]'", id="a star in a list"),
        pytest.param('[a, ""]', "'[a, \"\"]'", id="an empty name"),
        pytest.param('[a, "\\n"]', "'[a, \"\\\\n\"]'", id="a line's end"),
        pytest.param("'a,,b'", "'a,,b'", id="an empty name between commas"),
        pytest.param("'a,'", "'a,'", id="a comma at the end"),
        pytest.param("'[a, b'", "'[a, b'", id="half a list"),
        pytest.param("''", "''", id="nothing"),
    ],
)
@pytest.mark.parametrize("key", ["nodes", "exclude"])
def test_what_is_no_list_of_names_is_refused(write: Write, key: str, value: str, shown: str) -> None:
    (found,) = problems(write(f"rollout:\n  {key}: {value}"))
    assert found.startswith(f"rollout.{key}: {shown} is not allowed (s.yaml line 2); allowed: ")
    assert NAMES in found


@pytest.mark.parametrize("value", ["", "null", "~", "Null", "NULL"])
@pytest.mark.parametrize("key", ["nodes", "exclude"])
def test_null_is_no_list_of_names_and_no_name(write: Write, key: str, value: str) -> None:
    (found,) = problems(write(f"rollout:\n  {key}: {value}"))
    assert found.startswith(f"rollout.{key}: ")
    assert NAMES in found


def test_a_star_is_no_word_for_excluding_everything(write: Write) -> None:
    (found,) = problems(write('rollout: {exclude: "*"}'))
    assert found.endswith(f"allowed: {NAMES}; each is a whole name, * stands for none")


# The rollout's share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("100", 1.0),
        ("100%", 1.0),
        ("25%", 0.25),
        ("25", 0.25),
        ("1", 0.01),
        ("0", 0.0),
        ("0%", 0.0),
        ("0.5%", 0.005),
        ("99.99%", 0.9999),
        ("007", 0.07),
    ],
)
def test_the_share_is_in_percent_with_or_without_the_sign(write: Write, text: str, share: float) -> None:
    assert read(write(f"rollout: {{percent: {text}}}")).rollout.percent == share
    assert read(environ={"SIDECAR_ROLLOUT__PERCENT": text}).rollout.percent == share


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("101", ""),
        ("100.1%", ""),
        ("-1", ""),
        ("-1%", ""),
        ("0.5", "; write a unit: 0.5%"),
        ("1.0", "; write a unit: 1.0%"),
        ("25 %", ""),
        ("half", ""),
        ("1e2", ""),
        ("25%%", ""),
        ("NaN", ""),
        ("''", ""),
    ],
)
def test_any_other_share_is_refused(write: Write, text: str, hint: str) -> None:
    value = text.strip("'")
    assert problems(write(f"rollout: {{percent: {text}}}")) == [
        f"rollout.percent: '{value}' is not allowed (s.yaml line 1); allowed: {PERCENT}{hint}"
    ]


def test_elsewhere_a_percentage_needs_its_sign(write: Write) -> None:
    (found,) = problems(write("shadow: {sample_rate: 5}"))
    assert found.endswith("write a unit: 5%")


# The template file


@pytest.mark.parametrize("given", ["", "null", "~"])
def test_todays_service_needs_its_template_file(write: Write, given: str) -> None:
    line = f"\n  templates_file: {given}"
    (found,) = problems(write(f"upstream:\n  api: placeholders{line}"))
    assert found == (
        "upstream.templates_file: 'null' is not allowed (s.yaml line 3); "
        "allowed: the path of prompts.yaml, with upstream.api, which is placeholders (s.yaml line 2)"
    )


def test_where_no_template_file_is_named_the_default_is_what_contradicts() -> None:
    (found,) = problems(environ={"SIDECAR_UPSTREAM__API": "placeholders"})
    assert found == (
        "upstream.templates_file: 'null' is not allowed (default); allowed: the path of prompts.yaml, "
        "with upstream.api, which is placeholders (environment SIDECAR_UPSTREAM__API)"
    )


@pytest.mark.parametrize("api", [api for api in UpstreamApi if api is not UpstreamApi.PLACEHOLDERS])
def test_the_other_generations_do_without_a_template_file(write: Write, api: UpstreamApi) -> None:
    assert read(write(f"upstream: {{api: {api.value}}}")).upstream.templates_file is None


@pytest.mark.parametrize("path", ["prompts.yaml", "/etc/learnflow/prompts.yaml", "./null", "a b.yaml", "auto"])
def test_the_template_file_is_a_path_that_need_not_exist_yet(write: Write, path: str) -> None:
    found = read(write(f"upstream: {{api: placeholders, templates_file: {path}}}"))
    assert found.upstream.templates_file == Path(path)


def test_a_bad_api_and_a_missing_file_are_one_mistake(write: Write) -> None:
    (found,) = problems(write("upstream: {api: placeholder}"))
    assert found.startswith("upstream.api: 'placeholder' is not allowed")


# What is shown can be read again

ROUND_TRIPS: dict[str, Settings] = {
    "the defaults": Settings(),
    "no routes": replace(Settings(), routes={}),
    "routes": replace(Settings(), routes={"/a/{id}*": Policy(ttl=None), "/": Policy(strategy=Strategy.NETWORK_ONLY)}),
    "all nodes": replace(Settings(), rollout=RolloutSettings(nodes=None)),
    "no nodes": replace(Settings(), rollout=RolloutSettings(nodes=frozenset(), percent=0.0)),
    "odd names": replace(
        Settings(),
        rollout=RolloutSettings(
            nodes=frozenset({"a, b", "[c]", "on", "null", "ответ", 'q"q', "back\\slash", " d "}),
            exclude=frozenset({"1", "~"}),
            percent=0.005,
        ),
    ),
    "a template file": replace(
        Settings(), upstream=UpstreamSettings(api=UpstreamApi.PLACEHOLDERS, templates_file=Path("null"))
    ),
}


@pytest.mark.parametrize("settings", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_what_is_shown_can_be_read_again(write: Write, settings: Settings) -> None:
    assert read(write(yaml.safe_dump(effective(settings), allow_unicode=True))) == settings


def leaves(written: Any, at: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    if isinstance(written, dict):
        return [leaf for name, value in written.items() for leaf in leaves(value, (*at, name))]
    return [(".".join(at), str(written).lower() if isinstance(written, bool) else str(written))]


@pytest.mark.parametrize(("key", "text"), leaves(effective(Settings())), ids=lambda value: value)
def test_each_key_is_read_as_it_is_shown(key: str, text: str) -> None:
    found = load(None, environ={}, flags={key: text})
    section, default = (effective(found), effective(Settings()))
    if key.startswith("routes."):  # a table of its own, which a flag begins
        assert list(section["routes"]) == [key.removeprefix("routes.").rpartition(".")[0]]
        del section["routes"], default["routes"]
    assert section == default
