"""The page of the servers: how far each follows the registry."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/servers")
    async def servers(request: Request, live: bool = True) -> Response:
        """The servers, also those that fell silent in the last day. The page renews them while `live`."""
        registry, service = dependencies.registry, dependencies.service
        known = await dependencies.read(registry.servers.known)
        return pages.show(
            request,
            "servers.html",
            servers=known,
            newest=await dependencies.read(registry.revision),
            own=service.heartbeat.name,
            residency=service.residency,
            live=live,
        )

    return router
