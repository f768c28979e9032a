"""What a scrape gets, made in slices: live traffic never waits for a whole exposition."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Encode = Callable[[Collector], bytes]
SAMPLES_AT_ONCE = 64
"""Samples encoded in one piece: about half a millisecond's work."""
SLICE_SECONDS = 0.001
"""How long to go on before live traffic has its turn: a hundred nodes take a tenth of a second in all."""
_END = b"# EOF\n"


class _One(Collector):
    """A metric by itself, as an encoder wants it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


class Exposition:
    """Encodes what a registry collects; a family may come in several parts, one after the other."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()
        self._last: dict[str, tuple[float, bytes]] = {}

    def whole(self, accept: str | None) -> tuple[bytes, str]:
        """Return body and content type as the Accept header asks, at once."""
        encode, content_type = choose_encoder(accept or "")
        return b"".join(self._pieces(encode, content_type)), content_type

    async def in_slices(self, accept: str | None) -> tuple[bytes, str]:
        """Return the same, a slice at a time; scrapers that wait together share what one of them makes."""
        encode, content_type = choose_encoder(accept or "")
        asked_at = time.monotonic()
        async with self._turn:
            began_at, body = self._last.get(content_type, (-math.inf, b""))
            if began_at < asked_at:
                began_at = slice_began = time.monotonic()
                pieces = []
                for piece in self._pieces(encode, content_type):
                    pieces.append(piece)
                    if time.monotonic() - slice_began > SLICE_SECONDS:
                        await asyncio.sleep(0)
                        slice_began = time.monotonic()
                body = b"".join(pieces)
                self._last = {content_type: (began_at, body)}
        return body, content_type

    def _pieces(self, encode: Encode, content_type: str) -> Iterator[bytes]:
        before = ""
        for metric in self._registry.collect():
            # When a series began is of no use here, and doubles the counters' series.
            samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            for n in range(0, len(samples) or 1, SAMPLES_AT_ONCE):
                metric.samples = samples[n : n + SAMPLES_AT_ONCE]
                piece = encode(_One(metric)).removesuffix(_END)
                yield _without_head(piece) if metric.name == before else piece
                before = metric.name
        if content_type.startswith("application/openmetrics-text"):
            yield _END


def _without_head(piece: bytes) -> bytes:
    while piece.startswith(b"# "):
        piece = piece.partition(b"\n")[2]
    return piece
