"""What a node's entries may be used for, and for how long (contract §4 promise 2, §5)."""
# ruff: noqa: RUF009 # setting() returns a dataclasses.field(); nothing mutable is made

from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.units import Choice, Either, duration, setting


class Strategy(StrEnum):
    """When the upstream is asked (contract §5)."""

    AUTO = "auto"
    CACHE_FIRST = "cache-first"
    NETWORK_FIRST = "network-first"
    NETWORK_ONLY = "network-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a node's entries may be used for, and for how long; all durations in seconds."""

    strategy: Strategy = setting(
        Strategy.AUTO,
        Choice(Strategy),
        "`auto` is cache-first where the upstream states a lifetime and network-first where it states none, "
        "so that a changed setting is seen as soon as today",
    )
    ttl: float | None = setting(
        None,
        Either("upstream", duration("0s", "30d")),
        "how long an entry is fresh; `upstream` takes the lifetime that the config service states. "
        "Spread by a tenth either way, so that pods do not ask in step",
    )
    max_ttl: float = setting(
        3600.0,
        duration("0s", "30d"),
        "caps the ttl, whoever states it: a typo must not pin a prompt for a year",
    )
    stale_while_revalidate: float = setting(
        30.0,
        duration("0s", "30d"),
        "after the ttl, this long the stale entry is served at once and confirmed behind it (RFC 5861 §3); "
        "counts only as far as stale_if_error reaches, which is the end of all use",
    )
    stale_if_error: float = setting(
        900.0,
        duration("0s", "30d"),
        "after the ttl, this long a stale entry may stand in for an upstream that gives no answer (RFC 5861 §4); "
        "nothing older than ttl + stale_if_error is ever used. 15 m covers a roll-back or a database restart",
    )
    network_timeout: float = setting(
        1.0,
        duration("0s", "10m"),
        "how long a request waits for the upstream while usable stale data is at hand; "
        "the fetch then goes on behind it",
    )
