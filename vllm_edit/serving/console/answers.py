"""The page of the log of answers: how a request was answered, by the answer's id."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter

from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router

_NEWEST = 25


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/answers")
    async def answers(request: Request, id: Annotated[str, Query(max_length=64)] = "") -> Response:
        """The newest answers, and a form that asks for an id."""
        if id.strip():
            return pages.go(request, f"answers/{quote(id.strip(), safe='')}")
        newest = await dependencies.read(dependencies.registry.answers.newest, None, _NEWEST)
        return pages.show(request, "answers.html", newest=newest)

    @router.get("/answers/{id}")
    async def answer(request: Request, id: str) -> Response:
        """A logged answer."""
        return pages.show(request, "answer.html", answer=await dependencies.service.answers.find(id))

    return router
