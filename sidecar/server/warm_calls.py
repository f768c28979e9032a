"""`/admin/warm`: a warm-up as a job of the running sidecar, and how far it is (contract §5)."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sidecar.core.routes import MOST_ID
from sidecar.server.body import BodyError, read_body
from sidecar.server.listener import Handler
from sidecar.server.responses import problem
from sidecar.service.warm_jobs import TooManyJobsError, WarmJobs
from sidecar.service.warmup import Pair, WarmUpRule, listed

WARM = "/admin/warm"
BYTES_A_PAIR = 64
"""What a pair may take in the body; most take a third of it."""
BODY_SECONDS = 30.0
WANTED = (
    'The body must be {"pairs": [[USER, NODE], …]}, {"users": [USER, …], "nodes": [NODE, …]} or {"from_store": true}, '
    'with "rate" and "concurrency" if they shall differ from the settings.'
)

_User = Annotated[int, msgspec.Meta(gt=0, le=MOST_ID)]
_Node = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be warm: exactly one of the three."""

    pairs: list[tuple[_User, _Node]] | UnsetType = UNSET
    users: list[_User] | UnsetType = UNSET
    nodes: list[_Node] | UnsetType = UNSET
    from_store: bool = False
    rate: Annotated[int, msgspec.Meta(gt=0, le=100_000)] | UnsetType = UNSET
    concurrency: Annotated[int, msgspec.Meta(gt=0, le=100)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse none and several."""
        crossed = self.users is not UNSET and self.nodes is not UNSET
        if (self.users is UNSET) != (self.nodes is UNSET) or (self.pairs is not UNSET) + crossed + self.from_store != 1:
            raise ValueError("one of pairs, users and nodes, and from_store")


def warm_routes(
    jobs: WarmJobs, rule: WarmUpRule, working_set: Callable[[], AsyncIterator[Pair]] | None, *, max_pairs: int
) -> dict[tuple[str, str], Handler]:
    """Return the calls by method and path, unguarded; `working_set`: what the store has, None where there is none."""

    async def begin(request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await read_body(request, max_bytes=max_pairs * BYTES_A_PAIR, timeout_seconds=BODY_SECONDS)
            asked = msgspec.json.decode(body, type=_Asked)
        except BodyError as error:
            return problem(error.status, str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return problem(422, WANTED)
        pairs, total = _pairs(asked)
        if total is not None and total > max_pairs:
            return problem(413, f"{total} pairs are more than warmup.max_pairs ({max_pairs}): send them in parts.")
        if pairs is None and working_set is None:
            return problem(409, "There is no store whose working set could be warmed: store.kind is none.")
        ours = rule._replace(rate=asked.rate or rule.rate, concurrency=asked.concurrency or rule.concurrency)
        try:
            number = jobs.submit(pairs if pairs is not None else working_set(), total, ours)  # type: ignore[misc] # see above
        except TooManyJobsError:
            return problem(429, "Enough warm-ups are waiting already.", headers={"Retry-After": "10"})
        return _json(202, {"job": number, "status": f"{WARM}?job={number}"})

    async def show(request: web.BaseRequest) -> web.StreamResponse:
        job = jobs.get(_number(request))
        return _unknown() if job is None else _json(200, jobs.status(job))

    async def cancel(request: web.BaseRequest) -> web.StreamResponse:
        number = _number(request)
        job = jobs.get(number)
        if job is None or not jobs.cancel(number):
            return _unknown()
        await job.ended.wait()
        return _json(200, jobs.status(job))

    return {("POST", WARM): begin, ("GET", WARM): show, ("DELETE", WARM): cancel}


def _pairs(asked: _Asked) -> tuple[AsyncIterator[Pair] | None, int | None]:
    if asked.pairs is not UNSET:
        return listed(asked.pairs), len(asked.pairs)
    if asked.users is not UNSET and asked.nodes is not UNSET:
        users, nodes = asked.users, asked.nodes
        return listed((user, node) for user in users for node in nodes), len(users) * len(nodes)
    return None, None


def _number(request: web.BaseRequest) -> str:
    return (parse_qs(urlsplit(request.raw_path).query).get("job") or [""])[0]


def _unknown() -> web.Response:
    return problem(404, "No such warm-up is known (any more): GET /admin/warm?job=NUMBER.")


def _json(status: int, content: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(content), content_type="application/json")
