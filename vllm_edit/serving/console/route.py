"""Routes of the console: they check the token of every form, and show errors as pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from vllm_edit.errors import EditError
from vllm_edit.serving.admin.authorization import CONSOLE
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.serving.console.form import check_token
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.error_responses import status_of


def console_router(pages: Pages) -> APIRouter:
    """A router whose routes show errors on `pages`."""

    class ConsoleRoute(ValidatedRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handled(request: Request) -> Response:
                try:
                    if request.method == "POST":
                        await check_token(request, pages.sessions)
                    return await handler(request)
                except EditError as error:
                    status = status_of(error)
                    pages.service.metrics.refused.labels(str(int(status))).inc()
                    return pages.problem(request, status, str(error))

            return handled

    return APIRouter(prefix=CONSOLE, route_class=ConsoleRoute, default_response_class=HTMLResponse)
