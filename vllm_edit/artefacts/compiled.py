"""CompiledPatch: the immutable result of compiling, in memory. The store writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from pydantic import BaseModel, ConfigDict

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.reports import CompileReport, CompositionReport
from vllm_edit.deltas.delta import Delta
from vllm_edit.json_value import JSONObject, JSONValue


@dataclass(frozen=True)
class Factors:
    """Result of a closed-form editor at the site: enough to solve again, alone or jointly, without the model.

    Attributes:
        keys: K, [columns, d_in] float32, the columns of all modules.
        whitened: C⁻¹K, or PK for AlphaEdit, [columns, d_in] float32.
        residuals: [modules · groups, d_out] float32, module by module; column i of the manifest has the residual of
            its group at its module.
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
    edit: int | None = None  # index of the edit that a self-copy belongs to; None for the bank's demonstrations


@dataclass(frozen=True)
class CompiledPatch:
    """The immutable result of compiling or composing, in memory.

    Attributes:
        manifest: Everything that identifies the patch: edits, settings, and digests of the tensors.
        delta: ΔW = B·A for each edited module; empty with scope subject.
        factors: Keys and residuals of the closed form, for composing; None for other methods.
        demonstrations: The IKE demonstrations.
        report: What compiling measured; empty for a composition. A record outside the digest.
        algebra: What composing measured; None unless it is a composition. A record outside the digest.
        units: With scope subject: each subject's compiled patch, in the order of the manifest's members.
    """

    manifest: Manifest
    delta: Delta
    factors: Factors | None = None
    demonstrations: tuple[Demonstration, ...] = ()
    report: CompileReport = field(default_factory=CompileReport)
    algebra: CompositionReport | None = None
    units: tuple[CompiledPatch, ...] = ()

    @property
    def name(self) -> str:
        """`<patch>@<digest>`; the digest covers the manifest."""
        return self.manifest.name

    @property
    def record(self) -> JSONObject:
        """What was measured, as JSON values; empty if nothing was."""
        return (self.report if self.algebra is None else self.algebra).as_record()

    def with_record(self, record: Mapping[str, JSONValue]) -> CompiledPatch:
        """A copy with what an earlier process measured.

        Args:
            record: a value of `record`.

        Raises:
            Corrupt: the record is no report of this kind of patch.
        """
        if self.manifest.kind == "composition":
            return replace(self, algebra=CompositionReport.of(record))
        return replace(self, report=CompileReport.of(record))

    def timed(self, seconds: float) -> CompiledPatch:
        """A copy whose report holds the duration of compiling or composing.

        Args:
            seconds: the duration.
        """
        if self.algebra is not None:
            return replace(self, algebra=self.algebra.model_copy(update={"seconds": seconds}))
        return replace(self, report=self.report.model_copy(update={"seconds": seconds}))
