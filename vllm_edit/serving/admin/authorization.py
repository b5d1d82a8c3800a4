"""Authorizes requests for `/v1/edits` and `/metrics` before they are routed."""

from __future__ import annotations

from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.caller import Caller

PREFIX = "/v1/edits"
OUTCOMES = f"{PREFIX}/outcomes"
ANSWERS = f"{PREFIX}/answers"
METRICS = "/metrics"
CALLER = "vllm_edit.caller"
"""Key of an admitted request's ASGI scope: its `Caller`."""


def admitted(method: str, path: str, caller: Caller, snapshot: Snapshot) -> bool:
    """True if the route exists for this caller.

    Without keys, callers cannot be distinguished: routes that only read are open, and routes that change something do
    not exist. Once the registry has keys, a caller needs an admin key; without any admin key, no admin route exists.

    Raises:
        Forbidden: the route exists, but the caller's key lacks the right.
    """
    inside = path == PREFIX or path.startswith(f"{PREFIX}/")
    if (method, path) == ("POST", OUTCOMES):
        caller.require("serve", "report outcomes")
        return True
    if not (inside or (method, path) == ("GET", METRICS)):
        return False
    if not snapshot.keyed and caller.tenant is None:
        return method == "GET" and (path in (PREFIX, METRICS) or path.startswith(f"{ANSWERS}/"))
    if inside and not snapshot.administered:
        return False
    caller.require("admin", "administer the server")
    return True
