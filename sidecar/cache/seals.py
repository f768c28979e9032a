"""How a record is closed before it leaves the process, and opened again: summed, signed or encrypted.

| seal | layout |
|---|---|
| summed | content, blake2b-128 |
| signed | `PSS`, key id, content, HMAC-SHA256 |
| encrypted | `PSE`, key id, nonce, AES-256-GCM of the content with its tag |

Each is bound to where the record is kept: moved to another place, it opens no more.
"""

import binascii
import hmac
import os
import re
from base64 import b64decode
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Protocol, TypeVar

from sidecar.secret_file import SecretFileError, read_whole

T = TypeVar("T")

SUM_BYTES = 16
"""Of blake2b over place and content: it misses no torn sector, as a CRC may."""
KEY_BYTES = 32
ID_BYTES = 4
NONCE_BYTES = 12
"""Random, so one key closes at most 2^32 records (NIST SP 800-38D §8.3): rotate it before."""
MAC_BYTES = 32
_SIGNED, _ENCRYPTED = b"PSS", b"PSE"
_HEX = re.compile(r"[0-9A-Fa-f]{64}")


class RecordError(Exception):
    """A record cannot be used; `reason`: version, checksum, shape, template, seal, key or signature."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyFileError(ValueError):
    """A key file cannot be used; says where and why, and nothing of a key."""


class Seal(Protocol):
    """How records are closed and opened."""

    def close(self, place: bytes, content: bytes) -> bytes:
        """Return the content, closed for this place."""
        ...

    def open(self, place: bytes, data: bytes) -> bytes:
        """Return the content; raises `RecordError`."""
        ...


class Summed:
    """Against accidents: whoever can write can make it."""

    def close(self, place: bytes, content: bytes) -> bytes:
        """Return the content and its sum."""
        return content + _sum(place, content)

    def open(self, place: bytes, data: bytes) -> bytes:
        """Return the content; raises `RecordError`."""
        content, given = data[:-SUM_BYTES], data[-SUM_BYTES:]
        if given != _sum(place, content):
            raise RecordError("seal" if data.startswith((_SIGNED, _ENCRYPTED)) else "checksum")
        return content


class Signed:
    """Against whoever can write, but has none of the keys: he cannot plant a template."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys`: the first signs, all of them are known."""
        self._keys = {_id(key): key for key in reversed(keys)}
        self._first = keys[0]

    def close(self, place: bytes, content: bytes) -> bytes:
        """Return the content with a signature."""
        head = _SIGNED + _id(self._first)
        return head + content + _mac(self._first, place, head + content)

    def open(self, place: bytes, data: bytes) -> bytes:
        """Return the content; raises `RecordError`."""
        key = _key_of(data, _SIGNED, self._keys)
        signed, given = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if not hmac.compare_digest(given, _mac(key, place, signed)):
            raise RecordError("signature")
        return signed[len(_SIGNED) + ID_BYTES :]


class Encrypted:
    """Against whoever can read or write, but has none of the keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys`: the first encrypts, all of them are known."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 30 ms that only this seal pays

        self._keys = {_id(key): AESGCM(key) for key in reversed(keys)}
        self._first = _id(keys[0])

    def close(self, place: bytes, content: bytes) -> bytes:
        """Return the content, encrypted."""
        head, nonce = _ENCRYPTED + self._first, os.urandom(NONCE_BYTES)
        return head + nonce + self._keys[self._first].encrypt(nonce, content, head + place)

    def open(self, place: bytes, data: bytes) -> bytes:
        """Return the content; raises `RecordError`."""
        from cryptography.exceptions import InvalidTag

        cipher = _key_of(data, _ENCRYPTED, self._keys)
        start = len(_ENCRYPTED) + ID_BYTES
        head, nonce, closed = data[:start], data[start : start + NONCE_BYTES], data[start + NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, closed, head + place)
        except (InvalidTag, ValueError) as error:
            raise RecordError("signature") from error


def read_keys(path: Path) -> list[bytes]:
    """Return a file's keys, one a line, 32 bytes each as base64 or hexadecimal; raises `KeyFileError`.

    Blank lines and lines that begin with # say nothing.
    """
    try:
        lines = read_whole(path).decode("ascii").splitlines()
    except SecretFileError as error:
        raise KeyFileError(str(error)) from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is no text: a line for each key is wanted, as base64 or hexadecimal") from error
    keys: list[bytes] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        key = _decoded(line)
        if key is None:
            raise KeyFileError(f"{path}, line {number}: no key; allowed is 32 bytes as base64 or as 64 hex digits")
        if key in keys:
            raise KeyFileError(f"{path}, line {number}: this key stands there twice")
        keys.append(key)
    if not keys:
        raise KeyFileError(f"{path} has no key; make one with: head -c 32 /dev/urandom | base64")
    return keys


def _decoded(line: str) -> bytes | None:
    if _HEX.fullmatch(line):
        return bytes.fromhex(line)
    try:
        key = b64decode(line, validate=True)
    except binascii.Error:
        return None
    return key if len(key) == KEY_BYTES else None


def _key_of(data: bytes, sign: bytes, keys: dict[bytes, T]) -> T:
    if not data.startswith(sign):
        raise RecordError("seal")
    key = keys.get(data[len(sign) : len(sign) + ID_BYTES])
    if key is None:
        raise RecordError("key")
    return key


def _id(key: bytes) -> bytes:
    return blake2b(key, digest_size=ID_BYTES, person=b"sidecar key id").digest()


def _sum(place: bytes, content: bytes) -> bytes:
    return blake2b(content, digest_size=SUM_BYTES, key=place, person=b"prompt-sidecar").digest()


def _mac(key: bytes, place: bytes, content: bytes) -> bytes:
    return hmac.digest(key, len(place).to_bytes(2, "big") + place + content, sha256)
