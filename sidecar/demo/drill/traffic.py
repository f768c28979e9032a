"""Steady traffic: at its rate, whatever becomes of the requests before, to the sidecar and to the service itself."""

import asyncio
import time
from dataclasses import replace
from typing import NamedTuple

import aiohttp

from sidecar.demo.asking import ASK_SECONDS, Answer, as_learnflow, ask
from sidecar.demo.drill.oracle import Oracle
from sidecar.demo.drill.plan import Plan
from sidecar.demo.drill.tally import LATE_BY, Asked, Kind


class _Side(NamedTuple):
    """Who is asked, and what came of it."""

    session: aiohttp.ClientSession
    address: str
    asked: list[Asked]


class Traffic:
    """The requests of a drill, and what came of them: `asked` of the sidecar, and `direct`, of the service."""

    def __init__(self, plan: Plan, oracle: Oracle, *, sidecar: str, service: str) -> None:
        self._plan = plan
        self._oracle = oracle
        self._sidecar, self._service = sidecar, service
        self._began_at = time.monotonic()
        self._is_over = False
        self.asked: list[Asked] = []
        self.direct: list[Asked] = []

    def now(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self._began_at

    def stop(self) -> None:
        """Ask no more; what is under way is waited for."""
        self._is_over = True

    async def flow(self) -> None:
        """Ask for each pair in turn until told to stop; cancelled, it drops what is under way."""
        patience = self._plan.settings.deadline + LATE_BY
        pairs, number = self._plan.pairs, 0
        async with as_learnflow(patience) as ours, as_learnflow(ASK_SECONDS) as bare, asyncio.TaskGroup() as tasks:
            sides = _Side(ours, self._sidecar, self.asked), _Side(bare, self._service, self.direct)
            while not self._is_over:
                user, node = pairs[number % len(pairs)]
                number += 1
                for side in sides:
                    tasks.create_task(self._one(side, number, user, node))
                await asyncio.sleep(max(0.0, number / self._plan.rate - self.now()))

    async def _one(self, side: _Side, number: int, user: int, node: str) -> None:
        at = self.now()
        context = self._oracle.context(node, number)
        try:
            answer = await ask(side.session, side.address, node, user, context)
        except (aiohttp.ClientError, TimeoutError):
            answer = None
        asked = Asked(at=at, user=user, node=node, kind=Kind.UNANSWERED, seconds=self.now() - at)
        side.asked.append(asked if answer is None else self._judged(answer, number, asked))

    def _judged(self, answer: Answer, number: int, asked: Asked) -> Asked:
        """Compare an answer with what the service would have said, now or before."""
        asked = replace(asked, status=answer.status)
        if answer.kind == "error":
            return replace(asked, kind=Kind.REFUSED)
        revision = self._oracle.revision_of(asked.user, asked.node, number, answer.prompt)
        if revision is None:
            return replace(asked, kind=Kind.WRONG)
        since = self._oracle.outdated_since(revision)
        proven = 0.0 if since is None else self._began_at + asked.at - since
        return replace(
            asked,
            kind=Kind.STALE if answer.kind == "stale" else Kind.FRESH,
            age=max(answer.age, proven),  # what it says, and what the settings show that it was made with
            is_newest=since is None,
        )
