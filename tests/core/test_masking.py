"""Settings and texts without their secrets."""

from typing import Any

import pytest

from sidecar.core.masking import masked
from sidecar.settings import Settings, effective


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"password": "hunter2"}, {"password": "***"}),
        ({"upstream": {"api_key": "k", "url": "http://host"}}, {"upstream": {"api_key": "***", "url": "http://host"}}),
        ({"Authorization": "Bearer x"}, {"Authorization": "***"}),
        ({"headers": ["a=b", "c=d"]}, {"headers": ["***", "***"]}),
        ({"password_file": "/run/secrets/redis"}, {"password_file": "/run/secrets/redis"}),
        ({"admin_token_file": "null", "token": "null", "secret": ""},) * 2,
        ({"max_headers": 100, "has_secret": True, "token": None},) * 2,
        ({"url": "redis://ann:hunter2@one:1,two:2/0"}, {"url": "redis://***@one:1,two:2/0"}),
    ],
)
def test_what_may_be_a_secret_is_masked_and_nothing_else(settings: dict[str, Any], shown: dict[str, Any]) -> None:
    assert masked(settings) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("upstream.url: 'http://ann:hunter2@host/' is not allowed", "upstream.url: 'http://***@host/' is not allowed"),
        ("http://hunter2@host and https://ann:x@host", "http://***@host and https://***@host"),
        ("http://host/path@home?x=a@b", "http://host/path@home?x=a@b"),
        ("ann@host", "ann@host"),
    ],
)
def test_a_text_loses_the_user_part_of_its_urls(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked((text,)) == [shown]


def test_of_the_defaults_nothing_needs_to_be_masked() -> None:
    assert masked(effective(Settings())) == effective(Settings())
