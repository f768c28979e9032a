"""Invalidation: by hand, or by another sidecar of the group; here at once, everywhere soon (contract §4 promise 8)."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from sidecar.core.changes import AllVoid, Change, NodeVoid, WriteBegan, WriteEnded
from sidecar.core.events import Invalidated
from sidecar.core.model import PromptKey
from sidecar.service.ports import Cache, Group, Observer
from sidecar.service.writes import Writes


class Forgotten(NamedTuple):
    """How many entries were forgotten."""

    memory: int
    store: int | None
    """Behind the memory; 0 where that is shared, for there nothing is counted. None: it does so later."""
    told: bool | None
    """Whether the group knows of it; False: it is told as soon as Redis is back; None: there is no group."""


class Invalidations:
    """Makes void what is kept, so that the upstream is asked again before it is used."""

    def __init__(self, writes: Writes, cache: Cache, observer: Observer, group: Group | None = None) -> None:
        self._writes = writes
        self._cache = cache
        self._observe = observer
        self._group = group

    async def user(self, user_id: int) -> Forgotten:
        """Invalidate what is kept of one user: 1 is not 12."""
        self._writes.void(user_id)
        memory = self._cache.drop_where(lambda key: key.owner == user_id)
        return await self._done("user", memory, await self._cache.forget(user_id), WriteEnded(user_id, ""))

    async def node(self, node_name: str) -> Forgotten:
        """Invalidate the documents of one node; settings that serve all nodes stay."""
        memory = self._drop_nodes((node_name,))
        return await self._done("node", memory, await self._cache.forget_node(node_name), NodeVoid(node_name))

    async def everything(self) -> Forgotten:
        """Invalidate all that is kept."""
        memory = self._drop_all()
        return await self._done("all", memory, await self._cache.forget_all(), AllVoid())

    def heard(self, changes: Iterable[Change]) -> None:
        """Make void what changes made void elsewhere; memory is looked through once for all nodes."""
        nodes = set()
        for change in changes:
            match change:
                case WriteBegan():
                    self._writes.began_elsewhere(change.owner, change.write, settles_in=change.settles_in)
                    continue  # its end, or its time, will be counted
                case WriteEnded():
                    self._writes.ended_elsewhere(change.owner, change.write)
                    self._observe(Invalidated("group", "user"))
                case NodeVoid():
                    nodes.add(change.node)
                    self._observe(Invalidated("group", "node"))
                case AllVoid():
                    self._drop_all()
                    self._observe(Invalidated("group", "all"))
        if nodes:
            self._drop_nodes(nodes)

    def doubt(self, seconds: float) -> None:
        """Trust nothing from before now for a while: something may have gone unheard."""
        self._writes.doubt(seconds)
        self._observe(Invalidated("group", "gap"))

    def lost_track(self) -> None:
        """Make all void: something went unheard for good."""
        self._drop_all()
        self._observe(Invalidated("group", "all"))

    async def _done(self, scope: str, memory: int, store: int | None, change: Change) -> Forgotten:
        self._observe(Invalidated("admin", scope))
        told = None if self._group is None else await self._group.tell(change)
        return Forgotten(memory, store, told)

    def _drop_nodes(self, names: Collection[str]) -> int:
        self._writes.void_flights()
        return self._cache.drop_where(lambda key: isinstance(key, PromptKey) and key.node_name in names)

    def _drop_all(self) -> int:
        self._writes.void_all()
        return self._cache.drop_where(lambda _: True)
