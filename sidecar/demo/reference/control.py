"""The reference config service's own switches, under `/_reference`: they are no part of the contract and never fail.

For the demo and the tests, never for production.
"""

import json
from typing import Annotated, Any, Final, TypeVar

import msgspec
from aiohttp import web

from sidecar.demo.reference.faults import Fault
from sidecar.demo.reference.state import STATE, Generation, RefusalError

PREFIX: Final = "/_reference"
T = TypeVar("T")


class TemplateChange(msgspec.Struct, forbid_unknown_fields=True):
    """A node's new template."""

    template: str
    version: str | None = None


class UserChange(msgspec.Struct, forbid_unknown_fields=True):
    """A user's settings, name to value; any name and any text will do."""

    settings: dict[str, str]


class TtlChange(msgspec.Struct, forbid_unknown_fields=True):
    """The `cache_ttl` from now on, in seconds."""

    cache_ttl: Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)]


class GenerationChange(msgspec.Struct, forbid_unknown_fields=True):
    """The newest generation from now on, and whether prompt-data has its batch endpoint."""

    generation: Generation
    batch: bool = True


async def _read(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise RefusalError(422, str(error)) from error


def _state(request: web.Request) -> web.Response:
    return web.json_response(request.app[STATE].as_json(), dumps=_indented)


def _indented(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


def _user(request: web.Request) -> int:
    return int(request.match_info["user_id"])


async def show(request: web.Request) -> web.Response:
    """Show the state; every change answers with it too."""
    return _state(request)


async def set_fault(request: web.Request) -> web.Response:
    """Set or lift the fault."""
    request.app[STATE].fault = await _read(request, Fault)
    return _state(request)


async def set_template(request: web.Request) -> web.Response:
    """Change or add a template."""
    change = await _read(request, TemplateChange)
    request.app[STATE].set_template(request.match_info["node"], change.template, change.version)
    return _state(request)


async def remove_template(request: web.Request) -> web.Response:
    """Remove a template: its node is unknown from now on."""
    request.app[STATE].templates.pop(request.match_info["node"], None)
    return _state(request)


async def replace_user(request: web.Request) -> web.Response:
    """Make these, and no others, a user's settings."""
    request.app[STATE].database.replace(_user(request), (await _read(request, UserChange)).settings)
    return _state(request)


async def change_user(request: web.Request) -> web.Response:
    """Change some of a user's settings."""
    request.app[STATE].database.change(_user(request), (await _read(request, UserChange)).settings)
    return _state(request)


async def set_cache_ttl(request: web.Request) -> web.Response:
    """Change the lifetime that prompt-data states."""
    request.app[STATE].cache_ttl = (await _read(request, TtlChange)).cache_ttl
    return _state(request)


async def set_generation(request: web.Request) -> web.Response:
    """Upgrade the service, or roll it back."""
    state, change = request.app[STATE], await _read(request, GenerationChange)
    state.generation, state.batch = change.generation, change.batch
    return _state(request)


async def forget_calls(request: web.Request) -> web.Response:
    """Count from zero again."""
    state = request.app[STATE]
    state.calls.clear()
    state.answers.clear()
    state.peak_in_flight = state.in_flight
    return _state(request)


ROUTES: Final = (
    web.get(PREFIX, show),
    web.put(f"{PREFIX}/fault", set_fault),
    web.put(f"{PREFIX}/template/{{node}}", set_template),
    web.delete(f"{PREFIX}/template/{{node}}", remove_template),
    web.put(rf"{PREFIX}/user/{{user_id:\d{{1,18}}}}", replace_user),
    web.patch(rf"{PREFIX}/user/{{user_id:\d{{1,18}}}}", change_user),
    web.put(f"{PREFIX}/cache-ttl", set_cache_ttl),
    web.put(f"{PREFIX}/generation", set_generation),
    web.delete(f"{PREFIX}/calls", forget_calls),
)
