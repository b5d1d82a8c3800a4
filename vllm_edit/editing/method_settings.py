"""The base of all methods' settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.patch import Scope
from vllm_edit.settings import PositiveCount, Settings

if TYPE_CHECKING:
    from vllm_edit.artefacts.site import Site

RUN_TIME = Field(exclude=True)
"""Marks a setting that does not affect the result."""


class MethodSettings(Settings):
    """Settings of a method, part of a compiled patch's identity except for those marked `RUN_TIME`.

    Attributes:
        scoped: defaults that differ for a patch with scope subject.
    """

    scoped: ClassVar[Mapping[str, JSONValue]] = MappingProxyType({})

    @classmethod
    def of(cls, values: Mapping[str, JSONValue], scope: Scope = "all") -> Self:
        """Settings from plain values, such as those of the CLI or a manifest. scope: the scope of the compiled patch.

        Raises:
            EditError: names are unknown or values are invalid; one line lists all problems.
        """
        return cls(**{**(cls.scoped if scope == "subject" else {}), **values})

    def lasting(self) -> JSONObject:
        """All settings except the run-time settings, by name."""
        return {name: value for name, value in self if not type(self).model_fields[name].exclude}


class CompileSettings(MethodSettings):
    """Settings of compiling edits, whatever the method."""

    batch_tokens: Annotated[PositiveCount, RUN_TIME] = 2048
    """Maximum number of tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Annotated[Literal["error", "report"], RUN_TIME] = "error"
    """Handling of an edit that misses its target or exceeds a limit: raise UnsafeEdit, or add a line to the report. Not
    part of the identity."""

    def check_at(self, site: Site) -> None:
        """Check what the settings need of the site; most need nothing.

        Raises:
            EditError: the site cannot give it.
        """
