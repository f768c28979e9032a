"""Calls of the command line to the ops listener of a running sidecar."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DEFAULT_URL = "http://127.0.0.1:9102"
TIMEOUT_SECONDS = 10.0


class OpsError(Exception):
    """The sidecar did not do what it was asked; a sentence for people."""

    def __init__(self, sentence: str, *, status: int | None = None) -> None:
        """`status`: what it answered; None: it was not asked, or did not answer."""
        super().__init__(sentence)
        self.status = status


def call(method: str, url: str, body: object = None, *, token_file: Path | None = None) -> Any:
    """Return what the sidecar answers, decoded; raises `OpsError`. No proxy of the environment is used."""
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {token_file.read_text('utf-8').strip()}"
        except (OSError, UnicodeDecodeError) as error:
            raise OpsError(f"The token file {token_file} cannot be read: {error}.") from error
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 — checked by the caller
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        sentence = f"The sidecar at {url} refuses ({error.code}): {_detail(error)}"
        raise OpsError(sentence, status=error.code) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise OpsError(
            f"The sidecar at {url} cannot be asked: {reason}. Is it running, and is --ops-url right?"
        ) from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (OSError, ValueError, LookupError, TypeError):
        return str(error.reason)
