"""What is rehearsed: the settings as they are, but for what would reach beyond this machine or outlast the drill."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sidecar.core.freshness import TTL_SPREAD, Windows, windows
from sidecar.core.policy import Policy, Strategy
from sidecar.demo.reference.state import Generation, ReferenceOptions, State, usual_render
from sidecar.settings import Settings, StoreKind, TlsSettings, UpstreamApi, effective

REFUSED = "refused"
"""The failure that no running service can show: nobody listens."""
FIRST_USER = 101
USUAL_NODES = ("generating_content", "answer_question", "generating_questions")


class PlanError(Exception):
    """This cannot be rehearsed; a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A drill. Durations in seconds, `rate` in requests a second, `objective` from 0 to 1."""

    settings: Settings
    source: str
    """Where the settings came from."""
    failures: tuple[str, ...]
    duration: float
    recovery: float
    """At most; it ends as soon as all prompts are fresh again."""
    rate: int
    users: int
    nodes: tuple[str, ...]
    cache_ttl: float
    generation: Generation
    objective: float

    @property
    def pairs(self) -> list[tuple[int, str]]:
        """Who asks for what, in turn."""
        return [(FIRST_USER + number, node) for number in range(self.users) for node in self.nodes]

    @property
    def baseline(self) -> float:
        """How long all is well at first: each pair is asked for twice."""
        return max(1.0, 2 * self.round_seconds)

    @property
    def stated_ttl(self) -> float | None:
        """The lifetime that the service states."""
        return self.cache_ttl if self.generation is Generation.PROMPT_DATA else None

    def policy(self, node: str) -> Policy:
        """Return the policy of a node."""
        return self.settings.policy.for_node(node)

    def windows(self, node: str) -> Windows:
        """Return the ages at which the uses of a node's data end."""
        return windows(self.policy(node), self.stated_ttl, 0.0)

    def limit(self, node: str) -> float:
        """Return the age that nothing which is served may have: reckoned here, not by the code that is on trial."""
        policy = self.policy(node)
        if policy.strategy is Strategy.NETWORK_ONLY:
            return 0.0
        ttl = policy.ttl if policy.ttl is not None else self.stated_ttl or 0.0
        return min(ttl, policy.max_ttl) + policy.stale_if_error

    @property
    def recovers_within(self) -> float:
        """How long a recovery may take: an open circuit waits for its trial call, and fresh data for its end."""
        longest_ttl = max(self.windows(node).fresh_for for node in self.nodes)
        return (
            longest_ttl * (1 + TTL_SPREAD)
            + self.settings.breaker.reset_timeout
            + self.settings.deadline
            + 2 * self.round_seconds
        )

    @property
    def round_seconds(self) -> float:
        """How long it takes to ask for each pair once."""
        return len(self.pairs) / self.rate

    def reference(self, database: str) -> ReferenceOptions:
        """Return what the reference service is told to be."""
        return ReferenceOptions(
            templates=self.settings.upstream.templates_file or ReferenceOptions().templates,
            database=database,
            generation=self.generation,
            render=usual_render(self.generation),
            cache_ttl=self.cache_ttl,
        )


def generation_of(settings: Settings) -> Generation:
    """Return the generation that the settings are made for; with `auto`, a template file speaks of today's."""
    if settings.upstream.api is not UpstreamApi.AUTO:
        return Generation(settings.upstream.api.value)
    return Generation.PROMPT_DATA if settings.upstream.templates_file is None else Generation.PLACEHOLDERS


def checked(plan: Plan) -> Plan:
    """Return the plan, with its nodes; raises `PlanError` for what cannot be rehearsed."""
    path, own = plan.settings.upstream.templates_file, plan.settings.policy.nodes
    try:
        state = State(plan.reference(":memory:"))
    except ValueError as error:
        raise PlanError(f"upstream.templates_file: {error}") from error
    state.database.close()
    known = [*state.templates]
    nodes = plan.nodes or tuple(node for node in dict.fromkeys([*USUAL_NODES, *own]) if node in known)
    nodes = nodes or tuple(known[: len(USUAL_NODES)])
    if not nodes:
        raise PlanError(f"upstream.templates_file: {path} has no templates.")
    if unknown := [node for node in nodes if node not in known]:
        named = ", ".join(node or "''" for node in unknown)
        raise PlanError(f"--nodes: no template is called {named}; there are {', '.join(known)}.")
    plan = replace(plan, nodes=nodes)
    if plan.round_seconds > plan.duration:
        raise PlanError(
            f"--duration: {plan.duration:g} s is too short to ask for {len(plan.pairs)} prompts ({plan.users} users, "
            f"{len(nodes)} nodes) at {plan.rate} a second; at least {plan.round_seconds:g} s, or a higher --rate."
        )
    return plan


def rehearsed(plan: Plan, upstream: str, folder: Path) -> dict[str, Any]:
    """Return the settings to run with: those given, but for where they lead out of here."""
    settings = effective(plan.settings)
    forwards = plan.settings.upstream.forward_authorization
    kept = plan.settings.store.kind is not StoreKind.NONE and not forwards
    changes: Mapping[str, Mapping[str, Any]] = {
        "ops": {"listen": "127.0.0.1:0", "admin_token_file": "null"},
        "upstream": {"url": f"http://{upstream}", "token_file": "null", "tls": effective(TlsSettings())},
        "proxy": {"add_token": False},
        "store": {
            "kind": StoreKind.FILE.value if kept else StoreKind.NONE.value,
            "path": str(folder / "cache.db"),
            "encryption_key_file": "null",
            "signing_key_file": "null",
        },
        "warmup": {"file": "null", "from_store": False},
        "drain": {"delay": "0s"},
        "log": {"level": "info", "format": "json"},
        "tracing": {"endpoint": "null"},
    }
    for section, keys in changes.items():
        settings[section] |= keys
    return settings | {"listen": "127.0.0.1:0", "listen_unix": "null"}


def not_rehearsed(plan: Plan) -> list[str]:
    """Say what of the settings was left out, and why."""
    settings, said = plan.settings, []
    if settings.store.kind is StoreKind.REDIS:
        said.append("The store was a file of the drill's own, not Redis.")
    if settings.upstream.url.startswith("https://") or settings.upstream.token_file is not None:
        said.append("The service was asked without TLS and without a token.")
    if settings.warmup.file is not None or settings.warmup.from_store:
        said.append("Nothing was warmed up beforehand.")
    if left := [node for node in settings.policy.nodes if node not in plan.nodes]:
        said.append(f"Nodes with a policy of their own that were not asked for: {', '.join(left)}.")
    return said
