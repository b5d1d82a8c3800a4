"""The page of the audit: the newest changes, and the check that none is missing or changed."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter

from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router

LIMITS = (50, 200, 1000)


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/audit")
    async def audit(
        request: Request,
        tenant: Annotated[str, Query(max_length=63)] = "",
        limit: Annotated[int, Query(ge=1, le=LIMITS[-1])] = LIMITS[0],
        verify: bool = False,
    ) -> Response:
        """The newest changes, the newest first; with `verify`, the result of checking all of them."""
        registry = dependencies.registry
        entries = await dependencies.read(registry.audit, tenant or None, limit)
        verified = await dependencies.read(registry.verify_audit) if verify else None
        return pages.show(
            request,
            "audit.html",
            entries=[(entry, entry.as_record()) for entry in reversed(entries)],
            tenant=tenant,
            limit=limit,
            limits=LIMITS,
            tenants=[found.name for found in await dependencies.read(registry.tenants)],
            verified=verified,
        )

    return router
