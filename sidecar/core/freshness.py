"""Age and freshness of an entry under a policy (RFC 9111 §4.2, RFC 5861)."""

from enum import StrEnum
from typing import NamedTuple

from sidecar.core.policy import Policy, Strategy

TTL_SPREAD = 0.1
"""Freshness ends within ±10 % of the ttl, so that pods which started together do not ask together (contract §5)."""


class State(StrEnum):
    """What an entry is good for."""

    FRESH = "fresh"
    REVALIDATABLE = "stale, within stale-while-revalidate"
    USABLE = "stale, within stale-if-error"
    ABSENT = "older, or none"


class Windows(NamedTuple):
    """Ages in seconds at which an entry's uses end."""

    fresh_for: float
    """Fresh below this age (RFC 9111 §4.2: freshness_lifetime > current_age)."""
    revalidate_for: float
    """Served at once, and confirmed behind it, up to and including this age (RFC 5861 §3: "no more than")."""
    usable_for: float
    """Nothing is served past this age, whatever happens (contract §4 promise 2)."""


def windows(policy: Policy, stated_ttl: float | None, spread: float) -> Windows:
    """Return the windows of an entry.

    `stated_ttl`: seconds that the upstream stated, or None; `spread`: the entry's own place in [-1, 1], drawn when it
    was stored. The end of all use is not spread: the promise is ttl + stale_if_error, to the second.
    """
    ttl = min(policy.ttl if policy.ttl is not None else stated_ttl or 0.0, policy.max_ttl)
    usable_for = ttl + policy.stale_if_error
    fresh_for = min(ttl * (1 + TTL_SPREAD * spread), usable_for)
    return Windows(fresh_for, min(fresh_for + policy.stale_while_revalidate, usable_for), usable_for)


def state_of(age: float, w: Windows) -> State:
    """Return what an entry of this age (seconds) is good for."""
    if age < w.fresh_for:
        return State.FRESH
    if age > w.usable_for:
        return State.ABSENT
    if age <= w.revalidate_for and w.revalidate_for > w.fresh_for:
        return State.REVALIDATABLE
    return State.USABLE


def strategy_for(policy: Policy, stated_ttl: float | None) -> Strategy:
    """Resolve `auto`: cache-first where a lifetime is stated (by the upstream or by the policy), else network-first."""
    if policy.strategy is not Strategy.AUTO:
        return policy.strategy
    if policy.ttl is None and stated_ttl is None:
        return Strategy.NETWORK_FIRST
    return Strategy.CACHE_FIRST
