"""The console's cookies: only this server reads them, scripts do not, and only requests of its own pages carry them."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import Response

from vllm_edit.serving.admin.authorization import CONSOLE
from vllm_edit.serving.service import Service
from vllm_edit.serving.sessions import Session

SESSION = "vllm_edit_session"
VISITOR = "vllm_edit_visitor"
"""A random nonce, for the token of the form of a person who has not signed in yet."""
NOTICE = "vllm_edit_notice"


def read(headers: Headers, name: str) -> str | None:
    return cookie_parser("; ".join(headers.getlist("cookie"))).get(name)


def session_of(service: Service, headers: Headers) -> Session | None:
    """The session that a request's cookie names."""
    return service.sessions.read(read(headers, SESSION))


def put(response: Response, asked: HTTPConnection, name: str, value: str, life_s: int) -> None:
    """Set a cookie; its browser sends it back by HTTPS only if the request came by HTTPS, also to a proxy before us."""
    forwarded = asked.headers.get("x-forwarded-proto", "").partition(",")[0].strip()
    secure = "https" in (asked.scope.get("scheme"), forwarded)
    response.set_cookie(name, value, max_age=life_s, path=_path(asked), secure=secure, httponly=True, samesite="strict")


def drop(response: Response, asked: HTTPConnection, name: str) -> None:
    response.delete_cookie(name, path=_path(asked), httponly=True, samesite="strict")


def _path(asked: HTTPConnection) -> str:
    return f"{asked.scope.get('root_path', '')}{CONSOLE}"
