"""Authorizes requests for `/v1/edits` and `/metrics` before they are routed."""

from __future__ import annotations

import re

from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.caller import Caller, SignedOut

PREFIX = "/v1/edits"
OUTCOMES = f"{PREFIX}/outcomes"
ANSWERS = f"{PREFIX}/answers"
PATCHES = f"{PREFIX}/patches"
JOBS = f"{PREFIX}/jobs"
METRICS = "/metrics"
CONSOLE = f"{PREFIX}/console"
SIGN_IN = f"{CONSOLE}/sign-in"
STATIC = f"{CONSOLE}/static"
CALLER = "vllm_edit.caller"
"""Key of an admitted request's ASGI scope: its `Caller`."""

_AUTHORS = re.compile(rf"POST {PATCHES}|GET {JOBS}(/[^/]+(/events)?)?|POST {JOBS}/[^/]+/cancel")
"""Requests of authors: a tenant's key with the right `author`."""


def in_console(path: str) -> bool:
    """True for the console's pages: there a session's cookie identifies the caller, and no header does."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def admitted(method: str, path: str, caller: Caller, snapshot: Snapshot) -> bool:
    """True if the route exists for this caller.

    Without keys, callers cannot be distinguished: routes that only read are open, and routes that change something do
    not exist. Once the registry has keys, a caller needs an admin key; without any admin key, no admin route exists.
    Authors submit patches and see jobs without an admin key.

    Raises:
        Forbidden: the route exists, but the caller's key lacks the right.
        SignedOut: a page of the console, but the browser has no session.
    """
    if in_console(path):
        return _admitted_to_console(method, path, caller, snapshot)
    inside = path == PREFIX or path.startswith(f"{PREFIX}/")
    if (method, path) == ("POST", OUTCOMES):
        caller.require("serve", "report outcomes")
        return True
    if not (inside or (method, path) == ("GET", METRICS)):
        return False
    if not snapshot.keyed and caller.tenant is None:
        return method == "GET" and (path in (PREFIX, METRICS) or path.startswith(f"{ANSWERS}/"))
    if snapshot.keyed and not caller.may("admin") and _AUTHORS.fullmatch(f"{method} {path}"):
        caller.require("author", "submit patches or see their jobs")
        return True
    if inside and not snapshot.administered:
        return False
    caller.require("admin", "administer the server")
    return True


def _admitted_to_console(method: str, path: str, caller: Caller, snapshot: Snapshot) -> bool:
    """Everybody may sign in; all other pages are for administrators. Without any admin key there is no console."""
    if not snapshot.administered:
        return False
    signs_in = path == SIGN_IN and method in ("GET", "POST")
    open_to_all = signs_in or (method == "GET" and path.startswith(f"{STATIC}/"))
    if not (open_to_all or caller.may("admin")):
        raise SignedOut("the console needs a session: sign in with an admin key")
    return True
