"""What LearnFlow's config service was recorded to answer: the recordings, a client and a service that replay them."""

import base64
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sidecar.demo.reference.reading import read_integer
from tests.harness import PATH, Exchange, raw_upstream
from tests.wire import Answer, wire

LEARNFLOW = Path(os.environ.get("LEARNFLOW_DATA", Path(__file__).parents[2] / "shared" / "learnflow"))
TEMPLATES = LEARNFLOW / "prompts.yaml"
FOR_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
"""Headers that say something of one connection."""
OF_ONE_SERVER = FOR_ONE_HOP | {"date", "server"}
"""Headers that each server makes for itself."""

Fields = list[tuple[str, str]]
NO_BODY = b""


@dataclass(frozen=True)
class Request:
    """A request, byte for byte."""

    method: str
    target: str
    fields: Fields
    body: bytes = NO_BODY
    version: str = "1.1"

    def value(self, name: str) -> str | None:
        return value_of(self.fields, name)

    @property
    def head(self) -> bytes:
        lines = [
            f"{self.method} {self.target} HTTP/{self.version}",
            *(f"{name}: {value}" for name, value in self.fields),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True)
class Response:
    """An answer as it was recorded, or as it came."""

    status: int
    fields: Fields
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    def value(self, name: str) -> str | None:
        return value_of(self.fields, name)

    def passed_on(self, *, but: Iterable[str] = ()) -> Fields:
        """Return the headers that a proxy leaves alone, names in lower case, in an order that does not matter."""
        dropped = OF_ONE_SERVER.union(but)
        return sorted((name.lower(), value) for name, value in self.fields if name.lower() not in dropped)

    @property
    def head(self) -> bytes:
        kept = [(name, value) for name, value in self.fields if name.lower() not in FOR_ONE_HOP]
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            *(f"{name}: {value}" for name, value in kept),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True)
class Leg:
    """One request and its answer."""

    request: Request
    response: Response


@dataclass(frozen=True)
class Recording:
    """One recorded call: a leg, or two where the client followed a redirect."""

    id: str
    legs: tuple[Leg, ...]
    user_settings: Mapping[str, str] | None
    """What the user had; None where the service needed none, or it is not known."""

    @property
    def request(self) -> Request:
        return self.legs[-1].request

    @property
    def response(self) -> Response:
        return self.legs[-1].response

    @property
    def asks_for_a_prompt(self) -> bool:
        return self.request.method == "POST" and self.request.target.partition("?")[0] == PATH

    @property
    def got_a_prompt(self) -> bool:
        return self.asks_for_a_prompt and self.response.status == 200

    @property
    def asked(self) -> tuple[int, str, Any]:
        """User, node and context as the service understood them."""
        return understood(self.request.body)

    def is_asked_by(self, body: bytes) -> bool:
        """Return whether a body asks the service for what was asked, in whatever words."""
        return body == self.request.body or repr(understood(body)) == repr(self.asked)  # repr: NaN is no other than NaN


def understood(body: bytes) -> tuple[int, str, Any]:
    """Read a request for a prompt as the service does: ids coerced, what is not Unicode replaced."""
    text = json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    document = json.loads(text)
    return read_integer(document["user_id"]), document["node_name"], document.get("context", {})


def value_of(fields: Fields, name: str) -> str | None:
    """Return a header's only value, or None."""
    values = [value for each, value in fields if each.lower() == name.lower()]
    assert len(values) <= 1, values
    return values[0] if values else None


def load() -> list[Recording]:
    """Return all recordings, none where there is no data."""
    path = LEARNFLOW / "recordings.jsonl"
    if not path.exists():
        return []
    return [_recording(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def _recording(row: Mapping[str, Any]) -> Recording:
    asked, answered = row["request"], row["response"]
    lines = asked["headers"]
    version = "1.0" if row["note"] == "HTTP/1.0" else "1.1"
    followed = next((at for at, line in enumerate(lines) if line.endswith(" HTTP/1.1")), None)
    first = Request(asked["method"], asked["path"], _fields(lines[:followed]), _bytes(asked["body"]), version)
    response = Response(
        answered["status"], [(name, value) for name, value in answered["headers"]], _bytes(answered["body"])
    )
    if followed is None:
        legs: tuple[Leg, ...] = (Leg(first, response),)
    else:  # only the last answer is recorded; the redirects that are recorded alone tell what came before
        method, target, _ = lines[followed].split(" ")
        host = first.value("Host")
        redirect = Response(307, [("content-length", "0"), ("location", f"http://{host}{target}")], NO_BODY)
        legs = (Leg(first, redirect), Leg(Request(method, target, _fields(lines[followed + 1 :])), response))
    return Recording(row["id"], legs, row.get("user_settings"))


def _fields(lines: Iterable[str]) -> Fields:
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def _bytes(body: Mapping[str, str] | None) -> bytes:
    if body is None:
        return NO_BODY
    return body["text"].encode() if "text" in body else base64.b64decode(body["base64"])


async def send(port: int, request: Request) -> Response:
    """Send a request as it was sent, on a connection of its own, and check how that ends."""
    async with wire(port) as client:
        await client.send(request.head)
        if request.value("Expect") is not None:
            interim = await client.answer()
            assert (interim.status, interim.headers) == (100, [])
        await client.send(request.body)
        answer: Answer = await client.answer(to_head=request.method == "HEAD")
        stated = answer.header("Connection")
        if request.version == "1.0" or request.value("Connection") == "close":
            assert stated == "close"
        if stated == "close":
            assert await client.ended()
    return Response(answer.status, answer.headers, answer.body)


def settings_document(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return a user's settings as the service gives them; the ids are made up."""
    return {
        "placeholders": {
            name: {
                "placeholder_id": str(uuid5(NAMESPACE_URL, name)),
                "placeholder_name": name,
                "placeholder_display_name": name.capitalize(),
                "value_id": str(uuid5(NAMESPACE_URL, name + value)),
                "value": value,
                "display_name": "Как записано",
            }
            for name, value in settings.items()
        },
        "active_profile_id": None,
        "active_profile_name": None,
    }


class Replay:
    """The config service as it was when a recording was made; anything that it was not asked then is noted, and a 500.

    `renders`: whether its own `generate-prompt` answers requests that got a prompt.
    """

    def __init__(self, recording: Recording, *, renders: bool) -> None:
        self.recording = recording
        self.url = ""
        self.end: Callable[[], Awaitable[None]]
        """Break all connections, and refuse new ones."""
        self.settings_read: list[int] = []
        self.prompts_asked: list[bytes] = []
        self.passed: list[Request] = []
        """What came as it was recorded."""
        self.unexpected: list[str] = []
        self._renders = renders
        self._legs = {(leg.request.method, leg.request.target): leg.response for leg in recording.legs}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        lines = exchange.head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = lines[0].split(" ")
        request = Request(method, target, _fields(lines[1:]), exchange.body)
        response = self._response(request)
        await exchange.write(response.head, NO_BODY if method == "HEAD" else response.body)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def _response(self, request: Request) -> Response:
        recording, call = self.recording, (request.method, request.target)
        if request.value("Transfer-Encoding") is not None:
            return self._refuse(request)  # no recording has one, and its body would be taken for a request
        if request.method == "POST" and request.target == PATH:
            return self._generate(request)
        if call in self._legs:
            self.passed.append(request)
            return self._legs[call]
        if call == ("GET", "/api/v1/prompt-data"):
            return _json(404, {"detail": "Not Found"})
        user = re.fullmatch(r"GET /api/v1/users/(\d+)/placeholders", " ".join(call))
        if user is not None and recording.asks_for_a_prompt and recording.user_settings is not None:
            self.settings_read.append(int(user[1]))
            return _json(200, settings_document(recording.user_settings))
        return self._refuse(request)

    def _generate(self, request: Request) -> Response:
        recording = self.recording
        if not recording.asks_for_a_prompt or (recording.got_a_prompt and not self._renders):
            return self._refuse(request)
        self.prompts_asked.append(request.body)
        return recording.response

    def _refuse(self, request: Request) -> Response:
        self.unexpected.append(f"{request.method} {request.target}")
        return _json(500, {"detail": "nothing of the kind was recorded"})


def _json(status: int, document: Any) -> Response:
    body = json.dumps(document, ensure_ascii=False).encode()
    return Response(status, [("content-type", "application/json"), ("content-length", str(len(body)))], body)


@asynccontextmanager
async def replaying(recording: Recording, *, renders: bool = False) -> AsyncIterator[Replay]:
    """Run the service of one recording."""
    replay = Replay(recording, renders=renders)
    async with raw_upstream(replay) as upstream:
        replay.url, replay.end = upstream.url, upstream.close
        yield replay
