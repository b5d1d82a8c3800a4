"""Ed25519 signatures (RFC 8032) over a compiled patch.

A signature covers the manifest, whose digests bind the contents, and `files.json`, whose digests bind every byte: the
config of an adapter is in the second only.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_edit.digest import canonical
from vllm_edit.errors import EditError
from vllm_edit.frozen import Frozen
from vllm_edit.instant import Instant

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ID_LENGTH = 16
_PUBLIC_BYTES = 32


class Signature(Frozen):
    """A signature over a compiled patch.

    Attributes:
        key: id of the key that signed.
        at: time of the signature, as the signer claims; it is signed too.
        value: the 64 bytes of the signature in base64.
    """

    key: str
    at: Instant
    value: str


def key_id(public: str) -> str:
    """The id of a public key: the beginning of its SHA-256.

    Args:
        public: the 32 bytes of the key in base64.

    Raises:
        EditError: it is no such text.
    """
    return hashlib.sha256(_public_bytes(public)).hexdigest()[:_ID_LENGTH]


class SigningKey:
    """A private key, which signs. Its file is PKCS#8 in PEM, without a password, readable by its user only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = b64encode(key.public_key().public_bytes_raw()).decode()
        self.id = key_id(self.public)

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Make a key and write it to a new file.

        Raises:
            EditError: the file exists already, or the library is not installed.
        """
        require_library()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = Ed25519PrivateKey.generate()
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise EditError(f"{path} exists already, and a key is never replaced: name a new file") from None
        with os.fdopen(number, "wb") as file:
            file.write(data)
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key's file.

        Raises:
            EditError: others can read the file, it holds no ed25519 key, or the library is not installed.
        """
        require_library()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = path.read_bytes()
        if path.stat().st_mode & 0o077:
            raise EditError(f"{path}: other users can read or write this private key; run: chmod 600 {path}")
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise EditError(
                f"{path}: expected a private ed25519 key in PEM without a password, as `vllm-edit signer create` "
                f"writes it: {' '.join(str(error).split())[:120]}"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise EditError(f"{path}: expected an ed25519 key, got {type(key).__name__}; use `vllm-edit signer create`")
        return cls(key)

    def sign(self, name: str, sealed: Mapping[str, bytes], at: datetime | None = None) -> Signature:
        """Sign artefact `name`.

        Args:
            name: the artefact's full name.
            sealed: the bytes of its manifest and of `files.json`, by path.
            at: time of the signature; None for now.
        """
        time = datetime.now(UTC) if at is None else at
        value = self._key.sign(_message(name, sealed, self.id, time))
        return Signature(key=self.id, at=time, value=b64encode(value).decode())


def is_valid(signature: Signature, public: str, name: str, sealed: Mapping[str, bytes]) -> bool:
    """True if the signature is of this key, over this artefact.

    Args:
        signature: the signature.
        public: the public key in base64.
        name: the artefact's full name.
        sealed: the bytes of its manifest and of `files.json`, by path.

    Raises:
        EditError: the library is not installed.
    """
    require_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(_public_bytes(public))
    try:
        key.verify(b64decode(signature.value, validate=True), _message(name, sealed, key_id(public), signature.at))
    except (InvalidSignature, ValueError):
        return False
    return True


def require_library() -> None:
    """Raise if cryptography, an optional extra, is not installed.

    Raises:
        EditError: it is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise EditError("signatures need cryptography; install it with: pip install 'vllm-edit[signatures]'") from None


def _message(name: str, sealed: Mapping[str, bytes], key: str, at: datetime) -> bytes:
    """The signed bytes. Their first field separates them from all other uses of a key."""
    fields = {
        "signs": "vllm-edit compiled patch 1",
        "name": name,
        "sha256": {path: hashlib.sha256(data).hexdigest() for path, data in sealed.items()},
        "key": key,
        "at": at.astimezone(UTC).isoformat(),
    }
    return canonical(fields)


def _public_bytes(public: str) -> bytes:
    try:
        data = b64decode(public, validate=True)
    except ValueError:
        data = b""
    if len(data) != _PUBLIC_BYTES:
        raise EditError(
            "expected a public ed25519 key, 32 bytes in base64 as `vllm-edit signer create` prints it; got "
            f"{public[:60]!r}"
        )
    return data
