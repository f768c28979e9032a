"""What stands in Redis, and under which keys; what belongs to one owner stands in one slot of a cluster.

| key | what |
|---|---|
| `PREFIX:SPACE:{OWNER}:token` | a random token; what was fetched before it was taken away is of no use |
| `PREFIX:SPACE:{OWNER}:RECORD` | token, instant of the fetch, key of the place, record |
| `PREFIX:SPACE:{NOTE}` | a word about the store itself |
| `PREFIX:SPACE:{group}:eras` | a random era of all records, and of each node that was ever invalidated |
| `PREFIX:SPACE:{group}:changes` | the stream by which the sidecars tell each other of changes |
"""

import re
import struct
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from sidecar.cache.records import KEY_BYTES, Place

TOKEN_BYTES = 16
PLACE_AT = TOKEN_BYTES + 8
HEAD_BYTES = PLACE_AT + KEY_BYTES
NO_RECORDS = (b":token", b":eras", b":changes")
ALL = b"*"
"""The era of all records."""

LEARN = """
local token = redis.call('GET', KEYS[1])
if token then return token end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
"""Return an owner's token, or make it ARGV[1] for ARGV[2] ms."""

STORE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local old = redis.call('GETRANGE', KEYS[2], 0, 23)
if #old == 24 and string.sub(old, 1, 16) == ARGV[1]
  and struct.unpack('>d', string.sub(old, 17)) > struct.unpack('>d', string.sub(ARGV[2], 17, 24)) then return 2 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
"""Keep ARGV[2] for ARGV[3] ms, if the owner's token is still ARGV[1], and nothing younger stands there."""


def packed(token: bytes, fetched_at: float, place: bytes, record: bytes) -> bytes:
    """Return what stands under a record's key."""
    return token + struct.pack(">d", fetched_at) + place + record


class Keyspace:
    """The keys of one group: of one prefix and one upstream."""

    def __init__(self, prefix: str, namespace: str) -> None:
        space = blake2b(namespace.encode(), digest_size=6, person=b"prompt-sidecar").digest()
        self._root = f"{prefix}:{_text(space)}"
        self.eras = f"{self._root}:{{group}}:eras"
        self.changes = f"{self._root}:{{group}}:changes"

    @property
    def pattern(self) -> str:
        """What the keys of all records match, and some others; a prefix may hold what is special in a pattern."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self._root) + ":{*}:*"

    def token(self, owner: bytes) -> str:
        """Return the key of an owner's token."""
        return f"{self._root}:{{{_text(owner[:16])}}}:token"

    def record(self, place: Place, eras: Mapping[bytes, bytes]) -> str:
        """Return the key of a record in these eras: another era, another key."""
        assert place.owner is not None
        node_era = eras.get(place.node, b"") if place.node is not None else b""
        parts = msgspec.msgpack.encode((place.key, eras[ALL], node_era))
        digest = blake2b(parts, digest_size=16, person=b"prompt-sidecar").digest()
        return f"{self._root}:{{{_text(place.owner[:16])}}}:{_text(digest)}"

    def note(self, place: Place) -> str:
        """Return the key of a word about the store itself."""
        return f"{self._root}:{{{_text(place.key[:16])}}}"


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
