"""The reference config service: the APIs of contract §2, answered as LearnFlow's own service answers them.

For the demo and the tests, never for production.
"""

import json
from collections.abc import Callable
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.demo.reference import control
from sidecar.demo.reference.database import stable_id
from sidecar.demo.reference.faults import FAULT, Handler, Mode
from sidecar.demo.reference.reading import invalid, read_object, read_path_user, read_user_and_node, read_uuid
from sidecar.demo.reference.state import (
    NOTE,
    STATE,
    DatabaseDownError,
    Generation,
    ReferenceOptions,
    RefusalError,
    State,
    entity_tag,
)

BODY_LIMIT: Final = 4 * 1024 * 1024  # bytes
BATCH_LIMIT: Final = 500  # contract §2
GENERATE_PROMPT: Final = "/api/v1/generate-prompt"
PROMPT_DATA: Final = "/api/v1/prompt-data"
BATCH: Final = f"{PROMPT_DATA}/batch"


def _answer(status: int, document: object) -> web.Response:
    """Serialise as the real service does; a lone surrogate is its one untidy 500."""
    try:
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return web.Response(status=500, text="Internal Server Error")
    return web.Response(status=status, body=body, content_type="application/json")


def _named(request: web.Request, kind: str, find: Callable[[str], str | None]) -> str:
    """Find what the path names by its id."""
    given = read_uuid(request.match_info[f"{kind}_id"], "path", f"{kind}_id")
    name = find(given)
    if name is None:
        raise RefusalError(404, f"{kind.capitalize()} {given} not found")
    return name


def _settings(request: web.Request) -> tuple[State, int, dict[str, str]]:
    """Read the settings of the path's user, which creates a new one."""
    state, user_id = request.app[STATE], read_path_user(request)
    return state, user_id, state.settings(user_id, request[FAULT])


async def generate_prompt(request: web.Request) -> web.Response:
    """First generation: render here."""
    body = await read_object(request)
    user_id, node = read_user_and_node(body, "body")
    context = body.get("context", {})
    if not isinstance(context, dict):
        raise invalid("dict_type", "Input should be a valid dictionary", context, "body", "context")
    document = request.app[STATE].prompt(user_id, node, context, request[FAULT])
    wrong = {name: value for name, value in context.items() if not isinstance(value, str)}
    if wrong:  # the model of its answer takes only strings, so the real service renders first and refuses then
        title = f"{len(wrong)} validation error{'s' if len(wrong) > 1 else ''} for GeneratePromptResponse"
        lines = [f"used_placeholders.{name}\n  Input should be a valid string" for name in wrong]
        raise RefusalError(400, "\n".join([title, *lines]))
    return _answer(200, document)


async def prompt_data(request: web.Request) -> web.Response:
    """Second generation: template and settings, with an ETag."""
    state = request.app[STATE]
    document = state.document(*read_user_and_node(await read_object(request), "body"), request[FAULT])
    if not state.etag:
        return _answer(200, document)
    tag = entity_tag(document)
    known = {each.strip().removeprefix("W/") for each in request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")}
    response = web.Response(status=304) if known & {tag, "*"} else _answer(200, document)
    response.headers[hdrs.ETAG] = tag
    return response


async def prompt_data_batch(request: web.Request) -> web.Response:
    """Second generation, many at once; a node that is unknown does not spoil the others."""
    state, wanted = request.app[STATE], (await read_object(request)).get("requests")
    if not isinstance(wanted, list) or len(wanted) > BATCH_LIMIT:
        raise invalid("list_type", f"Input should be a list of at most {BATCH_LIMIT} items", None, "body", "requests")
    results: list[dict[str, Any]] = []
    for user_id, node in [read_user_and_node(each, "body", "requests", index) for index, each in enumerate(wanted)]:
        try:
            result = {"status": 200, "data": state.document(user_id, node, request[FAULT])}
        except RefusalError as refusal:
            result = {"status": refusal.status, "detail": refusal.detail}
        results.append({"user_id": user_id, "node_name": node, **result})
    return _answer(200, {"results": results})


async def user_placeholders(request: web.Request) -> web.Response:
    """Show a user's settings; a new user gets the defaults by this call."""
    state, _, settings = _settings(request)
    return _answer(200, state.vocabulary.settings_document(settings))


async def set_placeholder(request: web.Request) -> web.Response:
    """Change one setting."""
    state, user_id, _ = _settings(request)
    name = _named(request, "placeholder", state.vocabulary.placeholder_named)
    body = await read_object(request)
    if "value_id" not in body:
        raise invalid("missing", "Field required", body, "body", "value_id")
    value_id = read_uuid(body["value_id"], "body", "value_id")
    found = state.vocabulary.value_with_id(value_id)
    if found is None:
        raise RefusalError(404, f"Placeholder value {value_id} not found")
    if found[0] != name:
        raise RefusalError(400, f"Value {value_id} does not belong to placeholder {stable_id('placeholder', name)}")
    state.database.change(user_id, {name: found[1]})
    return _answer(200, {"message": "Placeholder value updated successfully"})


async def apply_profile(request: web.Request) -> web.Response:
    """Change the settings that a profile names."""
    state, user_id, _ = _settings(request)
    profile = _named(request, "profile", state.vocabulary.profile_named)
    state.database.change(user_id, state.vocabulary.profile_settings(profile))
    document = state.vocabulary.settings_document(state.settings(user_id), profile)
    return _answer(200, {"message": "Profile applied successfully", **document})


async def reset(request: web.Request) -> web.Response:
    """Give a user the defaults again."""
    state, user_id, _ = _settings(request)
    state.database.reset(user_id)
    document = state.vocabulary.settings_document(state.settings(user_id))
    return _answer(200, {"message": "User settings reset successfully", **document})


async def profiles(request: web.Request) -> web.Response:
    """List the profiles, of one category if it is named."""
    vocabulary, category = request.app[STATE].vocabulary, request.query.get("category")
    named = [name for name, each in vocabulary.profiles.items() if not category or each.category == category]
    return _answer(200, [vocabulary.profile_document(name) for name in named])


async def profile(request: web.Request) -> web.Response:
    """Show a profile."""
    vocabulary = request.app[STATE].vocabulary
    return _answer(200, vocabulary.profile_document(_named(request, "profile", vocabulary.profile_named)))


async def placeholders(request: web.Request) -> web.Response:
    """List the placeholders."""
    vocabulary = request.app[STATE].vocabulary
    return _answer(200, [vocabulary.placeholder_document(name) for name in vocabulary.placeholders])


async def placeholder(request: web.Request) -> web.Response:
    """Show a placeholder, or only its values."""
    vocabulary = request.app[STATE].vocabulary
    document = vocabulary.placeholder_document(_named(request, "placeholder", vocabulary.placeholder_named))
    return _answer(200, document["values"] if request.path.endswith("/values") else document)


async def health(_: web.Request) -> web.Response:
    """Say that the process runs; like the real one, this knows nothing of the database."""
    return _answer(200, {"status": "healthy"})


async def root(_: web.Request) -> web.Response:
    """Say what this is."""
    return _answer(200, {"service": "reference-config-service", "status": "running", "note": NOTE})


def _exists(state: State, path: str) -> bool:
    """Say whether the service's generation may have this path."""
    if path in {PROMPT_DATA, BATCH}:
        return state.generation is Generation.PROMPT_DATA and (state.batch or path == PROMPT_DATA)
    return state.generation is not Generation.PASSTHROUGH or not path.startswith("/api/") or path == GENERATE_PROMPT


async def _elsewhere(request: web.Request) -> web.Response:
    """Answer an unknown path: by a redirect if only its last slash is at fault, as FastAPI does, else 404."""
    path, _, query = request.raw_path.partition("?")
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    clone = request.clone(rel_url=request.rel_url.with_path(other or "/", encoded=True))
    found = await request.app.router.resolve(clone)
    if isinstance(found.http_exception, web.HTTPNotFound) or not _exists(request.app[STATE], other):
        return _answer(404, {"detail": "Not Found"})
    location = f"{request.scheme}://{request.host}{other}{'?' + query if query else ''}"
    return web.Response(status=307, headers={hdrs.LOCATION: location})


@web.middleware
async def _like_fastapi(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer as FastAPI would where aiohttp has its own way, or where the generation lacks the path."""
    try:
        if _exists(request.app[STATE], request.path):
            return await handler(request)
        response = _answer(404, {"detail": "Not Found"})
    except web.HTTPNotFound:
        response = await _elsewhere(request)
    except web.HTTPMethodNotAllowed as error:
        response = _answer(405, {"detail": "Method Not Allowed"})
        response.headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed_methods))
    except web.HTTPRequestEntityTooLarge:
        response = _answer(413, {"detail": f"The body is larger than {BODY_LIMIT} bytes"})
    except RefusalError as refusal:
        response = _answer(refusal.status, {"detail": refusal.detail})
    except DatabaseDownError as error:
        response = _answer(500, {"detail": f"Failed to get user settings: {error}"})
    return response


def _endpoint(request: web.Request) -> str:
    """Name the endpoint for the counters: its route's name, `probe` for a look at an API by GET, or `other`."""
    if request.method != hdrs.METH_POST and request.path in {GENERATE_PROMPT, PROMPT_DATA, BATCH}:
        return "probe"
    resource = request.match_info.route.resource
    return (resource.name if resource else None) or "other"


@web.middleware
async def _observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count the call, and let the current fault have it; the control endpoints are neither counted nor harmed."""
    request[FAULT] = Mode.NONE
    if request.path.startswith(control.PREFIX):
        return await handler(request)
    state, endpoint = request.app[STATE], _endpoint(request)
    state.calls[endpoint] += 1
    state.in_flight += 1
    state.peak_in_flight = max(state.peak_in_flight, state.in_flight)
    try:
        response = await state.faults.apply(request, endpoint, handler)
    finally:
        state.in_flight -= 1
    state.answers[f"{endpoint} {response.status}"] += 1
    return response


_ROUTES: Final = (
    ("GET", "/", root, "root"),
    ("GET", "/health", health, "health"),
    ("POST", GENERATE_PROMPT, generate_prompt, "generate-prompt"),
    ("POST", PROMPT_DATA, prompt_data, "prompt-data"),
    ("POST", BATCH, prompt_data_batch, "prompt-data-batch"),
    ("GET", "/api/v1/users/{user_id}/placeholders", user_placeholders, "user-placeholders"),
    ("PUT", "/api/v1/users/{user_id}/placeholders/{placeholder_id}", set_placeholder, "set-placeholder"),
    ("POST", "/api/v1/users/{user_id}/apply-profile/{profile_id}", apply_profile, "apply-profile"),
    ("POST", "/api/v1/users/{user_id}/reset", reset, "reset"),
    ("GET", "/api/v1/profiles/", profiles, "profiles"),
    ("GET", "/api/v1/profiles/{profile_id}", profile, "profile"),
    ("GET", "/api/v1/placeholders/", placeholders, "placeholders"),
    ("GET", "/api/v1/placeholders/{placeholder_id}", placeholder, "placeholder"),
    ("GET", "/api/v1/placeholders/{placeholder_id}/values", placeholder, "placeholder-values"),
)


async def _let_go(app: web.Application) -> None:
    app[STATE].faults.close()


async def _close(app: web.Application) -> None:
    app[STATE].database.close()


def create_app(options: ReferenceOptions | None = None) -> web.Application:
    """Wire the service; its state is at `app[STATE]`."""
    app = web.Application(middlewares=[_observe, _like_fastapi], client_max_size=BODY_LIMIT)
    app[STATE] = State(options or ReferenceOptions())
    for method, path, handler, name in _ROUTES:
        app.router.add_route(method, path, handler, name=name)
    app.add_routes(control.ROUTES)
    app.on_shutdown.append(_let_go)
    app.on_cleanup.append(_close)
    return app
