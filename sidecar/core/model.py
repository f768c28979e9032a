"""What is asked for, what is kept, and what is answered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from sidecar.core.cache_status import Provenance
from sidecar.core.decision import STALE_TABLE, Action
from sidecar.core.freshness import State, strategy_for, windows
from sidecar.core.policy import Policy
from sidecar.core.prompt import CompiledTemplate, Static


class PromptKey(NamedTuple):
    """Whose prompt for which step; all of what an entry depends on."""

    user_id: int
    node_name: str
    credential: str = ""
    """The tag of the credential that it was fetched with."""

    @property
    def owner(self) -> int | None:
        """Whose writes make it void."""
        return self.user_id


class SettingsKey(NamedTuple):
    """Whose settings; they serve all nodes of the user."""

    user_id: int
    credential: str = ""
    """The tag of the credential that they were fetched with."""

    @property
    def owner(self) -> int | None:
        """Whose writes make it void."""
        return self.user_id


class RouteKey(NamedTuple):
    """Which static read: redirects are made from the Host that was asked."""

    host: str
    target: str
    owner: int | None = None
    """The user whose settings it shows, if it shows one's."""


class Key(Protocol):
    """What an entry is kept under; a tuple, so that keys of different kinds never equal each other."""

    @property
    def owner(self) -> int | None:
        """Whose writes make the entry void; None: everybody's."""
        ...

    def __hash__(self) -> int: ...


class Kept(Protocol):
    """What the upstream served, and may be kept."""

    @property
    def stated_ttl(self) -> float | None:
        """Seconds; None where the upstream states no lifetime."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Document:
    """A template and the settings that the upstream served with it, ready to render (contract §4 promise 3)."""

    template: CompiledTemplate
    settings: Mapping[str, str]
    """All of the user's settings, as served."""
    required: frozenset[str]
    """Names that only a request can give."""
    stated_ttl: float | None
    """Seconds; None where the upstream states no lifetime."""
    etag: str | None
    static: Static
    """The settings that the template reads, escaped once where that is sound."""
    used: Mapping[str, str]
    """The settings that the template reads, as served."""

    @classmethod
    def of(
        cls,
        template: CompiledTemplate,
        settings: Mapping[str, str],
        *,
        required: frozenset[str],
        stated_ttl: float | None,
        etag: str | None,
    ) -> "Document":
        """Make a document, doing now what need not be done for each request."""
        used = {name: settings[name] for name in settings if name in template.names}
        return cls(template, settings, required, stated_ttl, etag, template.prepare(used), used)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class UserSettings:
    """All settings of a user, as the upstream served them (contract §2, `placeholders`)."""

    values: Mapping[str, str]

    @property
    def stated_ttl(self) -> float | None:
        """None: this generation states no lifetime."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class StaticAnswer:
    """An answer to a static read, as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def stated_ttl(self) -> float | None:
        """None: the config service states no lifetime for its reads."""
        return None


V = TypeVar("V", bound=Kept)


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """What the upstream served, and when it last said that it holds."""

    document: V
    confirmed_at: float
    """An instant of the process's monotonic clock, taken before the request was sent (RFC 9111 §4.2.3)."""
    spread: float
    """In [-1, 1]: this entry's place in the spread of the ttl."""
    policy: Policy
    """The policy under which `hit_until` was worked out."""
    hit_until: float
    """Until this instant a plain request is served whatever the circuit says: the stale table, read in advance."""
    epoch: int = 0
    """How many writes had passed through when it was asked for (contract §4 promise 8)."""

    @classmethod
    def of(cls, document: V, confirmed_at: float, spread: float, policy: Policy, epoch: int = 0) -> "Entry[V]":
        """Make an entry, working out now what each hit would ask."""
        fresh_row = STALE_TABLE[strategy_for(policy, document.stated_ttl)][State.FRESH]
        always_hits = fresh_row == (Action.SERVE, Action.SERVE)
        fresh_for = windows(policy, document.stated_ttl, spread).fresh_for if always_hits else 0.0
        return cls(document, confirmed_at, spread, policy, confirmed_at + fresh_for, epoch)


def may_replace(new: Entry[V], old: Entry[V] | None) -> bool:
    """Return whether a new entry may take an old one's place: never an older one (contract §4 promise 9)."""
    return old is None or new.confirmed_at >= old.confirmed_at


def hollowed(new: Kept, old: Kept | None) -> bool:
    """Return whether an answer has lost all settings although its template is the same: a sick upstream, not a change.

    Today's service answers like this when its database is down: well-formed, and wrong. What the template wants from
    the settings is read from the old answer: a sick one may say that all of it is for the request to give.
    """
    match new, old:
        case Document(), Document():
            wanted = old.template.names - old.required
            same = new.template.digest == old.template.digest
            return same and _any_set(old.used, wanted) and not _any_set(new.used, wanted)
        case UserSettings(), UserSettings():
            return _any_set(old.values, old.values) and not _any_set(new.values, new.values)
    return False


def _any_set(values: Mapping[str, str], names: Iterable[str]) -> bool:
    return any(values.get(name, "").strip() for name in names)


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """A prompt, and how it was made; a struct, because each answer makes one."""

    prompt: str
    used_placeholders: dict[str, str]
    provenance: Provenance
