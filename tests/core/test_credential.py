"""What a request's Authorization is known by: the same for the same, another for another, and never itself."""

from sidecar.core.credential import NOBODY, Credentials

KEY = b"k" * 32


def test_each_credential_has_a_tag_of_its_own_that_does_not_tell_it() -> None:
    one, other = Credentials(KEY).of("Bearer one"), Credentials(KEY).of("Bearer other")
    assert one.tag != other.tag
    assert one == Credentials(KEY).of("Bearer one")
    assert one.authorization == "Bearer one"
    assert "Bearer" not in repr(one)
    assert "one" not in one.tag


def test_another_key_makes_another_tag() -> None:
    assert Credentials(b"another" * 5).of("Bearer one").tag != Credentials(KEY).of("Bearer one").tag


def test_who_brings_none_is_nobody() -> None:
    assert Credentials(KEY).of(None) is NOBODY


def test_bytes_that_are_no_text_are_told_apart_as_well() -> None:
    assert Credentials(KEY).of("Bearer \udcff").tag != Credentials(KEY).of("Bearer \udcfe").tag
