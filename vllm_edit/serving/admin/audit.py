"""`/v1/edits/audit`: the audit log, and a check that it is complete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from vllm_edit.registry.audit import Verified
from vllm_edit.serving.admin.admission import PREFIX
from vllm_edit.serving.admin.checked import CheckedRoute
from vllm_edit.serving.admin.desk import Desk


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/audit", route_class=CheckedRoute)

    @router.get("")
    async def show(tenant: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[Any]:
        """The newest changes, oldest first; optionally of a single tenant."""
        return [row.as_dict() for row in await desk.read(desk.registry.audit, tenant, limit)]

    @router.get("/verify")
    async def verify() -> Verified:
        """Verify the hash chain of changes and its anchor."""
        return await desk.read(desk.registry.verify_audit)

    return router
