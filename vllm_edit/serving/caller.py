"""Identifies a request's caller by its API key or a trusted gateway's header; without keys, anyone is admitted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from starlette.datastructures import Headers

from vllm_edit.errors import EditError
from vllm_edit.registry.api_keys import TENANT_RIGHTS, Right, authenticate
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.sessions import Session


class Unauthorized(EditError):
    """The request's credentials are missing or invalid."""


class SignedOut(Unauthorized):
    """The browser has no valid session of the console."""


class TooManyFailures(EditError):
    """Too many sign-ins have failed; another one is not checked now."""


class Forbidden(EditError):
    """The caller is known but lacks the required right."""


@dataclass(frozen=True)
class Caller:
    """An authenticated caller.

    tenant: the tenant that it is bound to; None for anyone on a server without keys, and for an administrator.
    api_key_id: the id of its API key, if it has one.
    """

    tenant: str | None = None
    rights: frozenset[Right] = frozenset()
    api_key_id: str | None = None

    def may(self, right: Right) -> bool:
        return right in self.rights

    def require(self, right: Right, what: str) -> None:
        """Raise `Forbidden` if the caller lacks the right. what: the action, for the message."""
        if not self.may(right):
            if self is UNNAMED:
                raise Forbidden(f"a caller without a tenant may not {what}: use the gateway that names the tenant")
            raise Forbidden(f"this key may not {what}: it lacks the right {right!r}")


ANYONE = Caller(rights=frozenset(TENANT_RIGHTS))
"""Any caller of a server without keys."""

UNNAMED = Caller()
"""A caller whom the gateway did not identify, or who bypassed it."""

SIGNED_OUT = Caller()
"""The caller of a console page without a valid session."""


def identify(headers: Headers, peer: str | None, snapshot: Snapshot, settings: Settings, now: datetime) -> Caller:
    """Identify the caller. A key takes precedence over the gateway's header.

    Args:
        headers: the request's headers.
        peer: the connection's source address; None for a socket without one.
        snapshot: the registry's state, with its keys.
        settings: the trusted gateways and their header.
        now: time at which keys must be valid.

    Raises:
        Unauthorized: the registry has keys and the request has no valid key, or the gateway's tenant is unknown.
    """
    presented = _bearer(headers)
    if snapshot.keyed and presented is not None:
        principal = authenticate(snapshot.api_keys, presented, now)
        if principal is None:
            raise Unauthorized("the API key is unknown, revoked or expired; ask the server's operator for a new key")
        return Caller(principal.tenant, principal.rights, principal.api_key_id)
    if settings.tenant_header and is_trusted(peer, settings) and (named := headers.getlist(settings.tenant_header)):
        if len(named) > 1:  # the gateway added its header to the client's instead of replacing it
            raise Unauthorized(f"{settings.tenant_header} came {len(named)} times; its gateway must replace a client's")
        if named[0] not in snapshot.standing:
            raise Unauthorized(f"{settings.tenant_header} names no tenant of this server")
        return Caller(named[0], frozenset(TENANT_RIGHTS))
    if snapshot.keyed:
        raise Unauthorized("an API key is needed: Authorization: Bearer ve_…")
    return ANYONE if settings.tenant_header is None else UNNAMED


def identify_session(session: Session | None, snapshot: Snapshot, now: datetime) -> Caller:
    """Identify the caller of a console page: the administrator whose key began the session.

    The key is looked up at every request, so that its revocation or expiry ends its sessions. Other credentials do not
    count here.

    Args:
        session: the session that the browser's cookie names; None if it has no valid cookie.
        snapshot: the registry's state, with its keys.
        now: time at which the key must be valid.
    """
    api_key = None if session is None else snapshot.api_keys.get(session.api_key_id)
    if api_key is None or not api_key.counts(now):
        return SIGNED_OUT
    return Caller(api_key.tenant, frozenset(api_key.rights), api_key.id)


def is_trusted(peer: str | None, settings: Settings) -> bool:
    """True if the address belongs to one of the operator's gateways."""
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    return any(address in network for network in settings.trusted_peers)


def _bearer(headers: Headers) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
