"""Renders the console's pages, with the headers that protect them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from vllm_edit.serving.admin.authorization import CONSOLE, STATIC
from vllm_edit.serving.admin.dependencies import Dependencies, caller_of, who
from vllm_edit.serving.console import cookies, display
from vllm_edit.serving.console.form import TOKEN, nonce_of
from vllm_edit.serving.console.static_files import StaticFile
from vllm_edit.serving.service import Service
from vllm_edit.serving.sessions import LIFE_S, NOTICE_S, Sessions, new_nonce

HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
)

PLACES = (
    ("patches", "Patches"),
    ("tenants", "Tenants"),
    ("rollouts", "Rollouts"),
    ("servers", "Servers"),
    ("audit", "Audit"),
    ("answers", "Answers"),
    ("playground", "Playground"),
)
"""The navigation: the first part of a page's path, and its title."""


class Pages:
    """The console's pages. files: the static files, by name."""

    def __init__(self, dependencies: Dependencies, files: Mapping[str, StaticFile]) -> None:
        self._dependencies, self._files = dependencies, files
        self._environment = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= display.FILTERS

    @property
    def service(self) -> Service:
        return self._dependencies.service

    @property
    def sessions(self) -> Sessions:
        return self.service.sessions

    def show(
        self, request: Request, template: str, status: HTTPStatus = HTTPStatus.OK, **context: object
    ) -> HTMLResponse:
        """A page. context: the template's variables besides those that all pages have."""
        nonce = nonce_of(request, self.sessions)
        notice = None
        if "hx-request" not in request.headers:  # a page that renews a part of itself does not show it
            notice = self.sessions.notice(cookies.read(request.headers, cookies.NOTICE))
        new = "" if nonce else new_nonce()
        common = self._common(request, nonce or new)
        text = self._environment.get_template(template).render(**common, notice=notice, **context)
        response = HTMLResponse(text, status, headers=HEADERS)
        if new:
            cookies.put(response, request, cookies.VISITOR, new, LIFE_S)
        if notice is not None:
            cookies.drop(response, request, cookies.NOTICE)
        return response

    def problem(self, request: Request, status: HTTPStatus, message: str) -> Response:
        """An error: beside the form that htmx sent, else as a page of its own."""
        if "hx-request" in request.headers:
            text = self._environment.get_template("problem.html").render(message=message)
            return HTMLResponse(text, status, headers=HEADERS)
        return self.show(request, "error.html", status, message=message, phrase=status.phrase)

    def go(self, request: Request, path: str, notice: str = "") -> Response:
        """Continue on another page of the console, which shows the notice. path: below the console's."""
        address = _root(request) + (f"{CONSOLE}/{path}" if path else CONSOLE)
        response: Response = RedirectResponse(address, HTTPStatus.SEE_OTHER, headers=HEADERS)
        if "hx-request" in request.headers:
            response = Response(status_code=HTTPStatus.NO_CONTENT, headers={**HEADERS, "HX-Redirect": address})
        if notice:
            cookies.put(response, request, cookies.NOTICE, self.sessions.note(notice), NOTICE_S)
        return response

    def by(self, request: Request) -> str:
        """The author of a change, for the audit: the session's key, and the name that the person gave."""
        session = cookies.session_of(self.service, request.headers)
        return who(request, "" if session is None else session.name)

    def _common(self, request: Request, nonce: str) -> dict[str, Any]:
        """The variables of all pages."""
        root = _root(request)

        def url(*parts: str, **query: object) -> str:
            path = "/".join([f"{root}{CONSOLE}", *(quote(part, safe="@:") for part in parts)])
            asked = {name: value for name, value in query.items() if value not in (None, "")}
            return f"{path}?{urlencode(asked)}" if asked else path

        def static(name: str) -> str:
            return f"{root}{STATIC}/{name}?v={self._files[name].version}"

        caller = caller_of(request)
        here = request.scope["path"].removeprefix(f"{root}{CONSOLE}").strip("/").partition("/")[0]
        return {
            "url": url,
            "static": static,
            "token": self.sessions.token(nonce),
            "token_field": TOKEN,
            "places": PLACES,
            "here": here,
            "signed_in": caller.may("admin"),
            "session": cookies.session_of(self.service, request.headers),
            "base": self.service.watcher.current.bases[0],
            "generation": self.service.watcher.current.generation,
        }


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root
