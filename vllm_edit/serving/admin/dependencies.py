"""Shared dependencies of the admin routes: the service, the caller, and changes that every server applies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from vllm_edit.errors import NotFound, Unavailable
from vllm_edit.instant import in_utc
from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH, check_note, is_one_line
from vllm_edit.registry.api_keys import NewApiKey
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.servers import AcknowledgedRecord
from vllm_edit.serving.admin.authorization import CALLER
from vllm_edit.serving.caller import Caller
from vllm_edit.serving.service import Holder, Service
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.watcher import FAILURES

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


def _one_line(text: str) -> str:
    if not is_one_line(text):
        raise ValueError("expected a name on one line, without control or format characters")
    return text


FOLLOW_S = 10.0
"""How long a response waits for servers to apply a change; after that it names the missing ones."""

End = Annotated[AwareDatetime, AfterValidator(in_utc)]
Why = Annotated[str, Field(max_length=REASON_LENGTH, description="why, for the audit")]
Who = Annotated[
    str,
    Field(max_length=LABEL_LENGTH // 2, description="who decided it; the audit shows this name after the key's id"),
    AfterValidator(_one_line),
]
Reference = Annotated[str, Field(max_length=160, description="patch, patch@digest or the beginning of its digest")]


class Body(BaseModel):
    """A request's body. Unknown fields are refused. No field is a path or a URL."""

    model_config = ConfigDict(extra="forbid")


class Because(Body):
    """Author and reason of a change, for the audit log."""

    why: Why = ""
    who: Who = ""


@dataclass(frozen=True)
class Dependencies:
    """The shared dependencies. `outcomes` has separate threads, so that a kill never waits for clients' reports."""

    holder: Holder
    administration: Threads = field(default_factory=lambda: Threads(16))
    outcomes: Threads = field(default_factory=lambda: Threads(4))

    @property
    def service(self) -> Service:
        if self.holder.service is None:
            raise NotFound("the server is still starting")
        return self.holder.service

    @property
    def registry(self) -> Registry:
        return self.service.store.registry

    async def read(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run `work` in a thread, because it waits for the database or for files."""
        return await self.administration.run(work, *arguments, **named)

    async def change(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> tuple[T, AcknowledgedRecord]:
        """Run `work`, then wait up to `FOLLOW_S` until all servers have applied the change.

        Returns:
            The result of `work`, and a record of the servers that have applied the change and of those that have not.

        Raises:
            Unavailable: the change is made, but the registry went down, so its propagation is unknown.
        """
        made = await self.read(work, *arguments, **named)
        try:
            return made, (await self.service.followed(FOLLOW_S)).as_record()
        except FAILURES as error:
            message = "the change is made, do not repeat it; which servers follow it is not known"
            raise Unavailable(f"{message}: {error}") from error

    async def create_api_key(
        self,
        tenant: str | None,
        *,
        by: str,
        label: str,
        expires_at: datetime | None,
        base: bool = True,
        author: bool = False,
    ) -> NewApiKey:
        """Create a key, and wait for the servers. Its secret exists only here, so it is returned also if the registry
        went down after the change."""
        made = await self.read(
            self.registry.create_api_key,
            tenant,
            base=base,
            author=author,
            label=label,
            expires_at=expires_at,
            by=by,
        )
        try:
            await self.service.followed(FOLLOW_S)
        except FAILURES as error:
            logger.warning("key %s is made; which servers follow it is not known: %s", made.api_key.id, error)
        return made


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


def who(request: Request, said: str = "") -> str:
    """The author for the audit log: the authenticated key, then the name that the body gives, if any.

    Raises:
        EditError: the name is blank.
    """
    author = f"key {caller_of(request).api_key_id}"
    said = check_note(said, "a name of who does it", LABEL_LENGTH)
    return f"{author} ({said})" if said else author
