"""By what name a request may ask for us, and which pages may not ask at all."""

import pytest

from sidecar.core.doors import host_of, is_cross_site, is_own_host

NAMES = frozenset({"config", "prompts.example.com"})


@pytest.mark.parametrize(
    "authority",
    [
        *("localhost", "localhost:8002", "LocalHost:8002", "localhost.:8002", "localhost:"),
        *("127.0.0.1:8002", "127.8.8.8", "[::1]:8002", "[::ffff:127.0.0.1]:8002"),
        *("10.244.3.7:9102", "203.0.113.5", "[fd00::17]:9102", "0.0.0.0:8002"),
        *("config:8002", "CONFIG", "prompts.example.com", "prompts.example.com.:443"),
    ],
)
def test_an_address_localhost_and_given_names_are_ours(authority: str) -> None:
    assert is_own_host(authority, NAMES)


@pytest.mark.parametrize(
    "authority",
    [
        *("evil.example", "evil.example:8002", "localhost.evil.example", "evil.localhost", "notconfig:8002"),
        *("127.0.0.1.evil.example:8002", "127.1:8002", "2130706433", "0x7f.0.0.1", "[::1].evil.example"),
        *("", ":8002", "[]:8002", "::1", "localhost:8002:1", "localhost:http", "user@localhost", "local host"),
        *("localhost,evil.example", "sub.prompts.example.com", "localhost/", "localhost:123456"),
    ],
)
def test_any_other_name_is_not(authority: str) -> None:
    assert not is_own_host(authority, NAMES)


@pytest.mark.parametrize(
    ("authority", "host"),
    [("Some.Host.:80", "some.host"), ("[FD00::1]:80", "fd00::1"), ("10.0.0.1", "10.0.0.1"), ("[::1", None)],
)
def test_the_host_of_an_authority_is_written_in_one_way(authority: str, host: str | None) -> None:
    assert host_of(authority) == host


HERE = "localhost:8002"
SITES = [
    # Origin, Sec-Fetch-Site, cross-site
    (None, None, False),
    (None, "same-origin", False),
    (None, "none", False),
    (None, "same-site", False),
    (None, "cross-site", True),
    (None, "something new", True),
    ("http://localhost:8002", None, False),
    ("http://localhost:3000", "same-site", False),
    ("http://LOCALHOST", None, False),
    ("https://localhost:8002", None, False),
    ("http://localhost:8002", "cross-site", True),
    ("http://127.0.0.1:8002", None, True),
    ("https://prompts.example.com", None, False),
    ("https://Config:1", "cross-site", False),
    ("http://evil.example", None, True),
    ("http://evil.example", "same-origin", True),
    ("http://localhost.evil.example:8002", None, True),
    ("http://localhost@evil.example", None, True),
    ("null", None, True),
    ("", None, True),
    ("file://", None, True),
    ("chrome-extension://abc", None, True),
]


@pytest.mark.parametrize(("origin", "fetch_site", "cross"), SITES)
def test_a_page_of_another_site_is_told_by_what_the_browser_says(
    origin: str | None, fetch_site: str | None, cross: bool
) -> None:
    assert is_cross_site(origin, fetch_site, HERE, NAMES) is cross


def test_an_origin_without_a_host_of_ours_to_compare_is_another_site() -> None:
    assert is_cross_site("http://localhost", None, "", NAMES)
