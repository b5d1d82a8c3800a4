"""API keys: `ve_<id>_<secret>`. The id identifies the key and is public; the registry stores a hash of the whole key.

The secret has 256 random bits, so a plain SHA-256 resists brute force, and a slow hash would only delay every request.
Nothing here reads a database: a server authenticates from its snapshot in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

Right = Literal["serve", "base", "admin"]

TENANT_RIGHTS: tuple[Right, ...] = ("serve", "base")
ADMIN_RIGHTS: tuple[Right, ...] = ("admin",)

_ID_BYTES, _SECRET_BYTES = 6, 32
_ID = re.compile(r"[0-9a-f]{12}")
_FORM = re.compile(rf"ve_({_ID.pattern})_[A-Za-z0-9_-]{{43}}")
_NOBODYS = "0" * 64


@dataclass(frozen=True)
class Key:
    """The registry's record of an API key.

    Attributes:
        rights: `serve` permits its tenant's compositions, `base` also the base model by name, `admin` the admin
            routes. A key with `admin` has no tenant.
    """

    id: str
    tenant: str | None
    rights: tuple[Right, ...]
    label: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_why: str | None
    hash: str = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Public fields: everything except the hash."""
        return {name: value for name, value in asdict(self).items() if name != "hash"}

    def counts(self, now: datetime) -> bool:
        """True if the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class NewKey:
    """A new API key with its full text, `presented`, which is not stored and cannot be recovered."""

    key: Key
    presented: str = field(repr=False)


@dataclass(frozen=True)
class Principal:
    """The authenticated caller of a request. A caller without a tenant is an administrator."""

    key_id: str
    tenant: str | None
    rights: frozenset[Right]

    def may(self, right: Right) -> bool:
        return right in self.rights


def make() -> tuple[str, str]:
    """Generate a key: (id, full text)."""
    id = secrets.token_hex(_ID_BYTES)
    return id, f"ve_{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def hashed(presented: str) -> str:
    return hashlib.sha256(b"vllm-edit key\0" + presented.encode()).hexdigest()


def authenticate(keys: Mapping[str, Key], presented: str, now: datetime) -> Principal | None:
    """Return the caller that a key identifies; None if the key is malformed, unknown, wrong, revoked or expired.

    Hashes are compared in constant time, and an unknown id takes as long as a known id.

    Args:
        keys: API keys by id, of a `Snapshot`.
        presented: The key's full text.
        now: The time at which the key must be valid.
    """
    form = _FORM.fullmatch(presented)
    if form is None:
        return None
    key = keys.get(form[1])
    right = hmac.compare_digest(hashed(presented), _NOBODYS if key is None else key.hash)
    if key is None or not right or not key.counts(now):
        return None
    return Principal(key.id, key.tenant, frozenset(key.rights))
