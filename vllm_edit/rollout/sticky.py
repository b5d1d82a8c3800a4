"""The sticky key: identifies the user, session or API key of a request, so that it stays on one arm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONValue
from vllm_edit.names import shown

Source = Literal["user-header", "user-field", "session-header", "api-key"]
SOURCES: tuple[Source, ...] = get_args(Source)

_HEADER = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class StickyKey:
    """A sticky key and its kind. A user has the same key whether a header or the body's `user` names it."""

    kind: Literal["user", "session", "api-key"]
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True)
class Stickiness:
    """Sources of a rollout's sticky key, in order; the first source with a value counts.

    They are fixed when the rollout is created: a change would move users between the arms.
    """

    order: tuple[Source, ...] = SOURCES
    user_header: str = "x-user-id"
    session_header: str = "x-session-id"

    def __post_init__(self) -> None:
        unknown = [source for source in self.order if source not in SOURCES]
        if unknown or not self.order or len(set(self.order)) < len(self.order):
            raise EditError(
                f"expected an order of different sources from {', '.join(SOURCES)}; got {shown(', '.join(self.order))}"
            )
        for header in (self.user_header, self.session_header):
            if _HEADER.fullmatch(header) is None:
                raise EditError(f"expected a header's name in lower-case letters, like x-user-id; got {shown(header)}")

    def sticky_key(
        self, headers: Mapping[str, str], body: Mapping[str, JSONValue], api_key_id: str | None = None
    ) -> StickyKey | None:
        """Return the request's sticky key, or None if no source provides one; no random key is substituted.

        Args:
            headers: Request headers by lower-case name (or a mapping that ignores case).
            body: The request's JSON body.
            api_key_id: Id of the caller's API key, never its secret.

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
                    found = StickyKey("api-key", api_key_id or "")
            if found.value:
                return found
        return None


def _text(user: JSONValue) -> str:
    if user is None:
        return ""
    if not isinstance(user, str):
        raise EditError(f"user must be a string, got {type(user).__name__}")
    return user.strip()
