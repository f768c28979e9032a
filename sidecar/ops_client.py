"""Calls of the command line to the ops listener of a running sidecar."""

import json
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sidecar.secret_file import SecretFileError, read_token

DEFAULT_URL = "http://127.0.0.1:9102"
TIMEOUT_SECONDS = 10.0
LARGEST = 64 * 1024 * 1024
"""Bytes of an answer: a status of a thousand nodes takes a megabyte."""


class OpsError(Exception):
    """The sidecar did not do what it was asked; a sentence for people."""

    def __init__(self, sentence: str, *, status: int | None = None) -> None:
        """`status`: what it answered; None: it was not asked, or did not answer."""
        super().__init__(sentence)
        self.status = status


class _Answer(NamedTuple):
    status: int
    reason: str
    body: bytes


def call(
    method: str, url: str, body: object = None, *, token_file: Path | None = None, timeout: float = TIMEOUT_SECONDS
) -> Any:
    """Return what the sidecar answers, decoded; raises `OpsError`.

    No proxy of the environment is used, and no redirect is followed: the token is for the sidecar alone. `timeout`:
    seconds for connecting, and for all that comes after it.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {read_token(token_file)}"
        except SecretFileError as error:
            raise OpsError(f"The token file cannot be used: {error}.") from error
    data = None if body is None else json.dumps(body).encode()
    try:
        answer = _ask(method, url, data, headers, timeout)
        if 200 <= answer.status < 300:
            return json.loads(answer.body)
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # it may quote lines of what came
        raise OpsError(
            f"The sidecar at {url} cannot be asked: {reason}. Is it running, and is --ops-url right?"
        ) from error
    raise OpsError(f"The sidecar at {url} refuses ({answer.status}): {_detail(answer)}", status=answer.status)


def _ask(method: str, url: str, data: bytes | None, headers: dict[str, str], timeout: float) -> _Answer:
    """Return an answer that is whole in time; raises `TimeoutError`, and all that `http.client` does."""
    at = urlsplit(url)
    kind = HTTPSConnection if at.scheme == "https" else HTTPConnection
    connection, late = kind(at.hostname or "", at.port, timeout=timeout), threading.Event()
    with closing(connection):
        connection.connect()
        connection.sock.settimeout(None)  # it would begin anew with each byte
        end = threading.Timer(timeout, _end, (connection.sock, late))
        end.daemon = True
        end.start()
        try:
            connection.request(method, f"{at.path}?{at.query}" if at.query else at.path, data, headers)
            response = connection.getresponse()
            content = response.read(LARGEST + 1)
        except (OSError, HTTPException):
            if not late.is_set():
                raise
        finally:
            end.cancel()
    if late.is_set():
        raise TimeoutError(f"there was no whole answer within {timeout:g} s")
    if len(content) > LARGEST:
        raise ValueError(f"the answer is larger than {LARGEST} bytes")
    return _Answer(response.status, response.reason, content)


def _end(connected: socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        connected.shutdown(SHUT_RDWR)


def _detail(answer: _Answer) -> str:
    try:
        return str(json.loads(answer.body)["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer.reason
