"""With whose credential a prompt is asked for; what is kept is kept apart by it (contract §4 promise 5)."""

from dataclasses import dataclass, field
from hashlib import blake2b

TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Credential:
    """One who asks, by what his request says; it lives as long as the request and the fetch that it began."""

    tag: str
    """What keys hold in its place, and is kept with them: a hash that nobody without the key can try guesses on."""
    authorization: str | None = field(repr=False)
    """What the upstream is told; None: what the sidecar itself is known by."""


NOBODY = Credential("", None)
"""Who brings no credential, or whose credential nobody reads."""


class Credentials:
    """Makes credentials of what requests say."""

    def __init__(self, key: bytes) -> None:
        """`key`: a secret of 32 bytes, the same for all who share a store."""
        self._key = blake2b(key, person=b"credential keys").digest()

    def of(self, authorization: str | None) -> Credential:
        """Return the credential of a request with this Authorization."""
        if authorization is None:
            return NOBODY
        said = authorization.encode("utf-8", "surrogateescape")
        return Credential(blake2b(said, key=self._key, digest_size=TAG_BYTES).hexdigest(), authorization)
