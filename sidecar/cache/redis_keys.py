"""What stands in Redis, and under which keys; what belongs to one owner stands in one slot of a cluster.

| key | what |
|---|---|
| `PREFIX:SPACE:{OWNER}:token` | a random token, under which records count; or `!` and a write that is on its way |
| `PREFIX:SPACE:{OWNER}:writes` | the owner's writes that are on their way, and until when |
| `PREFIX:SPACE:{OWNER}:RECORD` | token, instant of the fetch by Redis's clock, key of the place, record |
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
NO_RECORDS = (b":token", b":writes", b":eras", b":changes")
MARK = b"!"
"""What a token begins with that is none: a write is on its way, and nothing of the owner is to be kept."""
ALL = b"*"
"""The era of all records."""

LEARN = """
local token = redis.call('GET', KEYS[1])
if token then return token end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
"""Return an owner's token, or make it ARGV[1] for ARGV[2] ms."""

CHANGE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if ARGV[2] == '0' then redis.call('ZREM', KEYS[2], ARGV[1])
else redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1]) end
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if #last == 0 then return redis.call('DEL', KEYS[1]) end
local left = math.max(1, last[2] - now)
redis.call('SET', KEYS[1], '!' .. last[1], 'PX', left)
redis.call('PEXPIRE', KEYS[2], left)
"""
"""Take an owner's token away: for as long as a write of his is on its way. ARGV[2]: ms for which ARGV[1] is; 0: it has
ended."""

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

    def writes(self, owner: bytes) -> str:
        """Return the key of an owner's writes that are on their way."""
        return f"{self._root}:{{{_text(owner[:16])}}}:writes"

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
