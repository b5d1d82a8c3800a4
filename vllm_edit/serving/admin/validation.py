"""Admin routes that report invalid input in one line in OpenAI's format, whatever handlers the application has."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import ErrorDetails

from vllm_edit.errors import EditError
from vllm_edit.invalid import message_of
from vllm_edit.names import shown

_MOST = 8  # problems in a message


class ValidatedRoute(APIRoute):
    """Raises `EditError`, which the router answers with 400, for an invalid body or parameter."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                problems = [_message(problem) for problem in error.errors()[:_MOST]]
                raise EditError("; ".join(problems)) from None

        return checked


def _message(problem: ErrorDetails) -> str:
    """`body.percent: Input should be less than or equal to 100`. It omits the input, which may be a secret."""
    place = ".".join(str(part) for part in problem["loc"])
    return f"{shown(place)[1:-1]}: {message_of(problem)[:200]}"
