"""A plan as the command line makes it."""

from dataclasses import replace
from typing import Any

from sidecar.demo.drill.plan import Plan
from sidecar.demo.reference.state import Generation
from sidecar.settings import Settings


def plan_of(settings: Settings, **changes: Any) -> Plan:
    plan = Plan(
        settings=settings,
        source="the defaults",
        failures=("refused", "503"),
        duration=10.0,
        recovery=30.0,
        rate=20,
        users=5,
        nodes=("generating_content", "answer_question", "generating_questions"),
        cache_ttl=2.0,
        generation=Generation.PROMPT_DATA,
        objective=0.99,
    )
    return replace(plan, **changes)
