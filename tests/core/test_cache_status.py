"""Cache-Status, in the contract's own examples (RFC 9211)."""

import pytest

from sidecar.core.cache_status import Forward, Provenance, cache_status


@pytest.mark.parametrize(
    ("provenance", "value"),
    [
        pytest.param(Provenance(hit=True, ttl=3412.9), "prompt-sidecar; hit; ttl=3412", id="fresh hit"),
        pytest.param(Provenance(forward=Forward.MISS, stored=True), "prompt-sidecar; fwd=miss; stored", id="miss"),
        pytest.param(
            Provenance(hit=True, ttl=-35, detail="stale-if-error"),
            "prompt-sidecar; hit; ttl=-35; detail=stale-if-error",
            id="stale, nothing asked",
        ),
        pytest.param(
            Provenance(forward=Forward.STALE, forward_status=503, ttl=-35, detail="stale-if-error"),
            "prompt-sidecar; fwd=stale; fwd-status=503; ttl=-35; detail=stale-if-error",
            id="stale after a failed fetch",
        ),
        pytest.param(
            Provenance(forward=Forward.BYPASS, detail="rollout"),
            "prompt-sidecar; fwd=bypass; detail=rollout",
            id="bypass",
        ),
        pytest.param(
            Provenance(forward=Forward.MISS, stored=True, collapsed=True),
            "prompt-sidecar; fwd=miss; stored; collapsed",
            id="shared with others",
        ),
        pytest.param(Provenance(hit=True, ttl=-0.2), "prompt-sidecar; hit; ttl=-1", id="stale is never ttl=0"),
        pytest.param(Provenance(hit=True, ttl=0.2), "prompt-sidecar; hit; ttl=0", id="fresh is never negative"),
        pytest.param(Provenance(detail="request"), "prompt-sidecar; detail=request", id="neither looked up nor asked"),
    ],
)
def test_provenance_is_said_in_rfc_9211(provenance: Provenance, value: str) -> None:
    assert cache_status(provenance) == value
