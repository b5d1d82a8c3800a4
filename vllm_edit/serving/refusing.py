"""How a request is refused: which status an error is, and the answer in OpenAI's form."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

from vllm_edit.engine.compat.engine import EngineRefusedError
from vllm_edit.errors import Corrupt, EditError, Incompatible, NotFound, Unavailable
from vllm_edit.serving.bodies import TooLarge
from vllm_edit.serving.caller import Forbidden, Unauthorized
from vllm_edit.serving.fields import FieldsRefused


class Unforeseen(EditError):
    """An error that nobody thought of, while a request was made ready: no mistake of the client's."""


_STATUS = (
    (Unauthorized, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Incompatible, HTTPStatus.CONFLICT),
    (Corrupt, HTTPStatus.INTERNAL_SERVER_ERROR),
    (Unforeseen, HTTPStatus.INTERNAL_SERVER_ERROR),
    (EngineRefusedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (EditError, HTTPStatus.BAD_REQUEST),
)
_OURS = {
    Unavailable: "the registry or the store cannot be reached; what is served goes on, try again later",
    Corrupt: "what is stored for this cannot be read; the server's operator is told",
    EngineRefusedError: "the engine did not take the adapter; try again later",
    Unforeseen: "the server failed; its operator finds the reason by this answer's id",
}
"""What a client is told of faults that are the operator's: their words name machines, users and files."""


def status_of(error: EditError) -> HTTPStatus:
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def told(error: EditError, *, in_full: bool) -> str:
    """What the caller is told. in_full: it administers, or the server has no keys."""
    kind = next((kind for kind in _OURS if isinstance(error, kind)), None)
    return str(error) if in_full or kind is None else _OURS[kind]


def field_of(error: EditError) -> str | None:
    """The field of the body that the error is about, where it is about one."""
    return error.first if isinstance(error, FieldsRefused) else None


def refusal(status: HTTPStatus, message: str, field: str | None = None) -> JSONResponse:
    """An error in OpenAI's form. field: of the body, that it is about."""
    kind = "".join(word.capitalize() for word in status.phrase.split())
    error = {"message": message, "type": f"{kind}Error", "param": field, "code": int(status)}
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse({"error": error}, status_code=int(status), headers=headers)
