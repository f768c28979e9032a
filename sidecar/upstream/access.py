"""How the config service is reached: by which TLS, and with which token; neither needs a restart to change."""

import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.core.events import CertificateSeen
from sidecar.secret_file import SecretFileError, read_token
from sidecar.service.ports import Observer
from sidecar.settings import TlsSettings
from sidecar.upstream.rotating import Rotating
from sidecar.upstream.tls import Heard, context_of, expiry_of, files_of

TOKEN_FILE = "upstream.token_file"  # noqa: S105 — the name of a setting


class Identity(NamedTuple):
    """What connections are made with, and when our own certificate ends (Unix seconds)."""

    context: ssl.SSLContext
    expires_at: float | None


class Access:
    """What each call and each connection to the config service needs, as of now.

    A connection that was made by an earlier identity is used no more, and ends when it has been idle for a while.
    """

    def __init__(self, observer: Observer = lambda _: None) -> None:
        """Begin with neither TLS nor token."""
        self._observe = observer
        self._server_name: str | None = None
        self._tls: Rotating[Identity] | None = None
        self._token: Rotating[str] | None = None
        self.handshake_error: str | None = None
        """Why the last handshake failed; None: it did not."""
        self.server_expires_at: float | None = None
        """When the certificate that the service last showed ends, in Unix seconds."""

    def use_tls(self, tls: TlsSettings) -> None:
        """Connect by TLS from now on; raises `SecretFileError`."""
        heard = Heard(self._succeeded, self._failed)

        def make() -> Identity:
            return Identity(context_of(tls, heard), expiry_of(tls))

        self._server_name = tls.server_name
        self._tls = Rotating("tls", files_of(tls), make, self._observe, adopted=self._adopted)

    def use_token(self, path: Path) -> None:
        """Send a token from now on; raises `SecretFileError`."""
        self._token = Rotating("token", {TOKEN_FILE: path}, lambda: _bearer(path), self._observe)

    @property
    def files(self) -> dict[str, Rotating[Any]]:
        """What is made of files, by its name in telemetry."""
        both: dict[str, Rotating[Any] | None] = {"tls": self._tls, "token": self._token}
        return {name: each for name, each in both.items() if each is not None}

    @property
    def watches(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What must be kept running, so that changed files are noticed."""
        watches = {f"watch-{name}": each.watch for name, each in self.files.items()}
        if self._token is not None:
            watches["doubt-token"] = self._token.look_when_in_doubt
        return watches

    @property
    def connection(self) -> dict[str, Any]:
        """What aiohttp is to make the connection of a request with."""
        if self._tls is None:
            return {}
        return {"ssl": self._tls.value.context, "server_hostname": self._server_name}

    @property
    def authorization(self) -> str | None:
        """The sidecar's own Authorization."""
        return None if self._token is None else self._token.value

    @property
    def client_expires_at(self) -> float | None:
        """When the sidecar's own certificate ends, in Unix seconds."""
        return None if self._tls is None else self._tls.value.expires_at

    def refused(self) -> None:
        """Note that the sidecar's own Authorization was answered with 401."""
        if self._token is not None:
            self._token.doubt()

    def _adopted(self, identity: Identity) -> None:
        if identity.expires_at is not None:
            self._observe(CertificateSeen("client", identity.expires_at))

    def _succeeded(self, server_expires_at: float | None) -> None:
        self.handshake_error = None
        if server_expires_at is not None and server_expires_at != self.server_expires_at:
            self.server_expires_at = server_expires_at
            self._observe(CertificateSeen("server", server_expires_at))

    def _failed(self, why: str) -> None:
        self.handshake_error = why


def _bearer(path: Path) -> str:
    try:
        return f"Bearer {read_token(path)}"
    except SecretFileError as error:
        raise SecretFileError(f"{TOKEN_FILE}: {error}") from error
