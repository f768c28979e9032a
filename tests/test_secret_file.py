"""Secrets in files: what is none of them, what is refused, and that they are never said again."""

import os
from pathlib import Path

import pytest

from sidecar.secret_file import LARGEST, SecretFileError, read_file, read_secret

SECRET = "canary-7f3a"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_newline_at_the_end_is_none_of_the_secret(end: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(f"{SECRET}{end}".encode())
    assert read_secret(tmp_path / "token") == SECRET


def test_blanks_are(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f" {SECRET} \n")
    assert read_secret(tmp_path / "token") == f" {SECRET} "


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (f"{SECRET}\n{SECRET}\n".encode(), "has more than one line"),
        (f"{SECRET}\xff".encode("latin-1"), "is not UTF-8 text"),
        (SECRET.encode() * LARGEST, f"is larger than {LARGEST} bytes"),
    ],
)
def test_what_is_no_secret_is_refused_without_a_word_of_it(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(SecretFileError) as refused:
        read_secret(path)
    assert str(refused.value) == f"{path} {why}"


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SecretFileError, match=why):
            read_file(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to whose writer an open() would wait for ever
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(SecretFileError, match=f"{name} is no regular file"):
            read_file(tmp_path / name)


def test_a_link_to_a_file_is_followed_as_kubernetes_has_it(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text(SECRET)
    (tmp_path / "token").symlink_to("..data/token")
    assert read_secret(tmp_path / "token") == SECRET
