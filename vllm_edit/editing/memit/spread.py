"""Residuals of the last layer, spread over all layers of a site (MEMIT, arXiv 2210.07229, algorithm 1).

δ [groups, d_out] is the change that each edit needs in the output of the last layer's module. For each layer in turn, j
of n, the keys are measured with the earlier layers' updates in place, and what is still missing in the residual stream
after the last layer is divided by the number of layers that are left (eq. 20), and solved (eq. 14, with the solver's
λD):

    R_j = (g δ − (h − h₀)) / (g_j (n − j)),    ΔW_j = R_j A_j,    A_j = S (KᵀC⁻¹K + λD)⁻¹ KᵀC⁻¹

h and h₀ are the stream after the last layer with the updates so far and in the base, at the site's token, averaged over
the contexts of the plain prompt as its key is. g_j is the gain with which block j adds its MLP's output to the stream,
g that of the last layer; most blocks have 1 (`Layout.gain`). MEMIT's λ > 0 leaves a part of δ missing, because its
preserved keys are the whole second moment. Here preserved keys are columns too, so further passes over the layers, with
the same A_j, add what is missing. The updates remain low-rank and the weights are never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from vllm_edit.composition.solver import as_saved, row_space
from vllm_edit.deltas.apply import applied
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.memit.layers import Layer
from vllm_edit.editing.memit.memit_settings import MemitSettings
from vllm_edit.editing.rome.factors import Prepared, measure
from vllm_edit.editing.rome.keys import Columns, measure_outputs
from vllm_edit.editing.rome.prompt_forms import forms_of
from vllm_edit.models.base import Base
from vllm_edit.progress import Progress


@dataclass(frozen=True)
class LayerSolution:
    """One layer's part of the update. A: [groups, d_in], residuals: R_j [groups, d_out], both float64."""

    columns: Columns
    A: torch.Tensor
    residuals: torch.Tensor

    @property
    def update(self) -> LowRank:
        """B [d_out, groups], A [groups, d_in] as an adapter stores it."""
        return as_saved(LowRank(B=self.residuals.T.contiguous(), A=self.A))

    def plus(self, residuals: torch.Tensor) -> LayerSolution:
        """With these residuals [groups, d_out] added to its own."""
        return replace(self, residuals=self.residuals + residuals.double())


def updates_of(solutions: Mapping[str, LayerSolution]) -> dict[str, LowRank]:
    """The update of each module."""
    return {module: solution.update for module, solution in solutions.items()}


def spread(
    base: Base,
    layers: Sequence[Layer],
    prepared: Prepared,
    edits: Sequence[Edit],
    residuals: torch.Tensor,
    damping: float,
    settings: MemitSettings,
    progress: Progress | None = None,
) -> dict[str, LayerSolution]:
    """Module → its part of the update, for all layers in their order. The base is not changed.

    Args:
        prepared: the edits, prepared at the last layer.
        residuals: δ [groups, d_out].
    """
    before = _stream(base, layers[-1], prepared, edits, settings)
    gains = [base.layout.gain[layer.site.layer] for layer in layers]
    found: dict[str, LayerSolution] = {}
    for number in range(settings.spreads * len(layers)):
        layer, left = layers[number % len(layers)], len(layers) - number % len(layers)
        share = gains[-1] / gains[number % len(layers)]
        if progress:
            progress("spreading over the layers", number, settings.spreads * len(layers))
        with applied(base.model, updates_of(found)):
            missing = residuals - (_stream(base, layers[-1], prepared, edits, settings) - before) / gains[-1]
            if layer.module not in found:
                found[layer.module] = _solution(base, layer, prepared, edits, damping, settings)
        found[layer.module] = found[layer.module].plus(missing / left * share)
    return found


def _solution(
    base: Base, layer: Layer, prepared: Prepared, edits: Sequence[Edit], damping: float, settings: MemitSettings
) -> LayerSolution:
    """The layer's columns and A with the model as it is now; the residuals are 0."""
    groups = prepared.columns.groups
    columns = measure(base, layer.site, layer.metric, edits, settings, groups).columns
    columns = columns.at(columns.satisfiable(range(len(groups)), settings.room))
    A = row_space(layer.system(columns, damping))[: len(groups)]
    return LayerSolution(columns, A, torch.zeros(len(groups), layer.site.d_out, dtype=torch.float64))


def _stream(
    base: Base, last: Layer, prepared: Prepared, edits: Sequence[Edit], settings: MemitSettings
) -> torch.Tensor:
    """The residual stream after the last layer at the site's token, [groups, d_out], averaged as keys are.

    If the block normalises its MLP's output, it is the module's output.
    """
    layout, number = base.layout, last.site.layer
    rows = [row for row in prepared.taught if row.form == "plain"]
    module = layout.down[number] if layout.renormed[number] else layout.layers[number]
    outputs = measure_outputs(base.model, module, rows, settings.batch_tokens)  # [rows, d_out]
    weights = [weight for edit in edits for weight in forms_of(edit, base.tokenizer, last.site, ("plain",))[0].weights]
    total = torch.zeros(len(prepared.columns.groups), outputs.shape[1])
    groups = torch.tensor([row.group for row in rows])
    total.index_add_(0, groups, torch.tensor(weights)[:, None] * outputs)
    members = torch.tensor([len(group.edits) for group in prepared.columns.groups])
    return total / members[:, None]
