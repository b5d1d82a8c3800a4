"""`/v1/edits/keys`: list and revoke all API keys, and create admin keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from vllm_edit.names import LABEL_LENGTH
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Because, Body, Dependencies, End, Who, who
from vllm_edit.serving.admin.validation import ValidatedRoute


class NewAdminKey(Body):
    label: str = Field("", max_length=LABEL_LENGTH)
    expires_at: End | None = None
    who: Who = ""


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/keys", route_class=ValidatedRoute)

    @router.get("")
    async def list_keys() -> list[dict[str, Any]]:
        """All keys of administrators and tenants, including revoked keys, without their secrets."""
        return [api_key.as_dict() for api_key in await dependencies.read(dependencies.registry.api_keys)]

    @router.post("")
    async def create(asked: NewAdminKey, request: Request) -> dict[str, Any]:
        """Create an admin key. The response shows the secret, as `key`, only once."""
        made, _ = await dependencies.change(
            dependencies.registry.create_api_key,
            None,
            label=asked.label,
            expires_at=asked.expires_at,
            by=who(request, asked.who),
        )
        return made.api_key.as_dict() | {"key": made.presented}

    @router.post("/{id}/revoke")
    async def revoke(id: str, request: Request, asked: Because | None = None) -> dict[str, Any]:
        """Revoke a key permanently."""
        asked = asked or Because()
        revoked, followed = await dependencies.change(
            dependencies.registry.revoke_api_key, id, why=asked.why, by=who(request, asked.who)
        )
        return revoked.as_dict() | {"acknowledged": followed}

    return router
