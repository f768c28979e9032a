"""What a proxy may pass on, and what it must refuse."""

import pytest

from sidecar.core.hop_by_hop import (
    HOP_BY_HOP,
    Headers,
    end_to_end,
    has_body,
    is_sound,
    method_label,
    origin_form,
    refusal,
    values_of,
    with_forwarded_for,
    without,
)

# Headers


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_a_header_for_one_hop_is_dropped_however_it_is_spelt(name: str) -> None:
    assert end_to_end([("A", "1"), (name.title(), "x"), (name.upper(), "y"), ("B", "2")]) == [("A", "1"), ("B", "2")]


def test_what_connection_names_is_dropped_too() -> None:
    given = [("Connection", "close, X-One"), ("x-one", "1"), ("connection", " X-Two ,,"), ("X-Two", "2"), ("X-3", "3")]
    assert end_to_end(given) == [("X-3", "3")]


@pytest.mark.parametrize("name", ["Host", "Content-Length"])
def test_connection_cannot_take_away_what_makes_the_message(name: str) -> None:
    assert end_to_end([(name, "7"), ("Connection", name)]) == [(name, "7")]


def test_repeated_headers_keep_their_order_and_number() -> None:
    given = [("Set-Cookie", "a=1"), ("X", "1"), ("Set-Cookie", "b=2"), ("Set-Cookie", "a=1")]
    assert end_to_end(given) == given
    assert values_of(given, "set-cookie") == ["a=1", "b=2", "a=1"]


@pytest.mark.parametrize(
    ("given", "chain"),
    [
        ([], "10.0.0.9"),
        ([("X-Forwarded-For", "1.2.3.4")], "1.2.3.4, 10.0.0.9"),
        ([("x-forwarded-for", "1.2.3.4, 5.6.7.8")], "1.2.3.4, 5.6.7.8, 10.0.0.9"),
        ([("X-Forwarded-For", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")], "1.2.3.4, 5.6.7.8, 10.0.0.9"),
        ([("X-Forwarded-For", "")], "10.0.0.9"),
    ],
)
def test_the_peer_is_appended_to_who_forwarded_before(given: Headers, chain: str) -> None:
    others = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "example.org")]
    assert with_forwarded_for([*others, *given], "10.0.0.9") == [*others, ("X-Forwarded-For", chain)]


@pytest.mark.parametrize("peer", [None, ""], ids=["gone", "of a Unix socket"])
def test_a_peer_without_an_address_adds_nothing(peer: str | None) -> None:
    assert with_forwarded_for([("X-Forwarded-For", "1.2.3.4")], peer) == [("X-Forwarded-For", "1.2.3.4")]
    assert with_forwarded_for([("A", "1")], peer) == [("A", "1")]


def test_a_header_can_be_left_out() -> None:
    assert without([("Expect", "x"), ("EXPECT", "y"), ("Expected", "z")], "expect") == [("Expected", "z")]


@pytest.mark.parametrize(
    ("method", "label"), [("GET", "GET"), ("PATCH", "PATCH"), ("PROPFIND", "other"), ("get", "other")]
)
def test_methods_have_labels_of_a_closed_set(method: str, label: str) -> None:
    assert method_label(method) == label


# Targets


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/?",
        "//double//",
        "/a/../b",
        "/a/./b",
        "/%2e%2E/%2f",
        "/a+b;c=d",
        "/%C3%A9%zz",
        "/a?b=/../c#d",
        "/a?x=http://y/",
    ],
)
def test_a_path_stays_byte_for_byte(target: str) -> None:
    assert origin_form("GET", target) == (target, None)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://config/a/../b?c", ("/a/../b?c", "config")),
        ("HTTPS://Config:80//x", ("//x", "Config:80")),
        ("http://config", ("/", "config")),
        ("http://config?x", ("/?x", "config")),
        ("http://[::1]:80/x", ("/x", "[::1]:80")),
    ],
)
def test_an_absolute_form_becomes_a_path_and_a_host(target: str, expected: tuple[str, str]) -> None:
    assert origin_form("GET", target) == expected


def test_options_may_ask_about_the_server() -> None:
    assert origin_form("OPTIONS", "*") == ("*", None)
    assert origin_form("OPTIONS", "http://config") == ("*", "config")
    assert origin_form("OPTIONS", "http://config/") == ("/", "config")


@pytest.mark.parametrize(
    "target",
    ["", "*", "a/b", "config:80", "ftp://config/x", "http://", "http:///x", "http://u:p@config/x", "http://config/x#y",
     "/a b", "/caf\xe9", "/\x00", "/a\r\nB: c", "/\udce9"],
)  # fmt: skip
def test_any_other_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="the target"):
        origin_form("GET", target)


# Requests

V = (1, 1)


@pytest.mark.parametrize(
    ("method", "version", "headers", "status"),
    [
        ("GET", V, [], None),
        ("PROPFIND", (1, 0), [("Content-Length", "3")], None),
        ("POST", V, [("Transfer-Encoding", "Chunked")], None),
        ("POST", V, [("X", "caf\xe9\ttab")], None),
        ("GET", (0, 9), [], 505),
        ("GET", (2, 0), [], 505),
        ("CONNECT", V, [], 501),
        ("POST", V, [("Content-Length", "3"), ("content-length", "3")], 400),
        ("POST", V, [("Content-Length", "3"), ("Transfer-Encoding", "chunked")], 400),
        ("POST", (1, 0), [("Transfer-Encoding", "chunked")], 400),
        ("POST", V, [("Transfer-Encoding", "gzip, chunked")], 501),
        ("POST", V, [("Transfer-Encoding", "identity")], 501),
        ("POST", V, [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], 501),
        ("GET", V, [("X", "a\rb")], 400),
        ("GET", V, [("X", "a\x00b")], 400),
        ("GET", V, [("X", "caf\udce9")], 400),
    ],
)
def test_what_two_parsers_may_read_in_two_ways_is_refused(
    method: str, version: tuple[int, int], headers: Headers, status: int | None
) -> None:
    found = refusal(method, version, headers)
    assert (found and found[0]) == status


# Answers


@pytest.mark.parametrize(
    ("status", "reason", "headers", "sound"),
    [
        (200, "OK", [("X", "caf\xe9"), ("X", "2")], True),
        (599, "", [("Content-Length", "3")], True),
        (200, "OK", [("Transfer-Encoding", "Chunked")], True),
        (101, "Switching", [], False),
        (999, "Odd", [], False),
        (200, "O\nK", [], False),
        (200, "OK", [("N M", "1")], False),
        (200, "OK", [("", "1")], False),
        (200, "OK", [("X", "a\rb")], False),
        (200, "OK", [("Transfer-Encoding", "gzip, chunked")], False),
        (200, "OK", [("Content-Length", "3"), ("Content-Length", "3")], False),
        (200, "OK", [("Content-Length", "3"), ("Transfer-Encoding", "chunked")], False),
    ],
)
def test_the_head_of_an_answer_must_be_sound(status: int, reason: str, headers: Headers, sound: bool) -> None:
    assert is_sound(status, reason, headers) is sound


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("GET", 304, False), ("POST", 500, True)],
)
def test_some_answers_have_no_body(method: str, status: int, body: bool) -> None:
    assert has_body(method, status) is body
