"""The sticky key: whom a request is for, as far as a rollout needs to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vllm_edit.errors import EditError
from vllm_edit.names import shown

Source = Literal["user-header", "user-field", "session-header", "api-key"]
SOURCES: tuple[Source, ...] = get_args(Source)

_HEADER = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class StickyKey:
    """A key and what it names. A user is the same one whether a header or the body's `user` says so."""

    kind: Literal["user", "session", "api-key"]
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True)
class Stickiness:
    """Where a rollout looks for the sticky key, in this order; the first that says something counts.

    It is fixed when the rollout is made: looking elsewhere later would move users between the arms.
    """

    order: tuple[Source, ...] = SOURCES
    user_header: str = "x-user-id"
    session_header: str = "x-session-id"

    def __post_init__(self) -> None:
        unknown = [source for source in self.order if source not in SOURCES]
        if unknown or not self.order or len(set(self.order)) < len(self.order):
            raise EditError(
                f"expected an order of different sources among {', '.join(SOURCES)}; got {shown(', '.join(self.order))}"
            )
        for header in (self.user_header, self.session_header):
            if _HEADER.fullmatch(header) is None:
                raise EditError(f"expected a header's name in lower-case letters, like x-user-id; got {shown(header)}")

    def key(self, headers: Mapping[str, str], body: Mapping[str, Any], api_key: str | None = None) -> StickyKey | None:
        """The request's sticky key, or None if no source names one: nothing random stands in for it.

        headers: by lower-case name (or a mapping that ignores case). api_key: the id of the caller's key, never its
        secret.

        Raises:
            EditError: the body's `user` is not text.
        """
        for source in self.order:
            match source:
                case "user-header":
                    found = StickyKey("user", headers.get(self.user_header, "").strip())
                case "user-field":
                    found = StickyKey("user", _text(body.get("user")))
                case "session-header":
                    found = StickyKey("session", headers.get(self.session_header, "").strip())
                case "api-key":
                    found = StickyKey("api-key", api_key or "")
            if found.value:
                return found
        return None


def _text(user: Any) -> str:
    if user is None:
        return ""
    if not isinstance(user, str):
        raise EditError(f"user must be a string, got {type(user).__name__}")
    return user.strip()
