"""Seals: what was written by another hand, with another key or for another place, opens no more."""

import base64
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache.seals import Encrypted, KeyFileError, RecordError, Seal, Signed, Summed, read_keys

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
PLACE, ELSEWHERE = b"p" * 32, b"q" * 32
SEALS: dict[str, Seal] = {"summed": Summed(), "signed": Signed([A]), "encrypted": Encrypted([A])}
EACH = pytest.mark.parametrize("seal", SEALS.values(), ids=SEALS.keys())


@EACH
@given(content=st.binary(max_size=500))
def test_what_is_closed_opens(seal: Seal, content: bytes) -> None:
    assert seal.open(PLACE, seal.close(PLACE, content)) == content


@EACH
def test_one_flipped_bit_anywhere_or_a_cut_and_it_does_not_open(seal: Seal) -> None:
    data = seal.close(PLACE, b"content of a record")
    for place in range(len(data)):
        for broken in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[place + 1 :]):
            with pytest.raises(RecordError):
                seal.open(PLACE, broken)


@EACH
def test_in_another_place_it_does_not_open(seal: Seal) -> None:
    with pytest.raises(RecordError, match=r"checksum|signature"):
        seal.open(ELSEWHERE, seal.close(PLACE, b"content"))


@EACH
@given(data=st.binary(max_size=200))
def test_what_nobody_closed_does_not_open_and_does_nothing_worse(seal: Seal, data: bytes) -> None:
    for each in (data, b"PSS" + data, b"PSE" + data):
        with pytest.raises(RecordError):
            seal.open(PLACE, each)


@pytest.mark.parametrize("closed", SEALS)
@pytest.mark.parametrize("opened", SEALS)
def test_what_is_closed_in_another_way_is_refused(closed: str, opened: str) -> None:
    if closed == opened:
        return
    with pytest.raises(RecordError, match=r"^(seal|checksum)$"):
        SEALS[opened].open(PLACE, SEALS[closed].close(PLACE, b"content"))


@pytest.mark.parametrize("kind", [Signed, Encrypted])
class TestRotation:
    """Two keys at a time: the new one is added behind, then before the old one, which goes in the end."""

    def test_the_first_key_closes_and_all_of_them_open(self, kind: type[Signed | Encrypted]) -> None:
        old, both, turned, new = kind([A]), kind([A, B]), kind([B, A]), kind([B])
        for closing, opening in ((old, both), (both, old), (old, turned), (turned, both), (turned, new)):
            assert opening.open(PLACE, closing.close(PLACE, b"content")) == b"content"

    def test_a_key_that_is_not_known_is_named_as_the_reason(self, kind: type[Signed | Encrypted]) -> None:
        with pytest.raises(RecordError, match=r"^key$"):
            kind([B, C]).open(PLACE, kind([A]).close(PLACE, b"content"))


def test_what_is_encrypted_shows_nothing_and_never_looks_the_same_twice() -> None:
    seal = Encrypted([A])
    closed = {seal.close(PLACE, b"canary" * 10) for _ in range(10_000)}
    assert len({each[7:19] for each in closed}) == 10_000, "a nonce came twice"
    assert not any(b"canary" in each for each in closed)


# Key files


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_keys_are_read_as_base64_or_hexadecimal_with_blank_lines_and_comments(tmp_path: Path) -> None:
    lines = ["# new since May", base64.b64encode(A).decode(), "", f"  {B.hex().upper()}  ", ""]
    assert read_keys(written(tmp_path, "\n".join(lines))) == [A, B]
    assert read_keys(written(tmp_path, "\r\n".join(lines))) == [A, B]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no key; make one with: head -c 32 /dev/urandom | base64"),
        ("# nothing\n\n", "has no key"),
        (f"{A.hex()}\nsecret", "line 2: no key; allowed is 32 bytes as base64 or as 64 hex digits"),
        (base64.b64encode(b"short").decode(), "line 1: no key"),
        (base64.b64encode(b"x" * 33).decode(), "line 1: no key"),
        (f"{A.hex()}\n{base64.b64encode(A).decode()}", "line 2: this key stands there twice"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_a_sentence_that_shows_no_key(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    with pytest.raises(KeyFileError, match=re.escape(says)) as caught:
        read_keys(written(tmp_path, content))
    assert "secret" not in str(caught.value)
    assert A.hex() not in str(caught.value)


def test_a_key_file_that_is_missing_or_a_folder_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(KeyFileError, match=f"{re.escape(str(path))} cannot be read: "):
            read_keys(path)


def test_a_key_made_as_the_message_says_can_be_read(tmp_path: Path) -> None:
    assert len(read_keys(written(tmp_path, base64.b64encode(os.urandom(32)) + b"\n"))) == 1


def test_a_pipe_is_no_key_file_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(KeyFileError, match="keys is no regular file"):
        read_keys(tmp_path / "keys")
