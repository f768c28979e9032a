"""What the sidecars of a group tell each other: whose data is no longer to be trusted (contract §4 promise 8)."""

import msgspec


class WriteBegan(msgspec.Struct, frozen=True, tag="began", array_like=True):
    """A change of settings is on its way; without word of its end it is over in `settles_in` seconds."""

    owner: int | None
    """None: what belongs to nobody."""
    write: str
    settles_in: float


class WriteEnded(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """A change of settings has ended, or a user's data is invalidated (`write` empty)."""

    owner: int | None
    write: str


class NodeVoid(msgspec.Struct, frozen=True, tag="node", array_like=True):
    """What is kept of a node is invalidated."""

    node: str


class AllVoid(msgspec.Struct, frozen=True, tag="all", array_like=True):
    """All that is kept is invalidated."""


Change = WriteBegan | WriteEnded | NodeVoid | AllVoid
