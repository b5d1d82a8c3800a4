"""All pages of the console in one router."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from vllm_edit.errors import NotFound
from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.console import (
    answers,
    audit,
    patches,
    playground,
    rollouts,
    servers,
    sign_in,
    static_files,
    tenants,
)
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router
from vllm_edit.serving.service import Holder
from vllm_edit.serving.threads import Threads


def console(holder: Holder) -> APIRouter:
    """The pages; the router lets only admitted requests reach them."""
    threads = Threads(4)  # of the console's own: a page that waits never delays a kill over an admin route
    dependencies = Dependencies(holder, administration=threads, outcomes=threads)
    files = static_files.read_static_files()
    pages = Pages(dependencies, files)
    whole = APIRouter()
    whole.include_router(sign_in.routes(pages))
    whole.include_router(static_files.routes(files))
    for noun in (patches, tenants, rollouts, servers, audit, answers, playground):
        whole.include_router(noun.routes(dependencies, pages))
    whole.include_router(_description(pages, whole))
    whole.include_router(_other(pages))
    return whole


def _description(pages: Pages, whole: APIRouter) -> APIRouter:
    router = console_router(pages)

    @router.get("/openapi.json", include_in_schema=False, response_class=JSONResponse)
    async def description() -> dict[str, Any]:
        """The pages and forms as OpenAPI describes them, for tools that test them."""
        return get_openapi(title="vllm-edit console", version=version("vllm-edit"), routes=whole.routes)

    return router


def _other(pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/{path:path}", include_in_schema=False)
    async def other(request: Request, path: str) -> Response:
        """Every other address."""
        raise NotFound("the console has no such page")

    return router
