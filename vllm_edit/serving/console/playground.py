"""The playground: one prompt to base, weights and IKE side by side, through the server's own router and engine."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Form as FromForm
from fastapi import Request, Response
from fastapi.routing import APIRouter
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from vllm_edit.registry.api_keys import TENANT_RIGHTS
from vllm_edit.rollout.arm import Mode
from vllm_edit.serving import bodies
from vllm_edit.serving.admin.authorization import CALLER
from vllm_edit.serving.admin.dependencies import Dependencies, caller_of
from vllm_edit.serving.caller import Caller
from vllm_edit.serving.console.form import Form
from vllm_edit.serving.console.pages import HEADERS, Pages
from vllm_edit.serving.console.route import console_router
from vllm_edit.serving.messages import replayed

ID_HEADER = "X-VLLM-Edit-Answer"
"""The answer's id; the header `X-VLLM-Edit-Id` is the id of the page's own request."""

_MOST_TOKENS = 1024


class Question(Form):
    """A prompt for a tenant or a patch, in one mode. The mode is always named: a rollout does not count the answer."""

    model: str = Field(min_length=1, max_length=150, pattern="^[^:]*$", description="a tenant, or a patch's name")
    mode: Mode
    prompt: str = Field(min_length=1, max_length=100_000)
    kind: Literal["text", "chat"] = "text"
    tokens: int = Field(64, ge=1, le=_MOST_TOKENS)

    @property
    def route(self) -> str:
        return bodies.CHAT if self.kind == "chat" else bodies.COMPLETIONS

    def body(self) -> dict[str, Any]:
        """The body for the router."""
        chat = {"messages": [{"role": "user", "content": self.prompt}]}
        asked = chat if self.kind == "chat" else {"prompt": self.prompt}
        sampling = {"temperature": 0, "max_tokens": self.tokens, "stream": True}
        return {"model": f"{self.model}:{self.mode}", **asked, **sampling, "stream_options": {"include_usage": True}}


class RouterAnswer(Response):
    """The answer of this server's own router to a question, passed on as it comes.

    The application is called once more, in this process, as a request of a caller who may ask every tenant's and every
    patch's models. So the answer takes the same way as a client's: scope, prefix, lease, log.
    """

    def __init__(self, question: Question, caller: Caller) -> None:
        super().__init__()
        self._question = question
        self._caller = Caller(None, frozenset(TENANT_RIGHTS), caller.api_key_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def passed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[ID_HEADER] = headers.get("x-vllm-edit-id", "")
                headers.update(HEADERS)
            await send(message)

        path = f"{scope.get('root_path', '')}{self._question.route}"
        asked = {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", CALLER: self._caller}
        asked["headers"] = [(b"content-type", b"application/json")]
        inner, replay = replayed(asked, receive, json.dumps(self._question.body()).encode())
        await scope["app"](inner, replay, passed)


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/playground")
    async def playground(request: Request, model: str = "") -> Response:
        """The form."""
        catalogue = dependencies.service.watcher.current
        return pages.show(
            request,
            "playground.html",
            model=model[:150],
            tenants=[tenant.name for tenant in await dependencies.read(dependencies.registry.tenants)],
            names=catalogue.newest_first[:500],
            most_tokens=_MOST_TOKENS,
        )

    @router.post("/playground/answer")
    async def answer(asked: Annotated[Question, FromForm()], request: Request) -> Response:
        """The answer in one mode, as the server's inference routes stream it."""
        return RouterAnswer(asked, caller_of(request))

    return router
