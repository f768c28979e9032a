"""Who may call from inside a browser: under which names we are asked for, and from which sites.

A page that someone opens can make the browser send requests to this machine. Three of its ways are closed here: a name
of its own that begins to resolve to a loopback address (DNS rebinding), a simple request to another site, which needs
no preflight (Fetch Standard, "CORS-safelisted"), and one that is read, because the config service lets every site read.
"""

import ipaddress
import re

LOCALHOST = "localhost"
_HOST = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:\[\]]+)(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://(?P<authority>[^/?#@]+)")
_SITES = frozenset({"same-origin", "same-site", "none"})
"""What `Sec-Fetch-Site` says of a request that no other site began."""


def host_of(authority: str) -> str | None:
    """Return the host of `host[:port]`, in lower case and without brackets; None where it has none."""
    found = _HOST.fullmatch(authority)
    return None if found is None else found["host"].strip("[]").lower().removesuffix(".")


def is_own_host(authority: str, names: frozenset[str]) -> bool:
    """Return whether a request for this authority (`Host`, RFC 9110 §7.2) is meant for us.

    An address always is: rebinding needs a name that its owner can have resolve to another address, and a kubelet or
    Prometheus asks by address. Of names, `localhost` is, and those that are given.
    """
    host = host_of(authority)
    return host is not None and (host == LOCALHOST or host in names or _is_address(host))


def is_cross_site(origin: str | None, fetch_site: str | None, authority: str, names: frozenset[str]) -> bool:
    """Return whether a page of another site makes this request: by what the browser says, port and scheme aside.

    A page of a host in `names` is none of another site. What says neither `Origin` nor `Sec-Fetch-Site` comes from no
    browser.
    """
    if origin is not None:
        found = _ORIGIN.fullmatch(origin)
        host = found and host_of(found["authority"])
        if host is None or (host not in names and host != host_of(authority)):
            return True
        if host in names:
            return False
    return fetch_site is not None and fetch_site not in _SITES


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
