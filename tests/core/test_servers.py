"""Kinds of settings that say where Redis is."""

import pytest

from sidecar.core.servers import RedisServers, RedisUrl, Word


@pytest.mark.parametrize(
    ("text", "servers", "written"),
    [
        ("redis://a", RedisServers(is_tls=False, hosts=(("a", 6379),)), "redis://a:6379"),
        ("redis://a/", RedisServers(is_tls=False, hosts=(("a", 6379),)), "redis://a:6379"),
        ("redis://a:1/15", RedisServers(is_tls=False, hosts=(("a", 1),), database=15), "redis://a:1/15"),
        ("rediss://10.0.0.1", RedisServers(is_tls=True, hosts=(("10.0.0.1", 6379),)), "rediss://10.0.0.1:6379"),
        ("rediss://[::1]:7", RedisServers(is_tls=True, hosts=(("::1", 7),)), "rediss://[::1]:7"),
        ("redis://[::1]", RedisServers(is_tls=False, hosts=(("::1", 6379),)), "redis://[::1]:6379"),
        ("redis://a,b:2,c.d", RedisServers(is_tls=False, hosts=(("a", 6379), ("b", 2), ("c.d", 6379))), None),
    ],
)
def test_a_redis_url_is_read_and_written(text: str, servers: RedisServers, written: str | None) -> None:
    assert RedisUrl().parse(text) == servers
    again = RedisUrl().format(servers)
    assert RedisUrl().parse(again) == servers
    assert written is None or again == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:6379",
        "http://a",
        "redis://",
        "redis://:6379",
        "redis://a:0",
        "redis://a:99999",
        "redis://a,,b",
        "redis://a,",
        "redis://user:secret@a",
        "redis://a/x",
        "redis://a/1/2",
        "redis://a?db=1",
        "redis://a b",
        "unix:///tmp/redis",
        "redis://a\n",
    ],
)
def test_what_is_no_redis_url_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^redis\[s\]://host") as caught:
        RedisUrl().parse(text)
    assert "secret" not in str(caught.value)


def test_a_word_has_no_blanks() -> None:
    assert Word().format(Word().parse("prompt-sidecar:a")) == "prompt-sidecar:a"
    for text in ("", "a b", "a\tb", "a\n", "x" * 129, "\x00"):
        with pytest.raises(ValueError, match="without blanks"):
            Word().parse(text)
