"""`/v1/edits/tenants`: tenants, their publications and their API keys."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH
from vllm_edit.registry.api_keys import ApiKeyInfo
from vllm_edit.registry.publications import Publication
from vllm_edit.registry.servers import AcknowledgedRecord
from vllm_edit.registry.tenants import Tenant
from vllm_edit.serving.admin.api_keys import NewApiKeyInfo
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Because, Body, Dependencies, End, Reference, Who, who
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.serving.served_model import check_not_a_base


class NewTenant(Body):
    name: str = Field(max_length=63)
    who: Who = ""


class Publish(Because):
    patch: Reference
    override: str = Field("", max_length=REASON_LENGTH, description="why a patch is published against its gate")
    valid_until: End | None = None


class Rollback(Because):
    to: Reference | None = Field(None, description="an earlier publication; default: the one before")


class Holdout(Because):
    percent: float = Field(ge=0, le=100, description="per cent of the users")


class Active(BaseModel):
    """The tenant's active patch, and the servers that have applied the change.

    changed: false if the patch was published already; then no reason or name is recorded.
    """

    tenant: str
    active: str | None
    changed: bool
    acknowledged: AcknowledgedRecord


class History(BaseModel):
    tenant: str
    publications: list[Publication]


class NewTenantKey(Body):
    base: bool = Field(True, description="may it ask for the base model?")
    author: bool = Field(False, description="may it submit patches to be compiled, and follow their jobs?")
    label: str = Field("", max_length=LABEL_LENGTH)
    expires_at: End | None = None
    who: Who = ""


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/tenants", route_class=ValidatedRoute)

    @router.get("")
    async def list_tenants() -> list[Tenant]:
        return await dependencies.read(dependencies.registry.tenants)

    @router.post("")
    async def create(asked: NewTenant, request: Request) -> Tenant:
        """Create a tenant. It is served the base model until a patch is published."""
        return await create_tenant(dependencies, asked, by=who(request, asked.who))

    @router.get("/{tenant}")
    async def history(tenant: str) -> History:
        """A tenant's publications, newest first, including those rolled back."""
        return History(tenant=tenant, publications=await dependencies.read(dependencies.registry.history, tenant))

    @router.post("/{tenant}/publish")
    async def publish(tenant: str, asked: Publish, request: Request) -> Active:
        """Publish a compiled patch to the tenant. It is loaded first; a patch that cannot be applied is refused."""
        return await publish_patch(dependencies, tenant, asked, by=who(request, asked.who))

    @router.post("/{tenant}/rollback")
    async def rollback(tenant: str, request: Request, asked: Rollback | None = None) -> Active:
        """Return the tenant to its previous publication, or to an earlier one."""
        asked = asked or Rollback()
        return await roll_back(dependencies, tenant, asked, by=who(request, asked.who))

    @router.post("/{tenant}/holdout")
    async def holdout(tenant: str, asked: Holdout, request: Request) -> Tenant:
        """Keep a share of the users out of all rollouts that are made from now on."""
        changed, _ = await dependencies.change(
            dependencies.registry.set_holdout, tenant, asked.percent, asked.why, by=who(request, asked.who)
        )
        return changed

    @router.get("/{tenant}/keys")
    async def keys(tenant: str) -> list[ApiKeyInfo]:
        """A tenant's keys, including revoked keys, without their secrets."""
        return [api_key.info for api_key in await dependencies.read(dependencies.registry.api_keys, tenant)]

    @router.post("/{tenant}/keys")
    async def create_key(tenant: str, asked: NewTenantKey, request: Request) -> NewApiKeyInfo:
        """Create a key. The response shows the secret, as `key`, only once."""
        made = await dependencies.create_api_key(
            tenant,
            base=asked.base,
            author=asked.author,
            label=asked.label,
            expires_at=asked.expires_at,
            by=who(request, asked.who),
        )
        return NewApiKeyInfo.of(made)

    return router


async def create_tenant(dependencies: Dependencies, asked: NewTenant, by: str) -> Tenant:
    """Create a tenant, and wait for the servers. It must not have one of the base model's names."""
    check_not_a_base(asked.name, dependencies.service.watcher.current.bases)
    made, _ = await dependencies.change(dependencies.registry.create_tenant, asked.name, by=by)
    return made


async def publish_patch(dependencies: Dependencies, tenant: str, asked: Publish, by: str) -> Active:
    """Load a compiled patch, publish it to the tenant, and wait for the servers."""
    name = await dependencies.read(dependencies.service.store.resolve, asked.patch)
    await dependencies.service.watcher.refresh()  # it may have been compiled a moment ago
    await dependencies.service.prepare(name)
    changed, followed = await dependencies.change(
        dependencies.registry.publish,
        tenant,
        name,
        asked.why,
        override=asked.override,
        by=by,
        valid_until=asked.valid_until,
    )
    return Active(tenant=tenant, active=name, changed=changed, acknowledged=followed)


async def roll_back(dependencies: Dependencies, tenant: str, asked: Rollback, by: str) -> Active:
    """Return the tenant to an earlier publication, and wait for the servers."""
    target = None if asked.to is None else await dependencies.read(dependencies.service.store.resolve, asked.to)
    active, followed = await dependencies.change(dependencies.registry.rollback, tenant, target, asked.why, by=by)
    return Active(tenant=tenant, active=active, changed=True, acknowledged=followed)
