import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config_file import ConfigError, Problem, default_path, load, shown
from sidecar.core.policy import Policy, Strategy
from sidecar.core.servers import RedisUrl, Word
from sidecar.core.units import (
    BaseUrl,
    Choice,
    Either,
    FilePath,
    HostName,
    Kind,
    ListenAddress,
    Names,
    Quantity,
    SocketPath,
    Whole,
)
from sidecar.settings import (
    Address,
    CollectorUrl,
    LogLevel,
    PolicySettings,
    RedisMode,
    Settings,
    UpstreamSettings,
    contradictions,
    effective,
)

Write = Callable[[str | bytes], Path]
DURATION = "with its unit (ms, s, m, h, d)"
DEADLINE = f"a duration from 10ms to 10m, {DURATION}"
PERCENT = "a percentage from 0% to 100%, with its unit (%)"
TTL = f"upstream | a duration from 0s to 30d, {DURATION}"
TOP = "listen, listen_unix, listen_beyond_loopback, allowed_hosts, ops, upstream, deadline, retry, breaker, policy, "
TOP += "render, rollout, shadow, routes, proxy, cache, store, warmup, limits, drain, log, metrics, tracing"
LOG = "level, format, repeat_window, max_repeat_window, max_lines"
POLICY = "strategy, ttl, max_ttl, stale_while_revalidate, stale_if_error, network_timeout"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> Path:
        path = Path("s.yaml")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path: Path | None = None, environ: Mapping[str, str] | None = None, **flags: str) -> Settings:
    return load(path, environ=environ or {}, flags=flags)


def problems(
    path: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as refused:
        load(path, environ=environ or {}, flags=flags or {})
    assert str(refused.value) == "\n".join(str(problem) for problem in refused.value.problems)
    return refused.value.problems


def problem(path: Path | None = None, environ: Mapping[str, str] | None = None, **flags: str) -> Problem:
    (only,) = problems(path, environ, flags)
    return only


# Where a setting comes from


def test_without_any_source_every_setting_has_its_default() -> None:
    assert read() == Settings()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(write: Write) -> None:
    path = write("listen: 127.0.0.1:1\ndeadline: 1s\nretry: {per_try_timeout: 1ms}\nlog: {level: error}\n")
    found = read(path, {"SIDECAR_LISTEN": "127.0.0.1:2", "SIDECAR_DEADLINE": "2s"}, listen="127.0.0.1:3")
    assert (found.listen, found.deadline, found.log.level) == (Address("127.0.0.1", 3), 2.0, LogLevel.ERROR)
    assert found.breaker == Settings().breaker


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("SIDECAR_LISTEN", "[::1]:80", lambda s: s.listen == Address("::1", 80)),
        ("SIDECAR_OPS__LISTEN", "0.0.0.0:9102", lambda s: s.ops.listen == Address("0.0.0.0", 9102)),
        ("SIDECAR_retry__Budget", "10%", lambda s: s.retry.budget == 0.1),
        ("SIDECAR_POLICY__DEFAULT__TTL", "5m", lambda s: s.policy.default.ttl == 300.0),
        ("SIDECAR_POLICY__NODES__Answer_q__STALE_IF_ERROR", "0s", lambda s: list(s.policy.nodes) == ["Answer_q"]),
        ("SIDECAR_POLICY__NODES__a__b__TTL", "5m", lambda s: s.policy.for_node("a__b").ttl == 300.0),
        ("SIDECAR_RENDER__AUTOESCAPE", "false", lambda s: s.render.autoescape is False),
    ],
)
def test_a_variable_names_a_key_in_any_case_and_a_node_in_its_own(
    variable: str, text: str, value: Callable[[Settings], bool]
) -> None:
    assert value(read(environ={variable: text}))


def test_a_flag_names_a_key_by_its_dots() -> None:
    found = load(None, environ={}, flags={"upstream.url": "http://a", "policy.nodes.a.b.ttl": "1m"})
    assert found.upstream.url == "http://a"
    assert found.policy.for_node("a.b") == Policy(ttl=60.0)


def test_variables_of_others_and_those_of_kubernetes_are_left_alone() -> None:
    environ = {"PATH": "/bin", "SIDECAR_CONFIG": "elsewhere.yaml", "sidecar_listen": "?"}
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8002_TCP", "PORT_8002_TCP_ADDR"]
    environ |= {f"SIDECAR_{name}": "tcp://10.0.0.1:8002" for name in [*links, "OPS_PORT", "OPS_SERVICE_HOST"]}
    assert read(environ=environ) == Settings()


def test_a_nodes_own_keys_are_laid_over_the_default(write: Write) -> None:
    path = write(
        "policy:\n"
        "  nodes:\n"
        "    security_guard_detection: {strategy: network-first, stale_if_error: 0s}\n"
        "    as_the_rest: {}\n"
        "  default: {ttl: 5m}\n"
    )
    policy = read(path, {"SIDECAR_POLICY__DEFAULT__MAX_TTL": "10m"}).policy
    assert policy.default == Policy(ttl=300.0, max_ttl=600.0)
    assert policy.for_node("security_guard_detection") == Policy(
        strategy=Strategy.NETWORK_FIRST, stale_if_error=0.0, ttl=300.0, max_ttl=600.0
    )
    assert policy.for_node("as_the_rest") == policy.default


@pytest.mark.parametrize(
    ("environ", "exists", "path"),
    [
        pytest.param({"SIDECAR_CONFIG": "a.yaml"}, True, Path("a.yaml"), id="named, whether it exists or not"),
        pytest.param({}, True, Path("config/sidecar.yaml"), id="the usual one"),
        pytest.param({"SIDECAR_CONFIG": ""}, True, Path("config/sidecar.yaml"), id="an empty name is none"),
        pytest.param({}, False, None, id="none"),
    ],
)
def test_the_file_is_the_named_one_or_else_the_usual_one_if_it_exists(
    environ: dict[str, str], path: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exists: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if exists:
        Path("config").mkdir()
        Path("config/sidecar.yaml").touch()
    assert default_path(environ) == path


# What a file may look like


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("# nothing\n---\n", id="comments only"),
        pytest.param("~", id="null"),
        pytest.param("retry:\n  # attempts: 4\nops: null\npolicy: {nodes: }\n", id="a section with all commented out"),
        pytest.param(b"\xef\xbb\xbfdeadline: 4s\r\n", id="byte order mark and CRLF"),
        pytest.param("deadline: '4s'\nretry: {attempts: \"3\"}", id="quotes"),
        pytest.param("retry: &r {backoff: 100ms}\n", id="anchor"),
    ],
)
def test_a_file_that_says_nothing_new_gives_the_defaults(write: Write, content: str | bytes) -> None:
    assert read(write(content)) == Settings()


@pytest.mark.parametrize("content", ["", " \n"])
def test_a_file_that_was_not_empty_and_is_now_was_cut(write: Write, content: str) -> None:
    with pytest.raises(ConfigError, match=r"config: 's\.yaml' is empty, and was not \({} stands for the defaults\)"):
        load(write(content), environ={}, flags={}, may_be_empty=False)
    assert load(write("{}"), environ={}, flags={}, may_be_empty=False) == Settings()


@pytest.mark.timeout(10)
def test_a_file_that_has_become_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sidecar.yaml")
    with pytest.raises(ConfigError, match="is a named pipe, and was none"):
        load(tmp_path / "sidecar.yaml", environ={}, flags={}, may_be_pipe=False)


def test_an_alias_stands_for_what_it_names(write: Write) -> None:
    path = write("policy: {nodes: {a: &fast {ttl: 1s}, b: *fast}}")
    assert read(path).policy.nodes == {"a": Policy(ttl=1.0), "b": Policy(ttl=1.0)}


@pytest.mark.parametrize("node", ["on", "123", "1:30", "null", "0x1F", '"~"', "ответ"])
def test_a_node_has_the_name_that_is_written_whatever_yaml_thinks_it_is(write: Write, node: str) -> None:
    assert list(read(write(f"policy: {{nodes: {{{node}: {{ttl: 1s}}}}}}")).policy.nodes) == [node.strip('"')]


@pytest.mark.parametrize(
    ("content", "line", "mistake"),
    [
        pytest.param(
            "a: 1\n\tb: 2\n", 2, "is not YAML, while scanning for the next token found character '\\t'", id="tab"
        ),
        pytest.param("retry: {attempts: 3\n", 2, "is not YAML, while parsing a flow mapping", id="unclosed brace"),
        pytest.param("deadline: 4s\n---\ndeadline: 4s\n", 2, "is not YAML, expected a single document", id="documents"),
        pytest.param("listen: *address", 1, "is not YAML, found undefined alias 'address'", id="undefined alias"),
        pytest.param(b"a: 1\n\x00\x01", 2, "holds a control character", id="control character"),
        pytest.param(b"\x7fELF\n\xff\xfe", 2, "is not UTF-8 text", id="binary"),
        pytest.param("deadline: 4s".encode("utf-16"), 1, "is not UTF-8 text", id="UTF-16"),
    ],
)
def test_a_file_that_is_not_yaml_is_answered_with_the_line(
    write: Write, content: str | bytes, line: int, mistake: str
) -> None:
    found = problem(write(content))
    assert (found.key, found.value, found.source) == ("config", "'s.yaml'", f"s.yaml line {line}")
    assert found.mistake.startswith(mistake)
    assert found.allowed == "a YAML file of the keys in docs/settings.md, 1 MiB at most"
    assert "\n" not in str(found)


def test_an_ipv6_address_without_quotes_is_answered_with_a_hint(write: Write) -> None:
    for content in ("listen: [::1]:8002", "deadline: 4s\nops: {listen: [::]:9102}"):
        assert problem(write(content)).allowed.endswith('write an IPv6 address in quotes: "[::1]:8002"')
    assert read(write('listen: "[::1]:8002"')).listen == Address("::1", 8002)


@pytest.mark.parametrize(
    ("make", "mistake"),
    [
        pytest.param(str, "cannot be read: No such file or directory", id="missing"),
        pytest.param(lambda path: path.mkdir(), "cannot be read: Is a directory", id="directory"),
        pytest.param(
            lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links", id="loop"
        ),
        pytest.param(lambda path: path.write_text("#" * 2**20 + "\n"), "is larger than 1048576 bytes", id="too large"),
        pytest.param(lambda path: path.write_text("a: " + "[" * 2000), "is nested too deeply", id="too deep"),
    ],
)
def test_a_named_file_that_cannot_be_used_is_a_problem(
    tmp_path: Path, make: Callable[[Path], object], mistake: str
) -> None:
    path = tmp_path / "x.yaml"
    make(path)
    found = problem(path)
    assert (found.key, found.source, found.mistake) == ("config", "file", mistake)
    assert "a YAML file of the keys in docs/settings.md" in str(found)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_problem(write: Write) -> None:
    path = write("deadline: 4s")
    path.chmod(0)
    assert problem(path).mistake == "cannot be read: Permission denied"


# What a mistake is answered with: the key, the value, where it stands, what is allowed

MISTAKES = [
    ("deadline: 4", "deadline", "'4'", f"{DEADLINE}; write a unit: 4ms or 4s"),
    ("deadline: 0", "deadline", "'0'", DEADLINE),
    ("deadline: -4s", "deadline", "'-4s'", DEADLINE),
    ("deadline: 1:30", "deadline", "'1:30'", DEADLINE),
    ("deadline:", "deadline", "''", DEADLINE),
    ("deadline: null", "deadline", "'null'", DEADLINE),
    ("deadline: [4s]", "deadline", "a list", DEADLINE),
    ("deadline: {s: 4}", "deadline", "a mapping", DEADLINE),
    ("deadline: !ENV D", "deadline", "a value with the tag '!ENV'", DEADLINE),
    ("deadline: 9" + "9" * 99 + "s", "deadline", "'" + "9" * 59 + "…'", DEADLINE),
    ("retry: {attempts: 11}", "retry.attempts", "'11'", "a whole number from 1 to 10"),
    ("retry: {attempts: 3.0}", "retry.attempts", "'3.0'", "a whole number from 1 to 10"),
    ("breaker: {fail_max: 0}", "breaker.fail_max", "'0'", "a whole number from 1 to 1000"),
    ("log: {format: on}", "log.format", "'on'", "auto | json | console"),
    ("render: {autoescape: yes}", "render.autoescape", "'yes'", "auto | true | false"),
    ("upstream: {api: first}", "upstream.api", "'first'", "auto | prompt-data | placeholders | passthrough"),
    ("retry: {budget: 20}", "retry.budget", "'20'", f"{PERCENT}; write a unit: 20%"),
    ("breaker: 5", "breaker", "'5'", "a mapping of fail_max, reset_timeout, success_threshold"),
    ("log: [info]", "log", "a list", f"a mapping of {LOG}"),
    ("policy: {nodes: [a]}", "policy.nodes", "a list", "a mapping of node names"),
    ("policy: {nodes: {a: 5m}}", "policy.nodes.a", "'5m'", f"a mapping of {POLICY}"),
    ("- deadline", "config", "a list", f"a mapping of {TOP}"),
    ("deadline", "config", "'deadline'", f"a mapping of {TOP}"),
    ("policy: {nodes: {a: {ttl: soon}}}", "policy.nodes.a.ttl", "'soon'", TTL),
]  # fmt: skip


@pytest.mark.parametrize(("content", "key", "value", "allowed"), MISTAKES, ids=[row[0][:40] for row in MISTAKES])
def test_a_mistake_names_the_key_the_value_the_line_and_what_is_allowed(
    write: Write, content: str, key: str, value: str, allowed: str
) -> None:
    found = problem(write(f"# a comment\n{content}\n"))
    assert found == Problem(key, value, allowed, "s.yaml line 2")
    assert str(found) == f"{key}: {value} is not allowed (s.yaml line 2); allowed: {allowed}"


def test_a_listener_beyond_loopback_is_refused_with_the_reason() -> None:
    found = problem(listen="0.0.0.0:8002")
    assert (found.key, found.value, found.source) == ("listen", "'0.0.0.0:8002'", "flag --listen")
    assert found.allowed.startswith("a loopback host:port")
    assert found.allowed.endswith("with listen_beyond_loopback, which is False (default)")


@pytest.mark.parametrize("listen", ["localhost:8002", "127.9.9.9:8002", "[::1]:8002", "[::ffff:127.0.0.1]:8002"])
def test_a_loopback_listener_needs_no_leave(listen: str) -> None:
    assert read(listen=listen).listen.is_loopback


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:8002", "[::]:8002", "10.1.2.3:8002", "[fd00::1]:8002", "[::ffff:a01:203]:8002", "some-host:8002"],
)
def test_any_other_listener_needs_leave(listen: str) -> None:
    assert problem(listen=listen).key == "listen"
    assert str(read(environ={"SIDECAR_LISTEN_BEYOND_LOOPBACK": "true"}, listen=listen).listen) == listen


UNKNOWN = [
    ("deadlin: 4s", "deadlin", f"{TOP}; did you mean deadline?"),
    ("nothing_like_it: 1", "nothing_like_it", TOP),
    ("ttl: 5m", "ttl", f"{TOP}; did you mean policy.default.ttl?"),
    ("log: {levle: info}", "log.levle", f"{LOG}; did you mean log.level?"),
    ("polcy: {}", "polcy", f"{TOP}; did you mean policy?"),
    ("policy: {nodes: {a.b: {tll: 5m}}}", "policy.nodes.a.b.tll", f"{POLICY}; did you mean policy.nodes.a.b.ttl?"),
    ("log: {<<: info}", "log.<<", LOG),
    ('"log\\n": x', "'log\\n'", f"{TOP}; did you mean log?"),
]


@pytest.mark.parametrize(("content", "key", "allowed"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_an_unknown_key_is_answered_with_those_there_are_and_the_nearest_one(
    write: Write, content: str, key: str, allowed: str
) -> None:
    found = problem(write(content))
    assert str(found) == f"{key}: is no known key (s.yaml line 1); allowed: {allowed}"


@pytest.mark.parametrize(
    ("variable", "key", "hint"),
    [
        ("SIDECAR_RETRY_ATTEMPTS", "retry_attempts", "SIDECAR_RETRY__ATTEMPTS"),
        ("SIDECAR_UPSTREAM__URI", "upstream.uri", "SIDECAR_UPSTREAM__URL"),
        ("SIDECAR_POLICY__NODES__Ab__TLL", "policy.nodes.Ab.tll", "SIDECAR_POLICY__NODES__Ab__TTL"),
        ("SIDECAR_POLICY__NODES__TTL", "policy.nodes.TTL", "SIDECAR_POLICY__NODES__TTL__TTL"),
        ("SIDECAR_TTL", "ttl", "SIDECAR_POLICY__DEFAULT__TTL"),
    ],
)
def test_an_unknown_variable_is_answered_with_the_one_that_was_meant(variable: str, key: str, hint: str) -> None:
    found = problem(environ={variable: "1"})
    assert (found.key, found.source) == (key, f"environment {variable}")
    assert found.allowed.endswith(f"; did you mean {hint}?")


@pytest.mark.parametrize("name", ["", "retry", "policy.nodes..ttl", "policy.nodes.a", "nonsense"])
def test_an_unknown_flag_is_a_problem(name: str) -> None:
    (found,) = problems(flags={name: "1"})
    assert found.mistake == "is no known key"


def test_a_key_that_stands_twice_is_a_problem(write: Write) -> None:
    assert str(problem(write("log:\n  level: info\n  level: debug\n"))) == (
        "log.level: is set twice (s.yaml line 3); allowed: each key once; see s.yaml line 2"
    )
    assert str(problem(environ={"SIDECAR_LISTEN": "[::1]:1", "SIDECAR_listen": "[::1]:2"})) == (
        "listen: is set twice (environment SIDECAR_listen); allowed: one variable for a key; see SIDECAR_LISTEN"
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param("{[a]: 1}", "a list", id="list"),
        pytest.param("{{a: 1}: 1}", "a mapping", id="mapping"),
        pytest.param("{~: 1}", "nothing", id="null"),
        pytest.param("?\n: 1", "nothing", id="empty"),
    ],
)
def test_a_key_that_is_no_text_is_a_problem(write: Write, content: str, what: str) -> None:
    assert str(problem(write(content))) == f"config: {what} is not a key (s.yaml line 1); allowed: {TOP}"


def test_all_problems_of_all_sources_are_reported_at_once(write: Write) -> None:
    path = write("deadline: 4\nlog: {level: loud}\nnonsense: 1\nretry: {per_try_timeout: 5s}\n")
    found = problems(path, {"SIDECAR_LISTEN": "?", "SIDECAR_X": "?"}, {"upstream.url": "?", "x": "?"})
    assert {(each.key, each.source) for each in found} == {
        ("deadline", "s.yaml line 1"),
        ("log.level", "s.yaml line 2"),
        ("nonsense", "s.yaml line 3"),
        ("listen", "environment SIDECAR_LISTEN"),
        ("x", "environment SIDECAR_X"),
        ("upstream.url", "flag --upstream-url"),
        ("x", "flag --x"),
    }  # and nothing about per_try_timeout, which may well fit into the deadline that was meant


def test_a_mistake_stays_one_even_where_another_source_overrides_it(write: Write) -> None:
    assert problem(write("deadline: soon"), deadline="4s").source == "s.yaml line 1"


# Keys that cannot both hold

CONTRADICTIONS = [
    (
        {"retry.per_try_timeout": "5s"},
        (
            "retry.per_try_timeout: '5s' is not allowed (flag --retry-per-try-timeout); "
            "allowed: at most deadline, which is 4s (default)"
        ),
    ),
    (
        {"deadline": "500ms", "policy.default.network_timeout": "0s"},
        (
            "retry.per_try_timeout: '1s' is not allowed (default); "
            "allowed: at most deadline, which is 500ms (flag --deadline)"
        ),
    ),
    (
        {"policy.nodes.a.network_timeout": "5s"},
        (
            "policy.nodes.a.network_timeout: '5s' is not allowed (flag --policy-nodes-a-network-timeout); "
            "allowed: at most deadline, which is 4s (default)"
        ),
    ),
    (
        {"policy.nodes.a.ttl": "2h"},
        (
            "policy.nodes.a.ttl: '2h' is not allowed (flag --policy-nodes-a-ttl); "
            "allowed: at most policy.default.max_ttl, which is 1h (default)"
        ),
    ),
    (
        {"policy.default.ttl": "5m", "policy.nodes.a.max_ttl": "1m"},
        (
            "policy.default.ttl: '5m' is not allowed (flag --policy-default-ttl); "
            "allowed: at most policy.nodes.a.max_ttl, which is 1m (flag --policy-nodes-a-max-ttl)"
        ),
    ),
    (
        {"policy.default.ttl": "2h", "policy.nodes.a.strategy": "cache-first"},
        (
            "policy.default.ttl: '2h' is not allowed (flag --policy-default-ttl); "
            "allowed: at most policy.default.max_ttl, which is 1h (default)"
        ),
    ),
    (
        {"upstream.tls.ca_file": "/ca.pem"},
        (
            "upstream.tls.ca_file: '/ca.pem' is not allowed (flag --upstream-tls-ca-file); allowed: the default, or an "
            "https:// URL in upstream.url, which is http://prompt-config-service:8002 (default)"
        ),
    ),
    (
        {"upstream.forward_authorization": "true"},
        (
            "upstream.forward_authorization: 'True' is not allowed (flag --upstream-forward-authorization); allowed: "
            "false, or store.kind none, or a key to hash credentials with in store.encryption_key_file or "
            "store.signing_key_file, which is null (default)"
        ),
    ),
    (
        {"ops.listen": "0.0.0.0:8002"},
        (
            "ops.listen: '0.0.0.0:8002' is not allowed (flag --ops-listen); "
            "allowed: an address apart from listen, which is 127.0.0.1:8002 (default)"
        ),
    ),
]


@pytest.mark.parametrize(("flags", "sentence"), CONTRADICTIONS, ids=[",".join(flags) for flags, _ in CONTRADICTIONS])
def test_a_contradiction_names_both_keys_and_where_each_stands(flags: dict[str, str], sentence: str) -> None:
    (found,) = problems(flags=flags)
    assert str(found) == sentence


# What must not be shown


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@config:8002",
        "http://user:hun@ter2:hunter2@config",
        "http://user:x/hunter2@config",
        "http://hunter2@config",
        "user:hunter2@config:8002",
        "https://config/?token=hunter2",
        "https://config/#hunter2",
        "http://user:" + "hunter2" * 20 + "@config",
        "http://user:\nhunter2@config",
    ],
)
def test_a_password_in_a_url_is_not_shown(url: str) -> None:
    (found,) = problems(flags={"upstream.url": url})
    assert "hunter2" not in str(found)
    assert "***" in str(found)
    form, _, hint = found.allowed.partition("; ")
    assert form == "http(s)://host[:port][/path], without user, password, query or fragment"
    assert hint == ("a credential is a file's: upstream.token_file" if "@" in url else "")


def test_the_value_of_an_unknown_key_is_not_shown(write: Write) -> None:
    found = problems(write("store: {password: hunter2}"), {"SIDECAR_TOKEN": "hunter2"}, {"secret": "hunter2"})
    assert len(found) == 3
    assert "hunter2" not in " ".join(map(str, found))


def test_a_value_is_shown_short_and_on_one_line() -> None:
    assert shown("a\nb" * 100) == repr(("a\nb" * 100)[:59] + "…")


# What is shown can be read again


SOME: dict[type[Kind[Any]], list[str]] = {
    FilePath: ["/etc/prompts.yaml", "a b/c", "./null"],
    SocketPath: ["/run/learnflow.sock", "./false"],
    BaseUrl: ["http://a", "https://[::1]:1/b", "http://a-b.c:65535"],
    CollectorUrl: ["http://a", "https://[::1]:4318/v1/traces", "http://a-b.c:65535/x/"],
    RedisUrl: ["redis://a", "rediss://[::1]:1/5", "redis://a:1,b:2"],
    HostName: ["a.internal", "10.0.0.1", "::1"],
    Word: ["a", "a:b", "é", "1", "true"],
}


def values(kind: Kind[Any]) -> st.SearchStrategy[Any]:
    found: st.SearchStrategy[Any] = st.booleans()
    match kind:
        case Quantity():
            bounds = [(unit, ceil(kind.minimum / by), floor(kind.maximum / by)) for unit, by in kind.units.items()]
            texts = [st.integers(low, high).map(f"{{}}{unit}".format) for unit, low, high in bounds if low <= high]
            found = st.one_of(texts).map(kind.parse)
        case Whole():
            found = st.integers(kind.minimum, kind.maximum)
        case Choice():
            found = st.sampled_from(kind.members)
        case Either():
            found = st.none() | values(kind.kind)
        case ListenAddress():
            found = st.builds(Address, st.sampled_from(["127.0.0.1", "::1", "localhost"]), st.integers(0, 65535))
        case Names():
            found = st.frozensets(st.from_regex(r"[a-z_. é-]{0,9}[a-z]", fullmatch=True), max_size=3)
        case _ if type(kind) in SOME:
            found = st.sampled_from(SOME[type(kind)]).map(kind.parse)
    return found


def any_of(section: Any) -> st.SearchStrategy[Any]:
    parts: dict[str, st.SearchStrategy[Any]] = {}
    for each in fields(section):
        if "kind" in each.metadata:
            parts[each.name] = values(each.metadata["kind"])
        elif "each" in each.metadata:
            names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20)
            if each.name == "routes":
                names = st.from_regex(r"/[a-z]{1,9}(/\{id\})?(/\*)?", fullmatch=True)
            parts[each.name] = st.dictionaries(names, any_of(each.metadata["each"]()), max_size=2)
        else:
            parts[each.name] = any_of(getattr(section, each.name))
    return st.builds(type(section), **parts)


def in_agreement(found: Settings) -> Settings:
    """Return the settings with what each contradiction is about put right."""

    def right(policy: Policy) -> Policy:
        return replace(policy, max_ttl=max(policy.max_ttl, policy.ttl or 0.0))

    nodes = {name: right(policy) for name, policy in found.policy.nodes.items()}
    return replace(
        found,
        deadline=600.0,
        drain=replace(found.drain, timeout=3600.0),
        listen_beyond_loopback=True,
        limits=replace(found.limits, max_bodies=max(found.limits.max_bodies, found.limits.max_body)),
        ops=replace(found.ops, listen=replace(found.ops.listen, port=0)),
        retry=replace(found.retry, max_backoff=60.0),
        policy=PolicySettings(default=right(found.policy.default), nodes=nodes),
        routes={path: right(policy) for path, policy in found.routes.items()},
        upstream=replace(
            found.upstream,
            url=found.upstream.url.replace("http:", "https:"),
            templates_file=found.upstream.templates_file or Path("prompts.yaml"),
            forward_authorization=False,
            tls=replace(found.upstream.tls, cert_file=None, key_file=None),
        ),
        proxy=replace(found.proxy, add_token=False),
        store=replace(
            found.store,
            signing_key_file=None,
            redis=replace(
                found.store.redis,
                url=replace(found.store.redis.url, database=0),
                mode=RedisMode.CLUSTER,
                tls_cert_file=None,
                tls_key_file=None,
            ),
        ),
    )


@settings(deadline=None, max_examples=40)  # a busy machine is no finding
@given(found=any_of(Settings()).map(in_agreement))
def test_the_effective_settings_written_to_a_file_are_the_same_settings(found: Settings) -> None:
    assert not list(contradictions(found))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(yaml.safe_dump(effective(found), allow_unicode=True), encoding="utf-8")
        assert read(path) == found


def test_a_flag_may_hold_what_a_file_would_need_quotes_for() -> None:
    assert load(None, environ={}, flags={"upstream.url": "http://[::1]:1"}).upstream == UpstreamSettings(
        url="http://[::1]:1"
    )
