"""What the sidecar says of itself at `/status` (contract §5)."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sidecar.service.ports import Clock
from sidecar.settings import effective
from sidecar.upstream.access import Access
from sidecar.wiring import Core, installed_version


def status_of(core: Core, *, ready: Callable[[], bool], clock: Clock) -> dict[str, Any]:
    """Return the state of the sidecar; nothing in it is content, a user or a secret."""
    selection, templates, now = core.selection, core.templates, clock()
    answer: dict[str, Any] = {
        "version": installed_version(),
        "ready": ready(),
        "upstream": {
            "url": core.settings.upstream.url,
            "api": core.settings.upstream.api.value,
            "generation": selection.current.value if selection.current else None,
            "generation_seconds": None if selection.since is None else round(now - selection.since, 3),
            "circuit": core.breaker.state,
            **_access(core.access),
        },
        "not_admitted": dict(core.manager.not_admitted) | (dict(templates.refused) if templates else {}),
        "rollout": effective(core.settings.rollout),
        "parity": {"set_aside": {node: digest[:12] for node, digest in core.shadow.set_aside.items()}},
        "cache": {"entries": len(core.cache), "bytes": core.cache.bytes},
    }
    if core.warm_jobs.latest is not None:
        answer["warmup"] = core.warm_jobs.status(core.warm_jobs.latest)
        del answer["warmup"]["failures"]  # users are named there
    if core.store is not None:
        answer["store"] = {
            "kind": core.store.kind,
            "error": core.store.error,
            "entries": core.store.entries,
            "bytes": core.store.bytes,
            "lost": core.store.lost,
        }
        if core.group is None:
            answer["store"]["path"] = str(core.settings.store.path)
        else:
            answer["store"]["group"] = {"connected": core.group.is_connected, "pending": core.group.pending}
    if templates is not None:
        answer["templates_file"] = {
            "path": str(templates.path),
            "nodes": templates.nodes,
            "error": templates.error,
        }
    return answer


def _access(access: Access) -> dict[str, Any]:
    """Return how the upstream is reached; None: without that."""
    tls, token = access.files.get("tls"), access.files.get("token")
    return {
        "tls": tls
        and {
            "error": tls.error,
            "handshake_error": access.handshake_error,
            "client_certificate_expires": _date(access.client_expires_at),
            "server_certificate_expires": _date(access.server_expires_at),
        },
        "token": token and {"error": token.error},
    }


def _date(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
