import math
from enum import StrEnum
from pathlib import Path, PosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.units import (
    LONGEST_SOCKET_PATH,
    Address,
    BaseUrl,
    Choice,
    Either,
    FilePath,
    HostName,
    Kind,
    ListenAddress,
    Names,
    SocketPath,
    Switch,
    Whole,
    duration,
    listed,
    percent,
    setting,
    size,
)


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


DURATION = duration("0s", "30d")
SIZE = size("0B", "1GiB")
PERCENT = percent()
BARE_PERCENT = percent(bare=True)
LISTEN = ListenAddress()
NODES = Either("*", Names())
FILE = Either("null", FilePath())

READ = [
    (DURATION, "250ms", 0.25),
    (DURATION, "4s", 4.0),
    (DURATION, "1.5s", 1.5),
    (DURATION, "15m", 900.0),
    (DURATION, "1h", 3600.0),
    (DURATION, "2d", 172_800.0),
    (DURATION, "0s", 0.0),
    (DURATION, "0", 0.0),
    (DURATION, "0.1s", 0.1),
    (SIZE, "64MiB", 67_108_864),
    (SIZE, "1KiB", 1024),
    (SIZE, "10MB", 10_000_000),
    (SIZE, "1GiB", 1_073_741_824),
    (SIZE, "0.5KiB", 512),
    (SIZE, "7B", 7),
    (SIZE, "0", 0),
    (PERCENT, "20%", 0.2),
    (PERCENT, "12.5%", 0.125),
    (PERCENT, "0%", 0.0),
    (PERCENT, "100%", 1.0),
    (Whole(1, 10), "1", 1),
    (Whole(1, 10), "10", 10),
    (Choice(Colour), "dark-blue", Colour.DARK_BLUE),
    (Switch(), "true", True),
    (Switch(), "False", False),
    (Either("auto", Switch()), "auto", None),
    (Either("auto", Switch()), "false", False),
    (LISTEN, "127.0.0.1:8002", Address("127.0.0.1", 8002)),
    (LISTEN, "[::1]:8002", Address("::1", 8002)),
    (LISTEN, "[0:0:0:0:0:0:0:1]:8002", Address("::1", 8002)),
    (LISTEN, "0.0.0.0:0", Address("0.0.0.0", 0)),
    (LISTEN, "Prompt-Sidecar.learnflow:65535", Address("prompt-sidecar.learnflow", 65535)),
    (ListenAddress(), "localhost:8002", Address("localhost", 8002)),
    (ListenAddress(), "127.1.2.3:8002", Address("127.1.2.3", 8002)),
    (ListenAddress(), "[::1]:8002", Address("::1", 8002)),
    (BaseUrl(), "http://prompt-config-service:8002", "http://prompt-config-service:8002"),
    (BaseUrl(), "https://config.example.org", "https://config.example.org"),
    (BaseUrl(), "http://config.svc.cluster.local.:80/", "http://config.svc.cluster.local.:80"),
    (BaseUrl(), "http://gateway/prompt-config/v1/", "http://gateway/prompt-config/v1"),
    (BaseUrl(), "http://[::1]:8002", "http://[::1]:8002"),
    (HostName(), "Config.Internal", "config.internal"),
    (HostName(), "10.0.0.1", "10.0.0.1"),
    (HostName(), "::1", "::1"),
    (BaseUrl(), "http://compose_service:8002", "http://compose_service:8002"),
    (BARE_PERCENT, "20%", 0.2),
    (BARE_PERCENT, "12.5%", 0.125),
    (BARE_PERCENT, "100", 1.0),
    (BARE_PERCENT, "1", 0.01),
    (BARE_PERCENT, "0", 0.0),
    (Names(), "[]", frozenset[str]()),
    (Names(), "[ ]", frozenset[str]()),
    (Names(), "[a]", frozenset({"a"})),
    (Names(), "[a, b]", frozenset({"a", "b"})),
    (Names(), "a,b", frozenset({"a", "b"})),
    (Names(), "  a ,  b ", frozenset({"a", "b"})),
    (Names(), "a, b, a", frozenset({"a", "b"})),
    (Names(), "two words, \u0443\u0437\u0435\u043b-1", frozenset({"two words", "\u0443\u0437\u0435\u043b-1"})),
    (Names(), r'["a, b", "[c]" , "say \"d\"", "\u0065"]', frozenset({"a, b", "[c]", 'say "d"', "e"})),
    (NODES, "*", None),
    (NODES, "[]", frozenset[str]()),
    (NODES, "a", frozenset({"a"})),
    (FilePath(), "/etc/prompts.yaml", PosixPath("/etc/prompts.yaml")),
    (FilePath(), "config/my prompts.yaml", PosixPath("config/my prompts.yaml")),
    (FilePath(), "~/prompts.yaml", PosixPath("~/prompts.yaml")),
    (FILE, "null", None),
    (FILE, "./null", PosixPath("null")),
    (FILE, "prompts.yaml", PosixPath("prompts.yaml")),
]


@pytest.mark.parametrize(
    ("kind", "text", "value"), READ, ids=[f"{type(kind).__name__}-{text}" for kind, text, _ in READ]
)
def test_a_text_in_its_unit_is_read_as_its_value(kind: Kind[Any], text: str, value: object) -> None:
    assert kind.parse(text) == value
    assert type(kind.parse(text)) is type(value)


WRITTEN = [
    (DURATION, 0.25, "250ms"),
    (DURATION, 1.5, "1500ms"),
    (DURATION, 90.0, "90s"),
    (DURATION, 5400.0, "90m"),
    (DURATION, 86_400.0, "1d"),
    (DURATION, 0.0, "0s"),
    (DURATION, 0.0001, "0.0001s"),
    (SIZE, 67_108_864, "64MiB"),
    (SIZE, 10_000_000, "10MB"),
    (SIZE, 1025, "1025B"),
    (SIZE, 0, "0B"),
    (PERCENT, 0.2, "20%"),
    (PERCENT, 0.125, "12.5%"),
    (PERCENT, 1.0, "100%"),
    (Switch(), True, "true"),
    (Either("auto", Switch()), None, "auto"),
    (LISTEN, Address("::1", 8002), "[::1]:8002"),
    (BARE_PERCENT, 1.0, "100%"),
    (Names(), frozenset({"b", "a"}), "[a, b]"),
    (Names(), frozenset({"guard.v-2", "a, b", "-x", 'say "d"'}), r'["-x", "a, b", guard.v-2, "say \"d\""]'),
    (Names(), frozenset(), "[]"),
    (NODES, None, "*"),
    (FILE, None, "null"),
    (FILE, Path("/etc/prompts.yaml"), "/etc/prompts.yaml"),
    (FILE, Path("null"), "./null"),
    (FilePath(), Path("-rf"), "./-rf"),
]


@pytest.mark.parametrize(("kind", "value", "text"), WRITTEN, ids=[text for *_, text in WRITTEN])
def test_a_value_is_written_in_the_largest_unit_in_which_it_is_whole(kind: Kind[Any], value: object, text: str) -> None:
    assert kind.format(value) == text


REFUSED = [
    *((DURATION, text) for text in ("", " 4s", "4s ", "4 s", "-4s", "+4s", "4S", "4sec", "s", "1h30m", "31d", "1e3s")),
    *(
        (DURATION, text)
        for text in ("4,5s", "inf", "nan", "\u0664s", ".5s", "4.s", "9" * 2000 + "s", "1:30", "null", "4%")
    ),
    *((SIZE, text) for text in ("64Mib", "64M", "1.5B", "0.3KiB", "2GiB", "-1B", "4s")),
    *((PERCENT, text) for text in ("101%", "-1%", "20 %", "%", "0.2s")),
    *((Whole(1, 10), text) for text in ("0", "11", "-1", "1.0", "1_0", "0x1", "", "one", "\u0661", "1" * 2000)),
    *((Choice(Colour), text) for text in ("", "Red", "blue", "RED", "on")),
    *((Switch(), text) for text in ("", "yes", "on", "1", "no", "null")),
    *((Either("auto", Switch()), text) for text in ("", "none", "Auto")),
    *((LISTEN, text) for text in ("", "8002", ":8002", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:8002")),
    *(
        (LISTEN, text)
        for text in ("[::1]", "[127.0.0.1]:80", "[::g]:80", "[fe80::1%eth0]:80", "256.0.0.1:80", "1.2:80")
    ),
    *((LISTEN, text) for text in ("a..b:80", "-a:80", "a-:80", "a b:80", "user@a:80", f"{'a' * 64}:80", "a:80/")),
    *((LISTEN, text) for text in (f"{'a.' * 127}a:80", "http://a:80", "a:-1", "a:\uff18\uff10")),
    *(
        (HostName(), text)
        for text in ("", "http://config", "config:8002", "[::1]", "-a", "a b", "a/b", "1.2", "a" * 254)
    ),
    *((BaseUrl(), text) for text in ("", "config", "ftp://config", "http://", "http:///path", "http://config:0")),
    *((BaseUrl(), text) for text in ("http://config:65536", "http://config:port", "http://user:pass@config")),
    *((BaseUrl(), text) for text in ("http://config?a=1", "http://config#a", "http://config/a b", "http://config\n")),
    *((BaseUrl(), text) for text in ("http://[::1", "http://[1.2.3.4]", "http://1.2.3", "http://config/@x")),
    *((BARE_PERCENT, text) for text in ("101", "101%", "0.5", "1.0", "-1", "%", "1e1", "\u0661", "true")),
    *((Names(), text) for text in ("", " ", ",", "a,", ",a", "a,,b", "[a,]", "[,]", "[a", "a]", "[[a]]", "a[1]")),
    *((Names(), text) for text in ('""', '[a, ""]', '"a', 'a"b"', '"a" b', r'"\x"', '"a\tb"', r'"\ud800"', "a\nb")),
    *((Names(), text) for text in ("*", "[*]", "guard_*", "a, *", '"*"', "\ud800")),
    *((NODES, text) for text in ("", "[*]", "a, *")),
    *((FilePath(), text) for text in ("", " ", "~", "a\x00b", "a\nb", "\ud800")),
    *((FILE, text) for text in ("", "~")),
]


@pytest.mark.parametrize(
    ("kind", "text"), REFUSED, ids=[f"{type(kind).__name__}-{text[:20]!r}" for kind, text in REFUSED]
)
def test_anything_else_is_refused_with_what_is_allowed(kind: Kind[Any], text: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        kind.parse(text)
    assert str(refused.value).startswith(kind.allowed)


ALLOWED = [
    (duration("10ms", "10m"), "a duration from 10ms to 10m, with its unit (ms, s, m, h, d)"),
    (size("1KiB", "1GiB"), "a size from 1KiB to 1GiB, with its unit (B, KiB, MiB, GiB, KB, MB, GB)"),
    (PERCENT, "a percentage from 0% to 100%, with its unit (%)"),
    (Whole(1, 10), "a whole number from 1 to 10"),
    (Choice(Colour), "red | dark-blue"),
    (Switch(), "true | false"),
    (Either("auto", Choice(Colour)), "auto | red | dark-blue"),
    (BaseUrl(), "http(s)://host[:port][/path], without user, password, query or fragment"),
    (BARE_PERCENT, "a percentage from 0% to 100%, with its unit (%) or as a whole number"),
    (NODES, "* | a list of names such as [a, b]"),
    (FILE, "null | a file path"),
    (
        LISTEN,
        "host:port such as 127.0.0.1:8002 or [::1]:8002 (quoted in YAML), port 0 to 65535 (0: any free one)",
    ),
]


@pytest.mark.parametrize(("kind", "allowed"), ALLOWED, ids=[type(kind).__name__ for kind, _ in ALLOWED])
def test_a_kind_says_what_it_allows(kind: Kind[Any], allowed: str) -> None:
    assert kind.allowed == allowed


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        pytest.param(DURATION, "4", "write a unit: 4ms or 4s", id="duration"),
        pytest.param(SIZE, "64", "write a unit: 64B or 64KiB", id="size"),
        pytest.param(PERCENT, "20", "write a unit: 20%", id="percentage"),
        pytest.param(Either("upstream", DURATION), "4", "write a unit: 4ms or 4s", id="word or duration"),
        pytest.param(BARE_PERCENT, "0.5", "write a unit: 0.5%", id="bare percentage"),
        pytest.param(NODES, "guard_*", "each is a whole name, * stands for none", id="names"),
    ],
)
def test_a_usual_mistake_is_answered_with_a_hint(kind: Kind[Any], text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        kind.parse(text)
    assert str(refused.value).endswith(f"; {hint}")


def test_bounds_belong_to_what_is_allowed() -> None:
    kind = duration("10ms", "1m")
    assert (kind.parse("10ms"), kind.parse("1m")) == (0.01, 60.0)
    for text in ("9.999ms", "60001ms", "0s", "0"):
        with pytest.raises(ValueError, match="from 10ms to 1m"):
            kind.parse(text)


ADDRESSES = st.builds(
    Address,
    st.ip_addresses().map(str).filter(lambda host: "%" not in host) | st.sampled_from(["localhost", "a.b-c", "a_b"]),
    st.integers(0, 65535),
)
NAMES = st.frozensets(
    (st.text(min_size=1) | st.text(", []\"'\\#:~", min_size=1)).filter(
        lambda name: name.isprintable() and "*" not in name
    )
)
PATHS = (st.text(min_size=1) | st.text("./~ nul-", min_size=1)).filter(
    lambda text: text.isprintable() and text.strip() not in {"", "~"}
)
ROUND_TRIPS: list[tuple[str, Kind[Any], st.SearchStrategy[Any]]] = [
    ("duration", DURATION, st.floats(1e-9, 2_592_000) | st.integers(0, 2_592_000_000).map(lambda ms: ms / 1000)),
    ("size", SIZE, st.integers(0, 2**30)),
    ("percentage", PERCENT, st.floats(1e-9, 1) | st.integers(0, 100).map(lambda n: n / 100)),
    ("whole", Whole(0, 10**9), st.integers(0, 10**9)),
    ("choice", Choice(Colour), st.sampled_from(Colour)),
    ("switch", Switch(), st.booleans()),
    ("either", Either("auto", SIZE), st.none() | st.integers(0, 2**30)),
    ("address", LISTEN, ADDRESSES),
    ("bare percentage", BARE_PERCENT, st.floats(1e-9, 1) | st.integers(0, 100).map(lambda n: n / 100)),
    ("names", Names(), NAMES),
    ("nodes", NODES, st.none() | NAMES),
    ("file", FilePath(), PATHS.map(Path)),
    ("file or null", FILE, st.none() | PATHS.map(Path)),
    ("url", BaseUrl(), ADDRESSES.filter(lambda address: address.port > 0).map(lambda address: f"http://{address}/a")),
]


@pytest.mark.parametrize(("kind", "values"), [row[1:] for row in ROUND_TRIPS], ids=[row[0] for row in ROUND_TRIPS])
@settings(deadline=None)  # a busy machine is no finding
@given(data=st.data())
def test_what_is_written_is_read_as_the_same_value(
    kind: Kind[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    assert kind.parse(kind.format(value)) == value


@pytest.mark.parametrize(("kind", "values"), [row[1:] for row in ROUND_TRIPS], ids=[row[0] for row in ROUND_TRIPS])
@settings(deadline=None)  # a busy machine is no finding
@given(text=st.text() | st.from_regex(r"[0-9]{1,40}(\.[0-9]{1,40})?(ms|[smhdB%]|[KMG]i?B)?", fullmatch=True))
def test_no_text_is_answered_with_anything_but_a_value_or_what_is_allowed(
    kind: Kind[Any], values: st.SearchStrategy[Any], text: str
) -> None:
    del values
    try:
        value = kind.parse(text)
    except ValueError as refused:
        assert kind.allowed in str(refused)  # noqa: PT017 # either end is right; this is what the other one must hold
    else:
        assert kind.parse(kind.format(value)) == value
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.1.2.3", "sidecar")),
    ],
)
def test_an_address_knows_whether_only_this_machine_reaches_it(host: str, *, loopback: bool) -> None:
    assert Address(host, 80).is_loopback is loopback


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        pytest.param("127.0.0.1:80", "127.0.0.1:80", True, id="the same"),
        pytest.param("127.0.0.1:80", "127.0.0.1:81", False, id="another port"),
        pytest.param("127.0.0.1:80", "10.0.0.3:80", False, id="another host"),
        pytest.param("127.0.0.1:80", "0.0.0.0:80", True, id="every host"),
        pytest.param("[::]:80", "127.0.0.1:80", True, id="every host of both families"),
        pytest.param("localhost:80", "[::1]:80", True, id="localhost is both loopbacks"),
        pytest.param("127.0.0.1:0", "127.0.0.1:0", False, id="any free port"),
    ],
)
def test_two_listeners_cannot_share_an_address(first: str, second: str, *, overlap: bool) -> None:
    one, other = LISTEN.parse(first), LISTEN.parse(second)
    assert (one.overlaps(other), other.overlaps(one)) == (overlap, overlap)


def test_an_address_shows_itself_as_it_is_written() -> None:
    assert (str(Address("localhost", 80)), str(Address("::1", 80))) == ("localhost:80", "[::1]:80")


def test_a_setting_carries_its_kind_and_its_reason() -> None:
    field: Any = setting(4.0, DURATION, "because")
    assert (field.default, dict(field.metadata)) == (4.0, {"kind": DURATION, "reason": "because"})


def test_listed_names_are_yaml_too() -> None:
    names = [
        "a",
        "two words",
        "a, b",
        "[c]",
        "#d",
        "e: f",
        'say "g"',
        "it's",
        "\\h",
        "-i",
        "~",
        "null",
        "\u0443\u0437\u0435\u043b",
        "",
    ]
    assert yaml.load(listed(names), Loader=yaml.BaseLoader) == names


def test_a_long_text_of_names_is_read_in_time() -> None:
    many = frozenset(f"node_{number}" for number in range(20_000))
    assert Names().parse(listed(many)) == many
    for text in ("a" + " " * 200_000 + '"', " " * 200_000 + '"', '"' + "\\\\" * 100_000):
        with pytest.raises(ValueError, match="a list of names"):
            Names().parse(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "::ffff:127.0.0.1"])
def test_what_only_this_machine_can_reach_is_loopback(host: str) -> None:
    assert Address(host, 8002).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "::ffff:10.0.0.3", "example.org"])
def test_all_else_is_not(host: str) -> None:
    assert not Address(host, 8002).is_loopback


def test_a_host_name_is_written_as_it_is() -> None:
    assert HostName().format("config.internal") == "config.internal"


def test_the_path_of_a_socket_is_as_long_as_the_kernel_can_take() -> None:
    assert SocketPath().parse("/" + "a" * (LONGEST_SOCKET_PATH - 1))
    with pytest.raises(ValueError, match="107 bytes at most"):
        SocketPath().parse("/" + "a" * LONGEST_SOCKET_PATH)
