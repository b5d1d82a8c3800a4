"""All admin routes in one router, with their own OpenAPI description."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from vllm_edit.serving.admin import api_keys, audit, edits, jobs, outcomes, rollouts, tenants
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.service import Holder


def api(holder: Holder) -> APIRouter:
    """The routes; the router lets only admitted requests reach them."""
    dependencies = Dependencies(holder)
    whole = APIRouter()
    for noun in (edits, tenants, api_keys, rollouts, jobs, audit, outcomes):
        whole.include_router(noun.routes(dependencies))

    @whole.get(f"{PREFIX}/openapi.json", include_in_schema=False)
    async def description() -> dict[str, Any]:
        """These routes as OpenAPI describes them; vLLM's own description is not served."""
        return get_openapi(title="vllm-edit admin", version=version("vllm-edit"), routes=whole.routes)

    return whole
