"""LearnFlow's question for a prompt, on a connection of its own, and how the answer says it was made."""

import json
import time
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

ASK_SECONDS = 5.0
"""LearnFlow's own timeout."""
OK = 200


class Answer(NamedTuple):
    """What came of one request; `kind`: `fresh`, `fetched`, `stale` or `error`; `age` in seconds."""

    status: int
    kind: str
    age: int
    said: str
    milliseconds: float
    prompt: str = ""


def as_learnflow(timeout_seconds: float = ASK_SECONDS) -> aiohttp.ClientSession:
    """Return a client that opens a connection per request, as LearnFlow's does."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_seconds))


async def ask(session: aiohttp.ClientSession, address: str, node: str, user: int, context: Mapping[str, str]) -> Answer:
    """Ask for a prompt; raises `aiohttp.ClientError` and `TimeoutError` where there is no answer."""
    began = time.monotonic()
    asked = {"user_id": user, "node_name": node, "context": context}
    async with session.post(f"http://{address}/api/v1/generate-prompt", json=asked) as response:
        body = await response.read()
    said = response.headers.get("Cache-Status", "")
    prompt = _prompt_in(body)
    if response.status != OK or prompt is None:
        kind = "error"
    elif "fwd=" in said and "detail" not in said:
        kind = "fetched"
    else:
        kind = "stale" if "ttl=-" in said else "fresh"
    age = int(response.headers.get("Age", "0"))
    return Answer(response.status, kind, age, said, (time.monotonic() - began) * 1000, prompt or "")


def _prompt_in(body: bytes) -> str | None:
    """Return the prompt; None where the body is no answer with one."""
    try:
        prompt = json.loads(body)["prompt"]
    except (ValueError, TypeError, LookupError):
        return None
    return prompt if isinstance(prompt, str) else None
