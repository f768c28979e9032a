"""The batch call of the `prompt-data` generation: many documents by one call, each on its own (contract §2)."""

import json
from collections.abc import Sequence
from functools import partial

import msgspec

from sidecar.core.errors import UpstreamFailure
from sidecar.core.model import Document, PromptKey
from sidecar.service.ports import Confirmed
from sidecar.upstream.answers import bad, decoded
from sidecar.upstream.client import UpstreamClient, answered, encode
from sidecar.upstream.guarded import Confirmation, Guard
from sidecar.upstream.prompt_data import PATH, PromptDataSource

BATCH_PATH = f"{PATH}/batch"
MOST = 500
"""Pairs in one call (contract §2)."""


_NO_DATA = msgspec.Raw(b"null")


class _Result(msgspec.Struct):
    user_id: int | str
    node_name: str
    status: int
    data: msgspec.Raw = _NO_DATA
    detail: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]


_decoder = msgspec.json.Decoder(_Answer)


class BatchSource:
    """Documents by the batch call, guarded like single ones."""

    endpoint = "prompt-data-batch"

    def __init__(self, client: UpstreamClient, guard: Guard, documents: PromptDataSource, *, timeout: float) -> None:
        """`timeout`: seconds for one call; it brings much more than a single one does."""
        self._client = client
        self._guard = guard
        self._documents = documents
        self._timeout = timeout

    async def fetch(self, keys: Sequence[PromptKey], deadline_at: float) -> list[Confirmed[Document] | UpstreamFailure]:
        """Bring documents in the order of their keys, each or its failure; raises `UpstreamFailure` for all at once."""
        whole = await self._guard.call(
            self.endpoint, partial(self._ask, keys), deadline_at, per_try_timeout=self._timeout
        )
        return [
            each if isinstance(each, UpstreamFailure) else Confirmation(each, whole.confirmed_at)
            for each in whole.document
        ]

    async def _ask(self, keys: Sequence[PromptKey]) -> list[Document | UpstreamFailure]:
        asked = [{"user_id": key.user_id, "node_name": key.node_name} for key in keys]
        response = await self._client.post(BATCH_PATH, encode({"requests": asked}))
        results = decoded(_decoder, response.body).results
        if len(results) != len(keys):
            raise bad(f"{len(results)} results for {len(keys)} requests")
        return [self._read(key, result) for key, result in zip(keys, results, strict=True)]

    def _read(self, key: PromptKey, result: _Result) -> Document | UpstreamFailure:
        if (str(result.user_id), result.node_name) != (str(key.user_id), key.node_name):
            return bad("the result of another user or node")
        if result.status != 200:
            detail = json.dumps({"detail": result.detail or ""}).encode()
            return answered(result.status, detail, "application/json")
        if bytes(result.data) == b"null":
            return bad("a result without data")
        try:
            return self._documents.document(key, bytes(result.data), None)
        except UpstreamFailure as failure:
            return failure
