"""`/v1/edits`: compiled patches, served patches, and logged answers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, JsonValue

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.rollout.decision import TenantState
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Body, Dependencies, Who, who
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.store import garbage
from vllm_edit.store.maintenance import problems_of


class Served(BaseModel):
    """The patch served to a tenant's requests that name no user, and the rollout that decides it, if any.

    beside: further rollouts that decide, for other users.
    """

    tenant: str
    active: str | None
    rollout: str | None = None
    beside: tuple[str, ...] = ()


class Loaded(BaseModel):
    name: str
    resident: bool


class EngineInfo(BaseModel):
    adapters: int
    capacity: int
    leases: int


class SiteInfo(BaseModel):
    digest: str
    modules: tuple[str, ...]
    token: str
    max_rank: int


class Listing(BaseModel):
    """The patches that this server has, and those that it serves to its tenants."""

    base: str
    site: SiteInfo
    engine: EngineInfo
    patches: list[Loaded]
    tenants: list[Served]
    generation: int


class RecordInfo(BaseModel):
    """A compile report, a gate's verdict or an evaluation."""

    name: str
    kind: str
    at: datetime
    data: dict[str, JsonValue]


class PatchInfo(BaseModel):
    """A compiled patch: its registry entry, its manifest and its records."""

    entry: PatchEntry
    manifest: Manifest
    records: list[RecordInfo]


class Collect(Body):
    remove: bool = False
    wait_s: float = Field(30.0, ge=0, le=600, description="how long every live server has to drop their adapters")
    who: Who = ""


class Garbage(BaseModel):
    """The result of a collection.

    would_remove: patches that a call with `remove` would delete. retired: patches that no request can select any more,
    but that the servers in `missing` still hold.
    """

    would_remove: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=PREFIX, route_class=ValidatedRoute)

    @router.get("")
    async def list_edits() -> Listing:
        """The site, the engine, the compiled patches, and the tenants with their active patches."""
        return _listing(dependencies, datetime.now(UTC))

    @router.get("/answers/{id}")
    async def answer(id: str) -> AnswerEntry:
        """A logged answer: tenant, exact patch and adapter, mode, arm, reason."""
        return await dependencies.service.answers.find(id)

    @router.get("/patches/{name}")
    async def patch(name: str) -> PatchInfo:
        """A compiled patch, by its name or by a prefix of its digest."""
        return await dependencies.read(patch_info, dependencies, name)

    @router.get("/verify")
    async def verify() -> dict[str, list[str]]:
        """Verify every file of the store against its digest."""
        return {"problems": await dependencies.read(problems_of, dependencies.service.store)}

    @router.post("/gc")
    async def gc(asked: Collect, request: Request) -> Garbage:
        """List unused compiled patches. With `remove`, delete them once every server has dropped them."""
        by = who(request, asked.who)
        found = await dependencies.read(
            garbage.gc, dependencies.service.store, dry_run=not asked.remove, wait_s=asked.wait_s, by=by
        )
        return Garbage(**asdict(found)) if asked.remove else Garbage(would_remove=found.removed)

    return router


def _listing(dependencies: Dependencies, now: datetime) -> Listing:
    service, catalogue = dependencies.service, dependencies.service.watcher.current
    resident, site = service.residency.names, service.residency.site
    snapshot = catalogue.snapshot
    tenants = [_served(snapshot.state(tenant, now), now) for tenant in sorted(snapshot.standing)]
    return Listing(
        base=catalogue.bases[0],
        site=SiteInfo(digest=site.digest, modules=site.modules, token=site.token, max_rank=site.max_rank),
        engine=EngineInfo(adapters=len(resident), capacity=service.residency.capacity, leases=service.residency.leases),
        patches=[Loaded(name=name, resident=name in resident) for name in catalogue.newest_first],
        tenants=tenants,
        generation=catalogue.generation,
    )


def _served(state: TenantState, now: datetime) -> Served:
    names = [rollout.name for rollout in state.deciding]
    rollout = names[0] if names else None
    return Served(tenant=state.tenant, active=state.served(now).name, rollout=rollout, beside=tuple(names[1:]))


def patch_info(dependencies: Dependencies, name: str) -> PatchInfo:
    """A compiled patch's registry entry, manifest and records. Waits for the database and for files."""
    store = dependencies.service.store
    full = store.resolve(name)
    records = [RecordInfo(**vars(record)) for record in store.records(full)]
    return PatchInfo(entry=store.entry(full), manifest=store.manifest(full), records=records)
