"""`/v1/edits`: what is compiled, what is served, what answered a request."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from vllm_edit.registry.entries import PatchEntry
from vllm_edit.serving.admin.admission import PREFIX
from vllm_edit.serving.admin.checked import CheckedRoute
from vllm_edit.serving.admin.desk import Body, Desk, Who, who
from vllm_edit.store import garbage
from vllm_edit.store.maintenance import problems_of


class Served(BaseModel):
    """What a tenant is served where a request names no user; rollout: the one that decides, if one does."""

    tenant: str
    active: str | None
    rollout: str | None = None


class Loaded(BaseModel):
    name: str
    resident: bool


class EngineTold(BaseModel):
    adapters: int
    capacity: int
    leases: int


class SiteTold(BaseModel):
    digest: str
    modules: tuple[str, ...]
    token: str
    max_rank: int


class Listing(BaseModel):
    """What this server can answer with, and what its tenants are served."""

    base: str
    site: SiteTold
    engine: EngineTold
    patches: list[Loaded]
    tenants: list[Served]
    generation: int


class PatchTold(BaseModel):
    """One compiled patch: the registry's entry, its manifest, and what was recorded about it."""

    entry: PatchEntry
    manifest: dict[str, Any]
    records: list[dict[str, Any]]


class Collect(Body):
    remove: bool = False
    wait_s: float = Field(30.0, ge=0, le=600, description="how long every live server has to drop their adapters")
    who: Who = ""


class Garbage(BaseModel):
    """would_remove: without `remove`. retired: what nobody can ask for any more, but servers (missing) still hold."""

    would_remove: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix=PREFIX, route_class=CheckedRoute)

    @router.get("")
    async def list_edits() -> Listing:
        """Site, compiled patches, which are in the engine, tenants and what they are served."""
        return _listing(desk, datetime.now(UTC))

    @router.get("/answers/{id}")
    async def answer(id: str) -> dict[str, Any]:
        """What answered a request: tenant, exact patch and adapter, mode, arm, reason."""
        return asdict(await desk.service.answers.find(id))

    @router.get("/patches/{name}")
    async def patch(name: str) -> PatchTold:
        """A compiled patch by its name, or by the beginning of its digest."""
        return await desk.read(_patch, desk, name)

    @router.get("/verify")
    async def verify() -> dict[str, list[str]]:
        """Every file of the store against its digest."""
        return {"problems": await desk.read(problems_of, desk.service.store)}

    @router.post("/gc")
    async def gc(asked: Collect, request: Request) -> Garbage:
        """Compiled patches that nobody can be served; with `remove` they go, when every server has dropped them."""
        by = who(request, asked.who)
        found = await desk.read(garbage.gc, desk.service.store, dry_run=not asked.remove, wait_s=asked.wait_s, by=by)
        return Garbage(**asdict(found)) if asked.remove else Garbage(would_remove=found.removed)

    return router


def _listing(desk: Desk, now: datetime) -> Listing:
    service, catalogue = desk.service, desk.service.watcher.current
    resident, site = service.residency.names, service.residency.site
    rollouts = catalogue.snapshot.rollouts
    tenants = [
        Served(tenant=name, active=arm.name, rollout=rollouts[name].name if name in rollouts else None)
        for name, arm in sorted(catalogue.served(now).items())
    ]
    return Listing(
        base=catalogue.bases[0],
        site=SiteTold(digest=site.digest, modules=site.modules, token=site.token, max_rank=site.max_rank),
        engine=EngineTold(adapters=len(resident), capacity=service.residency.capacity, leases=service.residency.leases),
        patches=[Loaded(name=name, resident=name in resident) for name in catalogue.newest_first],
        tenants=tenants,
        generation=catalogue.generation,
    )


def _patch(desk: Desk, name: str) -> PatchTold:
    store = desk.service.store
    full = store.resolve(name)
    records = [asdict(record) for record in store.records(full)]
    return PatchTold(entry=store.entry(full), manifest=store.manifest(full).model_dump(mode="json"), records=records)
