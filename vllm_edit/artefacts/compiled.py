"""CompiledPatch: the immutable result of compiling, in memory. The store writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta


@dataclass(frozen=True)
class Factors:
    """What a closed-form editor computed at the site; enough to solve again, alone or with others, without the model.

    keys: K, [columns, d_in] float32.  whitened: C⁻¹K, [columns, d_in] float32.  residuals: [groups, d_out] float32.
    `Manifest.columns[i].group` says which residual column i shares.
    """

    keys: torch.Tensor
    whitened: torch.Tensor
    residuals: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"keys": self.keys, "whitened": self.whitened, "residuals": self.residuals}


class Demonstration(BaseModel):
    """One IKE demonstration as stored: its text is `New Fact: …\\nPrompt: … …\\n\\n`."""

    model_config = ConfigDict(frozen=True)

    kind: str  # copy, update or retain
    fact: str
    prompt: str
    answer: str
    tokens: int
    edit: int | None = None  # index of the edit a self-copy belongs to; None for the bank's demonstrations


@dataclass(frozen=True)
class CompiledPatch:
    """Manifest, delta (the adapter's tensors), factors and demonstrations. `report` is a record, outside the digest.

    units: of a patch with scope subject, each subject's own compiled patch, in the order of the manifest's members.
    Such a patch has no delta of its own.
    """

    manifest: Manifest
    delta: Delta
    factors: Factors | None = None
    demonstrations: tuple[Demonstration, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    units: tuple[CompiledPatch, ...] = ()

    @property
    def name(self) -> str:
        return self.manifest.name
