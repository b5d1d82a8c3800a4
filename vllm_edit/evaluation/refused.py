"""A patch that the compiler refused. Evaluations count it as a failure."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.artefacts.compiled import Demonstration
from vllm_edit.edit import Edit
from vllm_edit.patch import Patch


@dataclass(frozen=True)
class Refused:
    """A declared patch without an adapter, and the reason. Mode ike uses its `demonstrations`."""

    declared: Patch
    reason: str
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def name(self) -> str:
        return self.declared.name

    patch = name

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.declared.edits
