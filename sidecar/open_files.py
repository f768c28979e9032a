"""How many files, and so sockets, this process may have open."""

import resource

import structlog

from sidecar.settings import Settings

OTHERS = 128
"""The log, the store, Redis, files that are read."""


def wanted(settings: Settings) -> int:
    """Return how many may be open at once: as many clients again as are served may be on their way out."""
    clients = settings.limits.max_connections + settings.ops.max_connections
    return 2 * clients + settings.upstream.max_in_flight + settings.proxy.max_in_flight + OTHERS


def allow(most: int) -> None:
    """Raise the soft limit as far as is needed and allowed; warn where the hard one is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= most:
        return
    allowed = most if hard == unlimited else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < most:
        structlog.get_logger().warning("few_open_files_allowed", allowed=allowed, wanted=most)
