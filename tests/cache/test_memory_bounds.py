"""The memory tier's bound in bytes is one of real memory, whatever is offered."""

import gc
import json
import subprocess
import sys
import tracemalloc

import msgspec
import psutil
import pytest

from sidecar.cache.memory import MemoryCache
from sidecar.core.model import Document, Entry, Kept, PromptKey, SettingsKey, UserSettings
from sidecar.core.policy import Policy
from tests.fakes import compiled

MIB = 2**20
FACTOR = 1.25
"""Resident memory may pass `max_bytes` by a quarter: what the allocator holds back, and tables that have just grown."""
FIXED = 8 * MIB
"""And by this much, however small `max_bytes` is: tables while they grow."""
decode = msgspec.json.Decoder(dict[str, str]).decode
decode_text = msgspec.json.Decoder(str).decode


def arrive(cache: MemoryCache, user: int, values: dict[str, str], *, kind: str = "document", own: bool = False) -> None:
    """Keep an entry as a fetch would bring it: all decoded anew; `own`: with an ETag and a name like no other's."""
    names = " ".join(f"{{{{ {name} }}}}" for name in values)
    given = decode(msgspec.json.encode(values))
    required = decode_text(msgspec.json.encode(f"topic_{user}" if own else "topic"))
    kept: Kept = UserSettings(given)
    key: PromptKey | SettingsKey = SettingsKey(1000 + user)
    if kind == "document":
        template = compiled(f"Explain {{{{ topic }}}} in {names}", autoescape=True)
        etag = f'"{user:032x}"' if own else None
        kept = Document.of(template, given, required=frozenset([required]), stated_ttl=300.0 + user, etag=etag)
        key = PromptKey(1000 + user, decode_text(b'"answer_question"'))
    cache._keep(key, Entry.of(kept, 1e6 + user, user / 1e6, Policy()), 1200.0 + user)


def offer(max_bytes: int, keys: int, *, shared: bool) -> dict[str, int]:
    """Offer distinct keys in this process; return what was resident before, and the most after that."""
    cache = MemoryCache(max_entries=10_000_000, max_bytes=max_bytes, clock=lambda: 1e6)
    process, policy = psutil.Process(), Policy()
    common = Entry.of(UserSettings({"style": "plain words"}), 0.0, 0.0, policy)
    before = most = process.memory_info().rss
    for user in range(keys):
        entry = common
        if not shared:
            values = {"style": f"{user} {'x' * (user % 150)}"}
            entry = Entry.of(UserSettings(values), float(user), 0.0, policy)
        cache._keep(SettingsKey(user), entry, 60.0)
        if user % 1_000 == 0:
            most = max(most, process.memory_info().rss)
    return {"before": before, "most": most, "counted": cache.bytes, "entries": len(cache)}


@pytest.mark.parametrize(
    ("keys", "mib", "shared"),
    [pytest.param(1_000_000, 32, True, id="alike"), pytest.param(120_000, 16, False, id="unlike")],
)
def test_a_million_distinct_keys_stay_within_max_bytes_and_the_stated_overhead(
    keys: int, mib: int, shared: bool
) -> None:
    program = f"import json\nfrom {__name__} import *\nprint(json.dumps(offer({mib * MIB}, {keys}, shared={shared})))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["counted"] <= mib * MIB
    assert told["entries"] * 1200 > told["counted"]
    assert told["most"] - told["before"] <= FACTOR * mib * MIB + FIXED


@pytest.mark.parametrize("at_rest", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("letter", ["x", "ж"])
@pytest.mark.parametrize(
    ("kind", "count", "length"),
    [("document", 0, 0), ("document", 1, 0), ("document", 10, 80), ("document", 40, 20), ("settings", 10, 80)],
)
def test_the_bytes_counted_are_those_taken_or_up_to_four_fifths_more(
    kind: str, count: int, length: int, letter: str, own: bool, at_rest: bool
) -> None:
    cache = MemoryCache(max_entries=10_000, max_bytes=1 << 40, clock=lambda: 1e6)
    cache._max_live_bytes = 0 if at_rest else 1 << 40

    def offer(users: range) -> None:
        for user in users:
            text = f"{user if own else user % 8} " + letter * length
            arrive(cache, user, {f"setting_{n}": f"{n} {text}" for n in range(count)}, kind=kind, own=own)

    offer(range(10))
    before = cache.bytes
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        offer(range(10, 320))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    counted = cache.bytes - before
    assert 1.0 <= counted / taken <= 1.8  # the most where many short texts, or texts beyond ASCII, are not shared
