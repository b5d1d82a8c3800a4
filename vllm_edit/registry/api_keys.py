"""API keys: `ve_<id>_<secret>`. The id identifies the key and is public; the registry stores a hash of the whole key.

The secret has 256 random bits, so a plain SHA-256 resists brute force, and a slow hash would only delay every request.
`authenticate` reads no database: a server authenticates from its snapshot in memory. The functions with a connection
run in their caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import shown
from vllm_edit.registry import tables

Right = Literal["serve", "base", "author", "admin"]

TENANT_RIGHTS: tuple[Right, ...] = ("serve", "base")
AUTHOR_RIGHTS: tuple[Right, ...] = ("author",)
ADMIN_RIGHTS: tuple[Right, ...] = ("admin",)

_ID_BYTES, _SECRET_BYTES = 6, 32
_ID = re.compile(r"[0-9a-f]{12}")
_FORM = re.compile(rf"ve_({_ID.pattern})_[A-Za-z0-9_-]{{43}}")
_NOBODYS = "0" * 64


@dataclass(frozen=True)
class ApiKeyInfo:
    """The public part of an API key's record.

    Attributes:
        rights: `serve` permits its tenant's compositions, `base` also the base model by name, `author` to submit
            patches for its tenant and to follow their jobs, `admin` the admin routes. A key with `admin` has no tenant.
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

    def counts(self, now: datetime) -> bool:
        """True if the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class ApiKey(ApiKeyInfo):
    """The registry's record of an API key."""

    hash: str = field(repr=False)

    @property
    def info(self) -> ApiKeyInfo:
        """The record without the hash."""
        return ApiKeyInfo(**{part.name: getattr(self, part.name) for part in fields(ApiKeyInfo)})


@dataclass(frozen=True)
class NewApiKey:
    """A new API key with its full text, `presented`, which is not stored and cannot be recovered."""

    api_key: ApiKey
    presented: str = field(repr=False)


@dataclass(frozen=True)
class Principal:
    """The authenticated caller of a request. A caller without a tenant is an administrator."""

    api_key_id: str
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


def authenticate(api_keys: Mapping[str, ApiKey], presented: str, now: datetime) -> Principal | None:
    """Return the caller that a key identifies; None if the key is malformed, unknown, wrong, revoked or expired.

    Hashes are compared in constant time, and an unknown id takes as long as a known id.

    Args:
        api_keys: API keys by id, of a `Snapshot`.
        presented: The key's full text.
        now: The time at which the key must be valid.
    """
    form = _FORM.fullmatch(presented)
    if form is None:
        return None
    api_key = api_keys.get(form[1])
    right = hmac.compare_digest(hashed(presented), _NOBODYS if api_key is None else api_key.hash)
    if api_key is None or not right or not api_key.counts(now):
        return None
    return Principal(api_key.id, api_key.tenant, frozenset(api_key.rights))


def add(
    connection: Connection,
    tenant: str | None,
    rights: Iterable[Right],
    *,
    label: str,
    expires_at: datetime | None,
    by: str,
) -> NewApiKey:
    id, presented = make()
    row = {"id": id, "tenant": tenant, "rights": " ".join(rights), "hash": hashed(presented), "label": label}
    made = {"created_at": datetime.now(UTC), "created_by": by, "expires_at": expires_at}
    connection.execute(insert(tables.api_keys).values(**row, **made))
    return NewApiKey(find(connection, id), presented)


def find(connection: Connection, named: str) -> ApiKey:
    """Return the key of this id. A whole key, as it leaks into logs, is read as its id.

    Raises:
        NotFound: there is none. The message has no part of a secret.
    """
    whole = _FORM.fullmatch(named)
    id = whole[1] if whole else named
    row = connection.execute(select(tables.api_keys).where(tables.api_keys.c.id == id)).first() if is_id(id) else None
    if row is None:
        described = "with this id" if named.startswith("ve_") else shown(named)
        raise NotFound(f"no key {described}; `vllm-edit key list` lists the ids")
    return _entry(row)


def oldest_first(connection: Connection) -> list[ApiKey]:
    k = tables.api_keys.c
    return [_entry(row) for row in connection.execute(select(tables.api_keys).order_by(k.created_at, k.id))]


def revoke(connection: Connection, id: str, *, by: str, why: str) -> ApiKey:
    """Revoke the key permanently."""
    if find(connection, id).revoked_at is not None:
        raise EditError(f"key {id} is revoked already")
    revocation = {"revoked_at": datetime.now(UTC), "revoked_by": by, "revoked_why": why}
    connection.execute(update(tables.api_keys).where(tables.api_keys.c.id == id).values(**revocation))
    return find(connection, id)


def _entry(row: Row[Any]) -> ApiKey:
    fields = dict(row._mapping)
    return ApiKey(**fields | {"rights": tuple(fields["rights"].split())})
