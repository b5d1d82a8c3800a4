"""UltraEdit's update of one matrix: values from normalised gradients, and a least-squares solve for the update.

With N tokens, inputs H [N, d_in] and gradients ∇ [N, d_out] (UltraEdit, arXiv 2505.14679, §4 and Algorithm 1):

    V_i = − η ‖ĥ_i‖² v̂_i,      ΔWᵀ = (HᵀH + I)⁻¹ Hᵀ V

where ĥ and v̂ are inputs and gradients, normalised per feature by running statistics. By (HᵀH + λI)⁻¹Hᵀ =
Hᵀ(HHᵀ + λI)⁻¹ the update is an exact LoRA of rank N, from an N × N solve:

    A = H [N, d_in],      B = Vᵀ (HHᵀ + λI)⁻¹ [d_out, N]

Departures: η and λ are relative (`UltraEditSettings.length`, `.ridge`), because inputs and weights of models differ in
scale. Gradients are divided by their deviation, but not centred (`.centred`): a token that the model predicts already
has no gradient, and minus the mean would be a step away from it. The solve is in float64.
"""

from __future__ import annotations

import torch

from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.ultraedit.gradient_statistics import MatrixStatistics


def values_of(
    statistics: MatrixStatistics, gradients: TokenGradients, weight: torch.Tensor, length: float, centred: bool
) -> torch.Tensor:
    """V [n, T, d_out] of n edits, the wanted change of the matrix's output at each token; zero where nothing counts.

    Args:
        statistics: of the tokens of other edits.
        gradients: of n edits with T tokens.
        weight: W [d_out, d_in].
        length: η d_in in units of the root mean square entry of W x, for random x of average norm.
        centred: subtract the mean gradient, as published.
    """
    inputs = statistics.inputs(gradients.inputs)  # ĥ
    unit = float(weight.detach().float().square().mean().sqrt()) * statistics.input_energy**0.5
    strengths = inputs.square().mean(-1, keepdim=True) * gradients.counted[..., None]  # ‖ĥ‖² / d_in, [n, T, 1]
    normalise = statistics.outputs if centred else statistics.outputs.scaled
    outputs = normalise(gradients.outputs)  # v̂
    values: torch.Tensor = -length * unit * strengths * outputs
    return values


def solved(inputs: torch.Tensor, values: torch.Tensor, ridge: float) -> torch.Tensor:
    """B [..., d_out, N] float64 = Vᵀ (HHᵀ + λI)⁻¹, for A = H.

    Args:
        inputs: H [..., N, d_in].
        values: V [..., N, d_out].
        ridge: λ > 0.
    """
    H, V = inputs.double(), values.double()
    gram = H @ H.mT + ridge * torch.eye(H.shape[-2], dtype=H.dtype, device=H.device)
    return torch.cholesky_solve(V, torch.linalg.cholesky(gram)).mT
