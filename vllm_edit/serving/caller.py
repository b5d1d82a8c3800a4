"""Who a request is from: by its API key, else by a trusted gateway's header, else, on a server without keys, anyone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from starlette.datastructures import Headers

from vllm_edit.errors import EditError
from vllm_edit.registry.keys import TENANT_RIGHTS, Right, authenticate
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.settings import Settings


class Unauthorized(EditError):
    """The request says nobody, or somebody that it is not."""


class Forbidden(EditError):
    """A key that is known, without the right that this needs."""


@dataclass(frozen=True)
class Caller:
    """tenant: the only one that it may ask as; None for anyone on a server without keys, and for an administrator.

    key: the id of its API key, where it has one.
    """

    tenant: str | None = None
    rights: frozenset[Right] = frozenset()
    key: str | None = None

    def may(self, right: Right) -> bool:
        return right in self.rights

    def require(self, right: Right, what: str) -> None:
        """Raises `Forbidden` where the caller lacks the right."""
        if not self.may(right):
            if self is UNNAMED:
                raise Forbidden(f"who comes without a tenant may not {what}: ask through the gateway that names it")
            raise Forbidden(f"this key may not {what}: it lacks the right {right!r}")


ANYONE = Caller(rights=frozenset(TENANT_RIGHTS))
"""Who asks a server without keys."""

UNNAMED = Caller()
"""Whom the gateway of a server without keys did not name, or who went past it."""


def identify(headers: Headers, peer: str | None, snapshot: Snapshot, settings: Settings, now: datetime) -> Caller:
    """The caller. A key goes before the gateway's header, and is never replaced by it.

    peer: the address that the connection comes from; None for a socket without one.

    Raises:
        Unauthorized: the registry has keys and the request none that counts, or its gateway names no tenant.
    """
    presented = _bearer(headers)
    if snapshot.keyed and presented is not None:
        principal = authenticate(snapshot.keys, presented, now)
        if principal is None:
            raise Unauthorized("the API key is unknown, revoked or expired; its operator can make you another")
        return Caller(principal.tenant, principal.rights, principal.key_id)
    if settings.tenant_header and is_trusted(peer, settings) and (named := headers.getlist(settings.tenant_header)):
        if len(named) > 1:  # a client's own, which the gateway added to instead of replacing it
            raise Unauthorized(f"{settings.tenant_header} came {len(named)} times; its gateway must replace a client's")
        if named[0] not in snapshot.standing:
            raise Unauthorized(f"{settings.tenant_header} names no tenant of this server")
        return Caller(named[0], frozenset(TENANT_RIGHTS))
    if snapshot.keyed:
        raise Unauthorized("an API key is needed: Authorization: Bearer ve_…")
    return ANYONE if settings.tenant_header is None else UNNAMED


def is_trusted(peer: str | None, settings: Settings) -> bool:
    """True for the addresses of the operator's gateways."""
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    return any(address in network for network in settings.trusted_peers)


def _bearer(headers: Headers) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
