"""Turns errors into HTTP responses: the status, and the message in OpenAI's format."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

from vllm_edit.engine.compat.engine import EngineRefusedError
from vllm_edit.errors import Corrupt, EditError, Incompatible, NotFound, TooMany, Unavailable, Unsigned
from vllm_edit.serving.bodies import TooLarge
from vllm_edit.serving.caller import Forbidden, TooManyFailures, Unauthorized
from vllm_edit.serving.fields import FieldsRefused


class Unforeseen(EditError):
    """An unexpected error while a request was prepared; not the client's fault."""


_STATUS = (
    (Unauthorized, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (TooManyFailures, HTTPStatus.TOO_MANY_REQUESTS),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Incompatible, HTTPStatus.CONFLICT),
    (Corrupt, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Unsigned, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Unforeseen, HTTPStatus.INTERNAL_SERVER_ERROR),
    (EngineRefusedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (EditError, HTTPStatus.BAD_REQUEST),
)
REFUSALS = tuple(sorted({int(status) for _, status in _STATUS}))
"""The statuses of refused requests."""
_OURS = {
    Unavailable: "the registry or the store cannot be reached; what is served goes on, try again later",
    Corrupt: "the stored files of this patch cannot be read; the error is in the server's log",
    Unsigned: "this patch may not be served here; the error is in the server's log",
    EngineRefusedError: "the engine did not take the adapter; try again later",
    Unforeseen: "the server failed; its operator finds the reason by this answer's id",
}
"""Client-safe messages for operator errors; the originals contain host, user and file names."""


def status_of(error: EditError) -> HTTPStatus:
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def client_message(error: EditError, *, in_full: bool) -> str:
    """The message for the caller. in_full: the caller is an administrator, or the server has no keys."""
    kind = next((kind for kind in _OURS if isinstance(error, kind)), None)
    return str(error) if in_full or kind is None else _OURS[kind]


def field_of(error: EditError) -> str | None:
    """The field of the body that caused the error, or None."""
    return error.first if isinstance(error, FieldsRefused) else None


def refusal(status: HTTPStatus, message: str, field: str | None = None) -> JSONResponse:
    """An error response in OpenAI's format. field: the field of the body that caused the error."""
    kind = "".join(word.capitalize() for word in status.phrase.split())
    error = {"message": message, "type": f"{kind}Error", "param": field, "code": int(status)}
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse({"error": error}, status_code=int(status), headers=headers)
