"""An arm of a rollout: the composition and mode that answer its requests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from vllm_edit.errors import EditError
from vllm_edit.names import check_name, short, shown

Side = Literal["control", "treatment"]
SIDES: tuple[Side, ...] = get_args(Side)
Mode = Literal["weights", "ike", "base"]


@dataclass(frozen=True)
class Arm:
    """A stored composition (or patch) in a mode.

    Attributes:
        mode: How the composition is applied.
        name: The composition's full name; None with mode base.
        valid_until: When the composition expires: the earliest end of its edits.
    """

    mode: Mode
    name: str | None = None
    valid_until: datetime | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise EditError(f"expected one of the modes {', '.join(get_args(Mode))}; got {shown(self.mode)}")
        if (self.mode == "base") != (self.name is None):
            raise EditError(f"mode {self.mode} with {self.name or 'no composition'}: only mode base has none")
        if self.name is not None:
            check_name(self.name)

    @classmethod
    def of(cls, text: str) -> Arm:
        """Parse the arm from the text of `str(arm)`."""
        name, mode = split_reference(text)
        return cls(mode, name)

    def __str__(self) -> str:
        """The arm as a request's `model` field names it."""
        return "base" if self.name is None else self.name if self.mode == "weights" else f"{self.name}:{self.mode}"

    @property
    def short(self) -> str:
        """The same with a shortened digest, for display."""
        return "base" if self.name is None else str(self).replace(self.name, short(self.name))

    def ended(self, now: datetime) -> bool:
        return self.valid_until is not None and self.valid_until <= now


def split_reference(text: str) -> tuple[str | None, Mode]:
    """Parse `capital`, `capital@4f1c`, `capital:ike` or `base` into (patch reference, mode)."""
    reference, colon, suffix = text.partition(":")
    if reference == "base" and not colon:
        return None, "base"
    mode: Mode | None = {"": "weights", "weights": "weights", "ike": "ike"}.get(suffix)  # type: ignore[assignment]
    if not reference or mode is None or (colon and not suffix):
        raise EditError(f"expected an arm like capital, capital@4f1c, capital:ike or base; got {shown(text)}")
    return reference, mode
