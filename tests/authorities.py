"""Certificates of a test: authorities, what they issue, and the files that a sidecar reads."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import trustme

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
HOST = "127.0.0.1"


def speaks(
    authority: trustme.CA,
    *names: str,
    asks_for: trustme.CA | None = None,
    expires: datetime | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """Return how a service speaks TLS; `asks_for`: whose client certificates it wants."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.maximum_version = newest
    authority.issue_cert(*(names or (HOST,)), not_before=LONG_AGO, not_after=expires).configure_cert(context)
    if asks_for is not None:
        asks_for.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Files:
    """A folder with `ca.pem`, `cert.pem` and `key.pem`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def trust(self, *authorities: trustme.CA) -> Path:
        """Write whom to trust."""
        return self.put("ca.pem", b"".join(each.cert_pem.bytes() for each in authorities))

    def put(self, name: str, content: bytes) -> Path:
        """Replace a file whole, as an editor does."""
        fresh = self.folder / f"{name}.new"
        fresh.write_bytes(content)
        return fresh.rename(self.folder / name)

    def show(self, leaf: trustme.LeafCert) -> dict[str, Path]:
        """Write a certificate and its key."""
        return {"cert_file": self.put("cert.pem", chain(leaf)), "key_file": self.put("key.pem", key(leaf))}


class Mounted(Files):
    """The same as Kubernetes mounts a Secret: links to `..data`, which is a link that is swapped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._versions = 0
        self._content: dict[str, bytes] = {}

    def swap(self, **content: bytes) -> None:
        """Put a new version of the whole Secret in place at one instant; `ca_pem` is the file `ca.pem`."""
        self._versions += 1
        self._content |= {name.replace("_", "."): each for name, each in content.items()}
        version = self.folder / f"..{self._versions}"
        version.mkdir()
        for name, each in self._content.items():
            (version / name).write_bytes(each)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        os.rename(fresh, self.folder / "..data")  # noqa: PTH104 — Path.rename would do the same


def chain(leaf: trustme.LeafCert) -> bytes:
    """Return a certificate with its chain."""
    return b"".join(each.bytes() for each in leaf.cert_chain_pems)


def key(leaf: trustme.LeafCert) -> bytes:
    """Return a certificate's private key."""
    return leaf.private_key_pem.bytes()


def _refuse_or_ignore(connection: ssl.SSLSocket) -> None:
    """Take what the client sends to its end: bytes that nobody read would make a reset of it, and lose the alert."""
    with connection:
        try:
            connection.do_handshake()
            connection.recv(65536)
        except ssl.SSLError:
            connection.shutdown(socket.SHUT_WR)
            while socket.socket.recv(connection, 65536):
                pass


@contextmanager
def strict_server(context: ssl.SSLContext) -> Iterator[str]:
    """Run a service that says why it refuses a handshake, as most do (asyncio's does not); yields the URL.

    It takes no request: who gets through the handshake is left without an answer.
    """
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                _refuse_or_ignore(context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://{HOST}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
