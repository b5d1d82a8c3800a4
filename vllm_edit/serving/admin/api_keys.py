"""`/v1/edits/keys`: list and revoke all API keys, and create admin keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from fastapi import APIRouter, Request
from pydantic import Field

from vllm_edit.names import LABEL_LENGTH
from vllm_edit.registry.api_keys import ApiKeyInfo, NewApiKey
from vllm_edit.registry.servers import AcknowledgedRecord
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Because, Body, Dependencies, End, Who, who
from vllm_edit.serving.admin.validation import ValidatedRoute


class NewAdminKey(Body):
    label: str = Field("", max_length=LABEL_LENGTH)
    expires_at: End | None = None
    who: Who = ""


@dataclass(frozen=True)
class NewApiKeyInfo(ApiKeyInfo):
    """A new key, with its secret as `key`."""

    key: str

    @classmethod
    def of(cls, made: NewApiKey) -> Self:
        return cls(**asdict(made.api_key.info), key=made.presented)


@dataclass(frozen=True)
class RevokedApiKey(ApiKeyInfo):
    """A revoked key, and the servers that refuse it."""

    acknowledged: AcknowledgedRecord


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/keys", route_class=ValidatedRoute)

    @router.get("")
    async def list_keys() -> list[ApiKeyInfo]:
        """All keys of administrators and tenants, including revoked keys, without their secrets."""
        return [api_key.info for api_key in await dependencies.read(dependencies.registry.api_keys)]

    @router.post("")
    async def create(asked: NewAdminKey, request: Request) -> NewApiKeyInfo:
        """Create an admin key. The response shows the secret, as `key`, only once."""
        made = await dependencies.create_api_key(
            None, label=asked.label, expires_at=asked.expires_at, by=who(request, asked.who)
        )
        return NewApiKeyInfo.of(made)

    @router.post("/{id}/revoke")
    async def revoke(id: str, request: Request, asked: Because | None = None) -> RevokedApiKey:
        """Revoke a key permanently."""
        asked = asked or Because()
        revoked, followed = await dependencies.change(
            dependencies.registry.revoke_api_key, id, why=asked.why, by=who(request, asked.who)
        )
        return RevokedApiKey(**asdict(revoked.info), acknowledged=followed)

    return router
