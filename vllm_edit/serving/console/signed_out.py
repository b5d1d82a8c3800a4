"""The answer to a browser without a session, and the page to which it returns after signing in."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlencode

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from vllm_edit.serving.admin.authorization import CONSOLE, SIGN_IN, in_console
from vllm_edit.serving.error_responses import refusal

_LONGEST = 2000  # characters of an address


def signed_out(scope: Scope) -> Response:
    """Send a reader to the form for signing in; refuse a change."""
    root, headers = scope.get("root_path", ""), Headers(scope=scope)
    path, query = scope["path"].removeprefix(root), scope.get("query_string", b"").decode("latin-1")
    form = f"{root}{SIGN_IN}?{urlencode({'next': f'{path}?{query}' if query else path})}"
    if scope["method"] in ("GET", "HEAD") and "hx-request" not in headers:
        return RedirectResponse(form, HTTPStatus.SEE_OTHER, headers={"Cache-Control": "no-store"})
    response = refusal(HTTPStatus.UNAUTHORIZED, "the console needs a session: sign in with an admin key")
    response.headers["HX-Redirect"] = f"{root}{SIGN_IN}"
    del response.headers["WWW-Authenticate"]  # a browser may ask the person for a password
    return response


def return_address(asked: str) -> str:
    """The page after signing in: the page that was asked for if it is of the console, else the console's first."""
    path = asked.partition("?")[0]
    inside = in_console(path) and asked.isascii() and asked.isprintable() and "\\" not in asked
    return asked if inside and path != SIGN_IN and len(asked) <= _LONGEST else CONSOLE
