"""Signing in with an admin key, and signing out. A session's cookie replaces the key."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import Form as FromForm
from fastapi import Request, Response
from fastapi.routing import APIRouter
from pydantic import Field

from vllm_edit.registry.api_keys import authenticate
from vllm_edit.serving.admin.authorization import CONSOLE
from vllm_edit.serving.admin.dependencies import Who, caller_of
from vllm_edit.serving.caller import TooManyFailures
from vllm_edit.serving.console import cookies
from vllm_edit.serving.console.form import Form
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router
from vllm_edit.serving.console.signed_out import return_address
from vllm_edit.serving.messages import peer_of
from vllm_edit.serving.sessions import LIFE_S

logger = logging.getLogger(__name__)

FAILED_S = 0.5  # a failed sign-in's wait, one failure after another
_QUEUE_S = 10.0  # maximum wait of a failed sign-in; further failures are refused at once


class SignIn(Form):
    key: str = Field(max_length=200)
    name: Who = ""
    next: str = Field("", max_length=2000)


class Failures:
    """Slows failed sign-ins down: the server answers two a second at most, and nobody's valid key waits for them."""

    def __init__(self) -> None:
        self._due = 0.0

    async def wait(self) -> None:
        """Wait for the turn of a failure.

        Raises:
            TooManyFailures: too many others wait.
        """
        now = time.monotonic()
        due = max(self._due, now) + FAILED_S
        if due - now > _QUEUE_S:
            raise TooManyFailures("too many sign-ins fail on this server; try again in some seconds")
        self._due = due
        await asyncio.sleep(due - now)


def routes(pages: Pages) -> APIRouter:
    router, failures = console_router(pages), Failures()

    @router.get("/sign-in")
    async def form(request: Request, next: str = "") -> Response:
        """The form; `next` is the page that was asked for. A person with a session continues there."""
        if caller_of(request).may("admin"):
            return pages.go(request, _below(return_address(next)))
        return pages.show(request, "sign_in.html", next=return_address(next), problem="", name="")

    @router.post("/sign-in")
    async def sign_in(asked: Annotated[SignIn, FromForm()], request: Request) -> Response:
        """Begin a session, if the key is an admin key."""
        snapshot = pages.service.watcher.current.snapshot
        principal = authenticate(snapshot.api_keys, asked.key.strip(), datetime.now(UTC))
        if principal is None or not principal.may("admin"):
            named = "an unknown key" if principal is None else f"key {principal.api_key_id}, which is no admin key"
            logger.warning("a sign-in to the console with %s failed, from %s", named, peer_of(request.scope))
            await failures.wait()
            pages.service.metrics.refused.labels(str(int(HTTPStatus.UNAUTHORIZED))).inc()
            problem = "This is no valid admin key. An operator makes one with: vllm-edit key create --admin"
            shown = {"next": return_address(asked.next), "problem": problem, "name": asked.name}
            return pages.show(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, **shown)
        logger.info("key %s signed in to the console from %s", principal.api_key_id, peer_of(request.scope))
        response = pages.go(request, _below(return_address(asked.next)))
        session = pages.sessions.begin(principal.api_key_id, asked.name.strip())
        cookies.put(response, request, cookies.SESSION, session, LIFE_S)
        cookies.drop(response, request, cookies.VISITOR)
        return response

    @router.post("/sign-out")
    async def sign_out(_: Annotated[Form, FromForm()], request: Request) -> Response:
        """Remove the session's cookie from the browser."""
        response = pages.go(request, "sign-in")
        cookies.drop(response, request, cookies.SESSION)
        return response

    return router


def _below(address: str) -> str:
    """The part of an address of the console that follows the console's own."""
    return address.removeprefix(CONSOLE).removeprefix("/")
