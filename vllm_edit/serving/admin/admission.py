"""Who may reach which route under `/v1/edits`, and `/metrics`: decided before a route is looked for."""

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
    """False for what does not exist, for this caller now.

    Without keys there is nobody to tell apart: what only reads is open, as the models are, and what changes something
    does not exist. From the first key on, an admin key is needed; until one was made, no admin route exists.

    Raises:
        Forbidden: it exists, and the caller's key lacks the right.
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
