"""Admin calls on the ops listener: on loopback, or with a token (contract §5)."""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sidecar.core.events import Refused
from sidecar.core.routes import MOST_ID
from sidecar.core.units import duration
from sidecar.secret_file import SecretFileError, read_secret
from sidecar.server.body import BodyError, read_body
from sidecar.server.listener import Handler
from sidecar.server.responses import problem
from sidecar.service.ports import Observer

MAX_BODY = 64 * 1024  # bytes
BODY_SECONDS = 5.0
PARITY = "/admin/parity"
INVALIDATE = "/admin/invalidate"
BREAKER = "/admin/breaker"
HELD = duration("1s", "1h")
"""For how long a circuit can be held: so that one that was forgotten is let go within the hour."""
HELD_BY_DEFAULT = "10m"
T = TypeVar("T")


class _Reset(msgspec.Struct, forbid_unknown_fields=True):
    """Which node is taken into service again; all that were taken back, where none is named."""

    reset: str | None


class _Invalidate(msgspec.Struct, forbid_unknown_fields=True):
    """What is invalidated: exactly one of the three."""

    user: Annotated[int, msgspec.Meta(gt=0, le=MOST_ID)] | UnsetType = UNSET
    node: Annotated[str, msgspec.Meta(min_length=1)] | UnsetType = UNSET
    all: Literal[True] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse none and several."""
        if sum(each is not UNSET for each in (self.user, self.node, self.all)) != 1:
            raise ValueError("exactly one of user, node and all")


class _Breaker(msgspec.Struct, forbid_unknown_fields=True):
    """In which state the circuit to the config service is held, and for how long."""

    state: Literal["open", "closed", "auto"]
    duration: str = msgspec.field(default=HELD_BY_DEFAULT, name="for")

    def __post_init__(self) -> None:
        """Refuse what is no duration."""
        HELD.parse(self.duration)


class Circuit(Protocol):
    """A circuit that can be held; see `upstream.breaker`."""

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        ...

    @property
    def forced(self) -> tuple[str, float] | None:
        """The state in which it is held, and for how many seconds more."""
        ...

    def force(self, state: str, seconds: float) -> None:
        """Hold it."""
        ...


class Forgotten(Protocol):
    """What an invalidation did; see `service.invalidation`."""

    @property
    def memory(self) -> int:
        """Entries forgotten in memory."""
        ...

    @property
    def store(self) -> int | None:
        """Entries forgotten behind it; None: later."""
        ...

    @property
    def told(self) -> bool | None:
        """Whether the group knows of it; None: there is no group."""
        ...


class Invalidating(Protocol):
    """Who invalidates; see `service.invalidation`."""

    async def user(self, user_id: int) -> Forgotten:
        """Invalidate what is kept of one user."""
        ...

    async def node(self, node_name: str) -> Forgotten:
        """Invalidate the documents of one node."""
        ...

    async def everything(self) -> Forgotten:
        """Invalidate all that is kept."""
        ...


def admin_routes(
    reset_parity: Callable[[str | None], list[str]],
    invalidations: Invalidating,
    circuit: Circuit,
    *,
    is_loopback: bool,
    token_file: Path | None,
    observer: Observer,
    others: Mapping[tuple[str, str], Handler] | None = None,
) -> dict[tuple[str, str], Handler]:
    """Return the admin calls by method and path; `others`: further ones, to be guarded in the same way."""

    async def parity(asked: _Reset) -> object:
        return {"reset": reset_parity(asked.reset)}

    async def invalidate(asked: _Invalidate) -> object:
        if asked.user is not UNSET:
            forgotten = await invalidations.user(asked.user)
        elif asked.node is not UNSET:
            forgotten = await invalidations.node(asked.node)
        else:
            forgotten = await invalidations.everything()
        return {"memory": forgotten.memory, "store": forgotten.store, "group_told": forgotten.told}

    async def hold(asked: _Breaker) -> object:
        circuit.force(asked.state, HELD.parse(asked.duration))
        held = circuit.forced
        return {"state": circuit.state, "held_for_seconds": None if held is None else round(held[1], 3)}

    def guarded(handler: Handler) -> Handler:
        async def allowed(request: web.BaseRequest) -> web.StreamResponse:
            refusal = _refusal(request, is_loopback=is_loopback, token_file=token_file)
            if refusal is None:
                return await handler(request)
            observer(Refused("token"))
            return refusal

        return allowed

    return {place: guarded(handler) for place, handler in (others or {}).items()} | {
        ("POST", PARITY): guarded(_answering(_Reset, parity, '{"reset": NODE}, or {"reset": null} for all nodes')),
        ("POST", BREAKER): guarded(
            _answering(_Breaker, hold, f'{{"state": "open", "closed" or "auto"}}, and "for": {HELD.allowed}')
        ),
        ("POST", INVALIDATE): guarded(
            _answering(_Invalidate, invalidate, f'{{"user": 1 to {MOST_ID}}}, {{"node": NAME}} or {{"all": true}}')
        ),
    }


def _answering(kind: type[T], act: Callable[[T], Awaitable[object]], wanted: str) -> Handler:
    """Return the handler of a call that takes JSON of a kind, and answers with JSON."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await read_body(request, max_bytes=MAX_BODY, timeout_seconds=BODY_SECONDS)
            asked = msgspec.json.decode(body, type=kind)
        except BodyError as error:
            return problem(error.status, str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return problem(422, f"The body must be {wanted}.")
        return web.Response(body=msgspec.json.encode(await act(asked)), content_type="application/json")

    return handle


def _refusal(request: web.BaseRequest, *, is_loopback: bool, token_file: Path | None) -> web.Response | None:
    if token_file is None:
        if is_loopback:
            return None
        return problem(403, "Admin calls need ops.admin_token_file where ops.listen is not a loopback address.")
    try:
        token = read_secret(token_file).strip().encode()
    except SecretFileError:
        return problem(503, "The file of ops.admin_token_file cannot be read, or holds no token.")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token)
    if scheme.lower() != "bearer" or not matches:
        return problem(401, "An admin call needs the token.", headers={"WWW-Authenticate": "Bearer"})
    return None
