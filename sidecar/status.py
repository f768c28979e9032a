"""What the sidecar says of itself at `/status` (contract §5): gathered from the parts, judged in the core."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from sidecar.core import status as says
from sidecar.core.health import judged
from sidecar.core.masking import masked
from sidecar.core.policy import Policy
from sidecar.core.rollout import RolloutRule
from sidecar.service.ports import Clock
from sidecar.settings import Settings, effective
from sidecar.telemetry.history import NodeHistory
from sidecar.telemetry.minutes import SLOT_SECONDS, SLOTS, Counts
from sidecar.telemetry.request_metrics import OTHER
from sidecar.telemetry.troubles import Parity, Trouble
from sidecar.wiring import Core, installed_version

CLOSED = "closed"
DRIFT_SECONDS = 0.5
"""Between the clock and the calendar: more is no inaccuracy."""
DIGEST = 12
"""Characters of a template's digest: enough to tell two apart."""


class StatusReport:
    """Makes the answer; instants of the clock become those of the calendar."""

    def __init__(self, core: Core, *, ready: Callable[[], bool], clock: Clock, wall: Clock) -> None:
        self._core = core
        self._ready = ready
        self._clock = clock
        self._wall = wall
        self._version = installed_version()
        self._written: tuple[Settings | None, dict[str, Any]] = (None, {})
        self._started_at = clock()
        self._offset = wall() - self._started_at

    def __call__(self) -> says.Status:
        """Return the state of the sidecar; nothing in it is content, a user or a secret."""
        core = self._core
        shadow, templates = core.shadow, core.templates
        not_admitted = dict(core.manager.not_admitted) | (dict(templates.refused) if templates else {})
        status = says.Status(
            state=says.State.HEALTHY,
            reasons=[],
            version=self._version,
            ready=self._ready(),
            warnings=[*warnings(core.settings)],
            at=self._at(self._clock()),
            started_at=self._at(self._started_at),
            upstream=self._upstream(),
            circuits=[*self._circuits()],
            not_admitted=not_admitted,
            rollout=effective(core.settings.rollout),
            parity=says.Parity({node: digest[:DIGEST] for node, digest in shadow.set_aside.items()}),
            cache=says.Memory(len(core.cache), core.cache.bytes),
            warmup=self._warmup(),
            store=self._store(),
            templates_file=self._templates_file(),
            reload=self._reload(),
            nodes=[*self._nodes(not_admitted)],
            requests=self._requests(),
            settings=self._settings(),
        )
        state, reasons = judged(status)
        return replace(status, state=state, reasons=reasons)

    def _settings(self) -> dict[str, Any]:
        """Return the settings in force as one would write them: made once for each reload, it costs milliseconds."""
        settings = self._core.settings
        if self._written[0] is not settings:
            self._written = (settings, masked(effective(settings)))
        return self._written[1]

    def _at(self, instant: float) -> datetime:
        """Return the calendar's instant: always the same one, unless the machine's clock was put right."""
        offset = self._wall() - self._clock()
        if abs(offset - self._offset) > DRIFT_SECONDS:
            self._offset = offset
        return datetime.fromtimestamp(round(instant + self._offset, 3), UTC)

    def _at_or_none(self, instant: float | None) -> datetime | None:
        return None if instant is None else self._at(instant)

    def _last(self, trouble: Trouble) -> says.LastError | None:
        return None if trouble.error is None else says.LastError(masked(trouble.error), self._at(trouble.at))

    def _upstream(self) -> says.Upstream:
        core, selection, troubles = self._core, self._core.selection, self._core.troubles
        since = selection.since
        return says.Upstream(
            url=masked(core.settings.upstream.url),
            api=core.settings.upstream.api.value,
            generation=selection.current.value if selection.current else None,
            generation_seconds=None if since is None else round(self._clock() - since, 3),
            circuit=core.breaker.state,
            last_answer_at=self._at_or_none(troubles.answered_at),
            failing_since=self._at_or_none(troubles.upstream.since),
            last_error=self._last(troubles.upstream),
            last_error_endpoint=troubles.endpoint,
            tls=self._tls(),
            token=None if (token := core.access.files.get("token")) is None else says.Token(token.error),
        )

    def _tls(self) -> says.Tls | None:
        access = self._core.access
        if (tls := access.files.get("tls")) is None:
            return None
        return says.Tls(
            tls.error, access.handshake_error, _date(access.client_expires_at), _date(access.server_expires_at)
        )

    def _circuits(self) -> Iterator[says.Circuit]:
        transitions = self._core.troubles.transitions
        shared = ("redis",) if self._core.group is not None else ()
        for name in ("upstream", *shared):
            changes = transitions.get(name, ())
            state = changes[-1][1] if changes else CLOSED
            wait = self._core.breaker.open_for() if name == "upstream" else None
            yield says.Circuit(
                name=name,
                state=state,
                since=self._at(_last_turn(changes, self._started_at)),
                retry_in_seconds=None if wait is None else round(wait, 3),
                transitions=[says.Transition(self._at(at), to) for at, to in changes],
                held_for_seconds=self._held_for() if name == "upstream" else None,
            )

    def _held_for(self) -> float | None:
        held = self._core.breaker.forced
        return None if held is None else round(held[1], 3)

    def _warmup(self) -> dict[str, Any] | UnsetType:
        jobs = self._core.warm_jobs
        if jobs.latest is None:
            return UNSET
        return {name: value for name, value in jobs.status(jobs.latest).items() if name != "failures"}  # names users

    def _store(self) -> says.Store | UnsetType:
        core, trouble = self._core, self._core.troubles.store
        if core.store is None:
            return UNSET
        group = core.group
        return says.Store(
            kind=core.store.kind,
            error=core.store.error,
            failing_since=self._at_or_none(trouble.since),
            last_error=self._last(trouble),
            entries=core.store.entries,
            bytes=core.store.bytes,
            lost=core.store.lost,
            path=str(core.settings.store.path) if group is None else UNSET,
            group=UNSET if group is None else says.Group(group.is_connected, group.pending),
        )

    def _templates_file(self) -> says.TemplatesFile | UnsetType:
        file = self._core.templates
        if file is None:
            return UNSET
        since = self._core.troubles.templates.since
        return says.TemplatesFile(str(file.path), file.nodes, file.error, self._at_or_none(since))

    def _reload(self) -> says.Reload:
        troubles = self._core.troubles
        return says.Reload(
            last_at=self._at(self._started_at if troubles.reloaded_at is None else troubles.reloaded_at),
            problems=masked(troubles.problems),
            failing_since=self._at_or_none(troubles.reload.since),
            waiting_for_restart=[*troubles.restart],
        )

    def _nodes(self, not_admitted: dict[str, str]) -> Iterator[says.Node]:
        core = self._core
        seen = {node.node: node for node in core.history.nodes()}
        written: dict[Policy, dict[str, Any]] = {}
        for name in sorted({*seen, *core.shadow.set_aside, *not_admitted}):
            policy = core.settings.policy.for_node(name) if name != OTHER else core.settings.policy.default
            yield self._node(
                name,
                seen.get(name),
                rollout=_share(core.settings.rollout.rule, name),
                parity=core.troubles.parity.get(name, Parity()),
                not_admitted=not_admitted.get(name),
                policy=written.get(policy) or written.setdefault(policy, effective(policy)),
            )

    def _node(
        self,
        name: str,
        seen: NodeHistory | None,
        *,
        rollout: float,
        parity: Parity,
        not_admitted: str | None,
        policy: dict[str, Any],
    ) -> says.Node:
        left = seen.cover_left if seen else None
        return says.Node(
            name=name,
            recent=_counts(seen.recent if seen else Counts()),
            last_hour=_counts(seen.counts if seen else Counts()),
            last_at=self._at(seen.last_at) if seen else None,
            last_outcome=seen.last_outcome.value if seen else None,
            age_seconds=None if seen is None or seen.age is None else round(max(0.0, seen.age), 3),
            covered_since=self._at_or_none(seen.covered_since) if seen else None,
            cover_left_seconds=None if left is None else round(left, 3),
            rollout_ratio=rollout,
            parity=says.NodeParity(
                parity.results["match"], parity.results["mismatch"], self._at_or_none(parity.set_aside_at)
            ),
            not_admitted=not_admitted,
            policy=policy,
        )

    def _requests(self) -> says.Requests:
        history = self._core.history
        minutes = history.minutes()
        whole = Counts(*map(sum, zip(*(minute.counts for minute in minutes), strict=True)))
        return says.Requests(
            _counts(history.recent()),
            _counts(whole),
            _latency(history.quantiles()),
            SLOT_SECONDS,
            SLOTS,
            [
                says.Minute(self._at(minute.began_at), _counts(minute.counts), _latency(minute.quantiles))
                for minute in minutes
            ],
        )


def warnings(settings: Settings) -> Iterator[str]:
    """Name what is allowed, but not safe by itself."""
    if not settings.listen.is_loopback:
        yield f"listen: others can reach {settings.listen}, where no one is asked who he is, and nothing is encrypted"


def _date(unix_seconds: float | None) -> datetime | None:
    return None if unix_seconds is None else datetime.fromtimestamp(unix_seconds, UTC)


def _last_turn(changes: Iterable[tuple[float, str]], started_at: float) -> float:
    """Return since when a circuit is closed, or is not: trial calls that fail begin nothing new."""
    since, was_closed = started_at, True
    for at, to in changes:
        if was_closed != (to == CLOSED):
            since, was_closed = at, not was_closed
    return since


def _share(rule: RolloutRule, node: str) -> float:
    is_out = node in rule.exclude or (rule.nodes is not None and node not in rule.nodes)
    return 0.0 if is_out else rule.fraction


def _counts(counts: Counts) -> says.Counts:
    ratio = counts.hit_ratio
    return says.Counts(counts.requests, *counts, None if ratio is None else round(ratio, 6))


def _latency(seconds: tuple[float, float, float]) -> says.Latency:
    return says.Latency(*(round(each, 6) for each in seconds))
