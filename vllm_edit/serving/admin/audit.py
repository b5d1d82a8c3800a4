"""`/v1/edits/audit`: the audit log, and a check that it is complete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from vllm_edit.registry.audit import AuditRecord, Verified
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.admin.validation import ValidatedRoute


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/audit", route_class=ValidatedRoute)

    @router.get("")
    async def show(tenant: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[AuditRecord]:
        """The newest changes, oldest first; optionally of a single tenant."""
        return [row.as_record() for row in await dependencies.read(dependencies.registry.audit, tenant, limit)]

    @router.get("/verify")
    async def verify() -> Verified:
        """Verify the hash chain of changes and its anchor."""
        return await dependencies.read(dependencies.registry.verify_audit)

    return router
