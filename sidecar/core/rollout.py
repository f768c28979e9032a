"""Who gets prompts rendered here, and who the config service's own (settings: `rollout`)."""

import hashlib
from dataclasses import dataclass

_BITS = 53  # what a float holds exactly; with more, the highest hash would round to 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRule:
    """Which requests are rendered here; the fraction is of the users, 0 to 1."""

    fraction: float
    nodes: frozenset[str] | None
    """None: all of them."""
    exclude: frozenset[str]
    """Beats `nodes`."""

    @property
    def everyone(self) -> bool:
        """Whether nothing is ever bypassed."""
        return self.fraction >= 1 and self.nodes is None and not self.exclude


def includes(rule: RolloutRule, user_id: int, node: str) -> bool:
    """Return whether this user's prompt for this node is rendered here."""
    if node in rule.exclude or (rule.nodes is not None and node not in rule.nodes):
        return False
    return bucket(user_id) < rule.fraction


def bucket(user_id: int) -> float:
    """Return the user's place in the rollout, from 0 to below 1: the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{user_id:x}".encode(), digest_size=8, person=b"rollout").digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)
