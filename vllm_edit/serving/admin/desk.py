"""What every admin route works with: the service, who asks, and changes that every server follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from vllm_edit.errors import EditError, NotFound, Unavailable
from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH, is_one_line
from vllm_edit.registry.registry import Registry
from vllm_edit.serving.admin.admission import CALLER
from vllm_edit.serving.caller import Caller
from vllm_edit.serving.service import Holder, Service
from vllm_edit.serving.threads import Threads

T = TypeVar("T")


def _in_utc(time: datetime) -> datetime:
    """The registry keeps times in UTC, in which the last hours of some zones do not exist."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time within the years 1 to 9999 in UTC") from None


def _one_line(text: str) -> str:
    if not is_one_line(text):
        raise ValueError("expected a name on one line, without control or format characters")
    return text


FOLLOW_S = 10.0
"""How long an answer waits for servers that do not follow; they are then named."""

End = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Why = Annotated[str, Field(max_length=REASON_LENGTH, description="why, for the audit")]
Who = Annotated[
    str,
    Field(max_length=LABEL_LENGTH // 2, description="whose decision it is, behind the key's id"),
    AfterValidator(_one_line),
]
Reference = Annotated[str, Field(max_length=160, description="patch, patch@digest or the beginning of its digest")]


class Body(BaseModel):
    """A request's body; what it does not know is refused. Nothing here is a path or a URL."""

    model_config = ConfigDict(extra="forbid")


class Because(Body):
    """Who and why, for the audit."""

    why: Why = ""
    who: Who = ""


@dataclass(frozen=True)
class Desk:
    """outcomes: threads of their own, so that no kill has to wait for what clients report."""

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

    async def read(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """`work` in a thread: it waits for the database or for files."""
        return await self.administration.run(work, *arguments, **named)

    async def change(self, work: Callable[..., T], *arguments: Any, **named: Any) -> tuple[T, dict[str, Any]]:
        """`work`, and who follows: this server already, the others within `FOLLOW_S`, or they are named.

        Raises:
            Unavailable: the change is made, but whether anybody follows cannot be known: the registry went down.
        """
        made = await self.read(work, *arguments, **named)
        try:
            return made, await self.service.followed(FOLLOW_S)
        except EditError as error:
            told = "the change is made, do not repeat it; which servers follow it is not known"
            raise Unavailable(f"{told}: {error}") from error


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


def who(request: Request, said: str = "") -> str:
    """Whom the audit names: the key, which is proven, and behind it, if the body says so, on whose decision."""
    key = f"key {caller_of(request).key}"
    return f"{key} ({said})" if said else key
