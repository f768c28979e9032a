"""An HTTP probe for images without curl: a GET, and whether the answer was a 2xx.

Nothing is imported but a socket: Python's start is nearly all that a probe costs.
"""

import socket
import sys
import time
from collections.abc import Sequence

URL = "http://127.0.0.1:9102/readyz"
TIMEOUT = "1s"

_UNITS = {"ms": 0.001, "s": 1.0}
_LONGEST_SECONDS = 60.0
_LARGEST_HEAD = 65_536  # bytes; a status line that is not complete by then is none
_DEFAULT_PORT = 80


class ProbeError(Exception):
    """What was asked is not there, or not well; says which."""


def main(arguments: Sequence[str]) -> None:
    """Probe and end the process: 0, or 1 and a sentence on standard error; return if an argument cannot be read."""
    given = _read(arguments)
    if given is None:
        return
    try:
        probe(*given)
    except ProbeError as error:
        print(error, file=sys.stderr)  # noqa: T201 — there is no click here
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def probe(url: str = URL, timeout_seconds: float = 1.0) -> None:
    """Ask once; `ProbeError` says what was wrong. It ends within the timeout, which each address of a name has anew."""
    parts = split(url)
    if parts is None:
        raise ProbeError(f"{url} is not a URL that can be probed; allowed: http://host[:port][/path].")
    host, port, path = parts
    end = time.monotonic() + timeout_seconds
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            question = f"GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: prompt-sidecar-probe\r\n"
            connection.sendall(f"{question}Connection: close\r\n\r\n".encode("ascii"))
            line = _first_line(connection, end)
    except TimeoutError as error:
        raise ProbeError(f"{url} did not answer within {timeout_seconds:g} s.") from error
    except OSError as error:
        raise ProbeError(f"{url} cannot be reached: {error.strerror or error}.") from error
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise ProbeError(f"{url} does not speak HTTP.")
    if not status.startswith(b"2"):
        raise ProbeError(f"{url} answered {rest.decode('latin-1').strip()}.")


def split(url: str) -> tuple[str, int, str] | None:
    """Return host, port and path of an http URL; None where it is none."""
    scheme, found, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if not found or scheme.lower() != "http" or "@" in authority or not _plain(rest):
        return None
    if authority.startswith("["):
        host, closed, port = authority[1:].partition("]")
        if not closed or not (port == "" or port.startswith(":")):
            return None
        port = port[1:]
    else:
        host, _, port = authority.partition(":")
    if not host or not (port == "" or (port.isdigit() and 0 < int(port[:6]) <= 65_535)):
        return None
    return host, int(port or _DEFAULT_PORT), slash + path or "/"


def _plain(text: str) -> bool:
    """Whether a request line can hold it as it is."""
    return text.isascii() and all("!" <= each <= "~" and each != "#" for each in text)


def seconds(text: str) -> float | None:
    """Return a timeout such as `500ms` or `1s` in seconds; None where it is none, or more than a minute."""
    unit = "ms" if text.endswith("ms") else "s"
    number = text.removesuffix(unit)
    if number == text or not number.replace(".", "", 1).isdigit() or not number.isascii():
        return None
    value = float(number) * _UNITS[unit]
    return value if 0.001 <= value <= _LONGEST_SECONDS else None


def _first_line(connection: socket.socket, end: float) -> bytes:
    head = b""
    while b"\n" not in head and len(head) < _LARGEST_HEAD:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(4096)
        if not piece:
            break
        head += piece
    return head.partition(b"\r\n")[0].partition(b"\n")[0]


def _read(arguments: Sequence[str]) -> tuple[str, float] | None:
    """Read `--url U` and `--timeout T`; None for all else, mistakes included: the command line says those better."""
    given = {"--url": URL, "--timeout": TIMEOUT}
    rest = list(arguments)
    while rest:
        name, joined, value = rest.pop(0).partition("=")
        if name not in given or not (joined or rest):
            return None
        given[name] = value if joined else rest.pop(0)
    timeout_seconds = seconds(given["--timeout"])
    if timeout_seconds is None or split(given["--url"]) is None:
        return None
    return given["--url"], timeout_seconds
