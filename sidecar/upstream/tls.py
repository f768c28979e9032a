"""TLS to the config service: whom we trust, who we are, and what went wrong in a word that helps."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.secret_file import SecretFileError, read_file
from sidecar.settings import TlsSettings, TlsVersion

MINIMUM = {TlsVersion.V1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.V1_3: ssl.TLSVersion.TLSv1_3}

_UNTRUSTED = "is of an authority that is not trusted here"
CERTIFICATE_TROUBLE = {
    2: _UNTRUSTED,
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed, and not trusted here",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    23: "was revoked",
    62: "is for another name",
    64: "is for another address",
}
"""By OpenSSL's X509_V_ERR numbers."""
NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
NO_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE")
NOT_WELCOME = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
"""Parts of the alerts by which a service says that it wants another certificate of ours, or one at all."""


def trouble(error: OSError) -> str:
    """Return what a failed handshake means, in a sentence without its full stop."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = CERTIFICATE_TROUBLE.get(error.verify_code, f"cannot be verified ({error.verify_message})")
        return f"the config service's certificate {said}"
    reason = str(getattr(error, "reason", None) or "no reason given")
    if reason in NO_TLS:
        return "what answers at the config service's address speaks no TLS"
    if any(word in reason for word in NO_VERSION):
        return "the config service speaks no version of TLS that is allowed here"
    if "ALERT" in reason and any(word in reason for word in NOT_WELCOME):
        return f"the config service does not take the sidecar's certificate, or wants one ({reason.lower()})"
    return f"the TLS handshake with the config service failed ({reason.lower()})"


class Heard(NamedTuple):
    """Who is told of handshakes."""

    succeeded: Callable[[float | None], None]
    """With the end of the service's certificate, in Unix seconds."""
    failed: Callable[[str], None]


def context_of(tls: TlsSettings, heard: Heard) -> ssl.SSLContext:
    """Return what connections are made with; raises `SecretFileError`."""
    # Not create_default_context(): that writes the keys of all connections where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the certificate and its name
    context.minimum_version = MINIMUM[tls.min_version]
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = _overheard_by(heard)
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _trust(context, tls.ca_file)
    if tls.cert_file is not None and tls.key_file is not None:
        _show(context, tls.cert_file, tls.key_file)
    return context


def files_of(tls: TlsSettings) -> dict[str, Path]:
    """Return the files that are read, by their keys."""
    named = {"ca_file": tls.ca_file, "cert_file": tls.cert_file, "key_file": tls.key_file}
    return {f"upstream.tls.{key}": path for key, path in named.items() if path is not None}


def expiry_of(tls: TlsSettings) -> float | None:
    """Return when the sidecar's own certificate ends, in Unix seconds; raises `SecretFileError`."""
    if tls.cert_file is None:
        return None
    from cryptography import x509  # 30 ms that only mutual TLS pays

    try:
        return x509.load_pem_x509_certificate(read_file(tls.cert_file)).not_valid_after_utc.timestamp()
    except ValueError as error:
        raise SecretFileError(f"upstream.tls.cert_file: {tls.cert_file} is no certificate in PEM") from error


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SecretFileError(f"upstream.tls.ca_file: {path} holds no certificates in PEM") from error
    except OSError as error:
        raise SecretFileError(f"upstream.tls.ca_file: {path} cannot be read: {error.strerror}") from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def ask() -> str:
        raise SecretFileError(f"upstream.tls.key_file: {key} wants a passphrase; allowed: a private key without one")

    try:
        context.load_cert_chain(certificate, key, password=ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SecretFileError(f"upstream.tls.key_file: {key} does not belong to {certificate}") from error
        raise SecretFileError(
            f"upstream.tls.cert_file: {certificate} and {key} are no certificate and its private key in PEM"
        ) from error
    except OSError as error:
        raise SecretFileError(f"upstream.tls.cert_file: {certificate} or {key} cannot be read") from error


def _overheard_by(heard: Heard) -> type[ssl.SSLObject]:
    """Return a kind of TLS connection that tells of its handshake, and of a refusal after it (TLS 1.3)."""

    class Overheard(ssl.SSLObject):
        def do_handshake(self) -> None:
            _telling(heard, super().do_handshake)
            ends = (self.getpeercert() or {}).get("notAfter")
            heard.succeeded(ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None)

        def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 — its interface
            return _telling(heard, super().read, len, buffer)

    return Overheard


def _telling(heard: Heard, act: Callable[..., Any], *given: Any) -> Any:
    try:
        return act(*given)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
        raise
    except ssl.SSLError as error:
        heard.failed(trouble(error))
        raise
