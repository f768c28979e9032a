"""`prompt-sidecar drill`: rehearse, and report, also what was measured before an interruption."""

import asyncio

from sidecar.demo.drill.plan import Plan
from sidecar.demo.drill.rehearsal import Rehearsal
from sidecar.demo.drill.shown import Result, print_json, print_report, progress
from sidecar.demo.processes import ChildError


async def drill(plan: Plan, *, as_json: bool) -> int:
    """Run the drill and return the exit code; raises `PlanError` and `ChildError`."""
    tell = print_json if as_json else print_report
    with progress(plan, quiet=as_json) as show:
        rehearsal = Rehearsal(plan, show)
        try:
            await rehearsal.run()
        except (asyncio.CancelledError, ChildError):
            if rehearsal.phases:
                tell(Result.of(rehearsal, is_whole=False))
            raise
    result = Result.of(rehearsal, is_whole=True)
    tell(result)
    return 0 if result.passed else 1
