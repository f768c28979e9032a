"""Socket activation: listening sockets that systemd, or whoever starts us, has opened already (sd_listen_fds(3)).

The socket outlives the process, so while one sidecar ends and the next starts, connections wait instead of failing.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
NAMES = ("learnflow", "ops")
"""The listeners, in the order in which sockets without these names are taken."""
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivationError(OSError):
    """What was handed over cannot be listened on; says what and why."""


def inherited(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Take over the sockets that are handed to this process, by name; none is the usual case.

    The variables are removed, so that no child takes the sockets for its own. Raises `ActivationError`.
    """
    given = {name: environ.pop(name, "") for name in VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()):
        return {}
    count = given["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= len(NAMES)):
        raise ActivationError(
            f"LISTEN_FDS: {count!r} sockets are handed over; allowed: 1 or 2 ({' and '.join(NAMES)})."
        )
    return {name: _taken(FIRST_FD + place, name) for place, name in enumerate(_names(given, int(count)))}


def _names(given: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Return what each socket is for: by its name, or by its place where none has a name of ours."""
    names = tuple(given["LISTEN_FDNAMES"].split(":"))
    if not set(names) & set(NAMES):
        return NAMES[:count]
    if len(names) != count or len(set(names)) != count or not set(names) <= set(NAMES):
        raise ActivationError(
            f"LISTEN_FDNAMES: {':'.join(names)!r} for {count} socket(s); allowed: {' and '.join(NAMES)}, each once, "
            "or no name of these, then the first is learnflow's."
        )
    return names


def _taken(fd: int, name: str, *, inheritable: bool = False) -> socket.socket:
    try:
        os.set_inheritable(fd, inheritable)
        taken = socket.socket(fileno=fd)
        usable = taken.family in {socket.AF_INET, socket.AF_INET6} and taken.type == socket.SOCK_STREAM
        if usable and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return taken
    except OSError as error:
        raise ActivationError(f"LISTEN_FDS: descriptor {fd} ({name}) cannot be used: {error.strerror}.") from error
    taken.close()
    raise ActivationError(f"LISTEN_FDS: descriptor {fd} ({name}) is not a listening TCP socket.")
