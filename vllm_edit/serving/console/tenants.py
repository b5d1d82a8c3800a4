"""Pages of the tenants: the list, and one tenant's history with the forms to publish and to roll back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Form as FromForm
from fastapi import Query, Request, Response
from fastapi.routing import APIRouter
from pydantic import BeforeValidator

from vllm_edit.errors import EditError
from vllm_edit.names import short
from vllm_edit.registry.publications import served
from vllm_edit.serving.admin.dependencies import Dependencies, End, Reference
from vllm_edit.serving.admin.tenants import NewTenant, Publish, Rollback, create_tenant, publish_patch, roll_back
from vllm_edit.serving.console.display import followed
from vllm_edit.serving.console.form import Form, NoneIfEmpty
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router


def _in_utc(given: Any) -> Any:
    """A browser's field for a date and a time has no zone: the page says that it is UTC."""
    if not isinstance(given, str):
        return given
    try:
        time = datetime.fromisoformat(given.strip()) if given.strip() else None
    except ValueError:
        return given
    return time if time is None or time.tzinfo is not None else time.replace(tzinfo=UTC)


class NewTenantForm(NewTenant, Form):
    """A new tenant."""


class PublishForm(Publish, Form):
    """A publication."""

    valid_until: Annotated[End | None, BeforeValidator(_in_utc)] = None


class RollbackForm(Rollback, Form):
    """A rollback; an empty `to` is the publication before."""

    to: Annotated[Reference | None, NoneIfEmpty] = None


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/tenants")
    async def tenants(request: Request) -> Response:
        """All tenants, with what they are served."""
        return pages.show(request, "tenants.html", tenants=await dependencies.read(dependencies.registry.tenants))

    @router.post("/tenants")
    async def create(asked: Annotated[NewTenantForm, FromForm()], request: Request) -> Response:
        made = await create_tenant(dependencies, asked, by=pages.by(request))
        return pages.go(request, f"tenants/{made.name}", f"Tenant {made.name} exists. It is served the base model.")

    @router.get("/tenants/{tenant}")
    async def tenant(request: Request, tenant: str) -> Response:
        """A tenant's publications, the newest first."""
        history = await dependencies.read(dependencies.registry.history, tenant)
        state = await dependencies.read(dependencies.registry.state, tenant)
        now = datetime.now(UTC)
        return pages.show(
            request,
            "tenant.html",
            tenant=tenant,
            history=history,
            current=served(history, now),
            arm=state.served(now),
            rollouts=state.deciding,
            now=now,
            names=dependencies.service.watcher.current.newest_first,
        )

    @router.post("/tenants/{tenant}/publish")
    async def publish(tenant: str, asked: Annotated[PublishForm, FromForm()], request: Request) -> Response:
        done = await publish_patch(dependencies, tenant, asked, by=pages.by(request))
        served_now = short(done.active) if done.active else "the base model"
        already = "" if done.changed else " already; nothing changed"
        notice = f"{tenant} is served {served_now}{already}: {followed(done.acknowledged)}"
        return pages.go(request, f"tenants/{tenant}", notice)

    @router.get("/tenants/{tenant}/rollback")
    async def confirm(request: Request, tenant: str, to: Annotated[str, Query(max_length=160)] = "") -> Response:
        """Ask before a rollback: what the tenant is served now, and what after it."""
        history = await dependencies.read(dependencies.registry.history, tenant)
        state = await dependencies.read(dependencies.registry.state, tenant)
        entries = await dependencies.read(dependencies.registry.rollouts.newest_first, tenant)
        now = datetime.now(UTC)
        standing = [entry for entry in history if not (entry.rolled_back or entry.ended(now))]
        governed = state.rollout is not None
        if not (standing or governed):
            raise EditError(f"tenant {tenant} is served the base model: there is nothing to roll back")
        earlier = [entry.name for entry in standing[1:]]
        if to and to not in earlier:
            raise EditError("the patch is not an earlier publication of this tenant; choose it from the history")
        current = standing[0].name if standing else None
        after = to or (current if governed else earlier[0] if earlier else None)
        return pages.show(
            request,
            "rollback.html",
            tenant=tenant,
            arm=state.served(now),
            rollouts=[entry.rollout for entry in entries if not entry.rollout.closed],
            to=to,
            after=after,
        )

    @router.post("/tenants/{tenant}/rollback")
    async def rollback(tenant: str, asked: Annotated[RollbackForm, FromForm()], request: Request) -> Response:
        done = await roll_back(dependencies, tenant, asked, by=pages.by(request))
        served_now = short(done.active) if done.active else "the base model"
        notice = f"{tenant} is rolled back to {served_now}: {followed(done.acknowledged)}"
        return pages.go(request, f"tenants/{tenant}", notice)

    return router
