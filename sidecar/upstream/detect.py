"""Whether the service has the `prompt-data` endpoint: a GET tells without asking for anybody's prompt (contract §2)."""

import asyncio
import json

from sidecar.core.errors import UpstreamFailure
from sidecar.upstream.client import UpstreamClient
from sidecar.upstream.prompt_data import PATH


class EndpointProbe:
    """`GET /api/v1/prompt-data`: 405 where it exists, FastAPI's 404 where it does not, anything else says nothing."""

    def __init__(self, client: UpstreamClient, *, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds

    async def __call__(self) -> bool | None:
        """Return whether the endpoint exists, None where that cannot be told."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.get(PATH)
        except TimeoutError:
            return None
        except UpstreamFailure as failure:
            if failure.status == 405:
                return True
            if failure.status == 404 and failure.answer is not None and _is_json(failure.answer.body):
                return False  # a page of HTML would be of a proxy whose service is away
            return None
        return None


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False
