"""The base of the console's forms, and the check that a form came from one of its pages."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vllm_edit.serving.caller import Forbidden
from vllm_edit.serving.console import cookies
from vllm_edit.serving.sessions import Sessions

TOKEN = "token"
"""The field of every form that shows that it came from a page of this server."""


class Form(BaseModel):
    """A form. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=200)


def _none_if_empty(given: Any) -> Any:
    return None if given == "" else given


NoneIfEmpty = BeforeValidator(_none_if_empty)
"""A field that a person left empty."""

Text = Annotated[str, Field(max_length=200)]


def nonce_of(request: Request, sessions: Sessions) -> str:
    """The secret of the browser on which the token of its forms depends; empty for a browser without cookies."""
    session = sessions.read(cookies.read(request.headers, cookies.SESSION))
    return session.nonce if session is not None else cookies.read(request.headers, cookies.VISITOR) or ""


async def check_token(request: Request, sessions: Sessions) -> None:
    """Refuse a form that another site's page may have sent.

    Raises:
        Forbidden: the form's token is missing, or belongs to another session.
    """
    given = (await request.form()).get(TOKEN)
    if not (isinstance(given, str) and sessions.matches(nonce_of(request, sessions), given)):
        raise Forbidden("this form is not of your present session: load its page again, and send it from there")
