"""Admin routes under `/v1/edits`: what is compiled, what is published, what answered a request; publish, roll back.

With `VLLM_EDIT_ADMIN_TOKEN` set, all of them need that token (`X-VLLM-Edit-Admin: …` or `Authorization: Bearer …`).
Without it the reading routes are open, as everything is in a server without keys, and the changing ones do not exist:
then one publishes with the command line.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from vllm_edit.errors import NotFound
from vllm_edit.serving.service import Holder, Service
from vllm_edit.serving.settings import Settings

PREFIX = "/v1/edits"
HEADER = "x-vllm-edit-admin"
_BY = "http"


class Publish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    patch: str = Field(max_length=160, description="patch, patch@digest or the digest's beginning")
    why: str = ""


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to: str | None = None
    why: str = ""


def may_administer(headers: Headers, settings: Settings) -> bool:
    """Compared in constant time. Without a token every client of an open server may read."""
    if settings.admin_token is None:
        return True
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = headers.get(HEADER) or (bearer if scheme.lower() == "bearer" else "")
    return hmac.compare_digest(given.encode(), settings.admin_token.encode())


def routes(holder: Holder, settings: Settings) -> APIRouter:
    """The router passes only authorised requests to these."""
    router = APIRouter(prefix=PREFIX)

    def service() -> Service:
        if holder.service is None:
            raise NotFound("the server is still starting")
        return holder.service

    @router.get("")
    async def list_edits() -> dict[str, Any]:
        return _listing(service(), await service().watcher.refresh())

    @router.get("/answers/{id}")
    async def answer(id: str) -> dict[str, Any]:
        found = service().answers.get(id)
        if found is None:
            raise NotFound(f"no answer {id[:80]!r} in the log; it keeps the last {settings.max_answers}")
        return found.as_dict()

    if settings.admin_token is None:
        return router

    @router.post("/tenants/{tenant}/publish")
    async def publish(tenant: str, request: Publish) -> dict[str, Any]:
        store = service().store
        name = await asyncio.to_thread(store.resolve, request.patch)
        await service().prepare(name)  # what cannot be applied is not published
        await asyncio.to_thread(store.registry.publish, tenant, name, request.why, by=_BY)
        return await _tenant(service(), tenant)

    @router.post("/tenants/{tenant}/rollback")
    async def rollback(tenant: str, request: Rollback | None = None) -> dict[str, Any]:
        to, why = (request.to, request.why) if request else (None, "")
        store = service().store
        target = None if to is None else await asyncio.to_thread(store.resolve, to)
        await asyncio.to_thread(store.registry.rollback, tenant, target, why, by=_BY)
        return await _tenant(service(), tenant)

    return router


async def _tenant(service: Service, tenant: str) -> dict[str, Any]:
    """The tenant as it is served from now on."""
    catalogue = await service.watcher.refresh()
    return {"tenant": tenant, "active": catalogue.tenants[tenant], "generation": catalogue.generation}


def _listing(service: Service, catalogue: Any) -> dict[str, Any]:
    tenants = [{"tenant": name, "active": active} for name, active in sorted(catalogue.tenants.items())]
    resident = service.residency.names
    patches = [{"name": name, "resident": name in resident} for name in catalogue.newest_first]
    site = service.residency.site
    engine = {"adapters": len(resident), "capacity": service.residency.capacity, "leases": service.residency.leases}
    described = {"digest": site.digest, "modules": site.modules, "token": site.token, "max_rank": site.max_rank}
    return {
        "base": catalogue.bases[0],
        "site": described,
        "engine": engine,
        "patches": patches,
        "tenants": tenants,
        "generation": catalogue.generation,
    }
