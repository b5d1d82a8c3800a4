"""The gate of one matrix: it turns the gradient of an edit into a low-rank update (arXiv 2104.08164, §3.2, eq. 4–6).

    ΔW = −ℓ ‖W‖ · ( α̂ ⊙ Ĝ + σ(η) b dᵀ ),       α̂ = a gᵀ,       Ĝ = Σ_t σ(η_t) δ_t û_tᵀ / ‖Σ_t δ_t û_tᵀ‖

The vectors a, b [d_out], g, d [d_in] and the scalars η, η_t come from the encoded edit. A gate of rank one times a sum
of outer products is a sum of outer products again,

    (a gᵀ) ⊙ Σ_t δ_t û_tᵀ = Σ_t (a ⊙ δ_t)(g ⊙ û_t)ᵀ,

so the update is an exact LoRA of one component for each token, and one for the shift b dᵀ. ΔW is never formed.

Departures: docs/knowledge_editor.md has each one with its reason.
"""

from __future__ import annotations

import torch
from torch import nn

from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.hypernetworks.normalisation import Normalisation

_QUARTER = -1.1
"""σ(−1.1) = 0.25: the share of the greatest strength with which training begins."""


class Head(nn.Module):
    """A hidden layer with tanh, and an output that begins near `start`."""

    def __init__(self, width: int, units: int, outputs: int, start: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, units)
        self.output = nn.Linear(units, outputs)
        # Not zero, so that the first gradient reaches every parameter.
        nn.init.normal_(self.output.weight, std=0.1 * units**-0.5)
        nn.init.constant_(self.output.bias, start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., width] → [..., outputs]."""
        output: torch.Tensor = self.output(torch.tanh(self.hidden(x)))
        return output


class GradientGate(nn.Module):
    """The gate of one matrix W [d_out, d_in]."""

    def __init__(self, shape: tuple[int, int], width: int, units: int) -> None:
        """width: of the encoded edit. units: of the hidden layers."""
        super().__init__()
        self.d_out, self.d_in = shape
        self.inputs = Normalisation(self.d_in)
        self.edit = Head(width, units, 2 * (self.d_out + self.d_in))
        self.strength = Head(width, units, 1, _QUARTER)
        self.token_strength = Head(width, units, 1)

    def observe(self, gradients: TokenGradients) -> None:
        """Add the counted tokens to the running statistics, in place. Does nothing outside training mode."""
        self.inputs.update(gradients.inputs[gradients.counted])

    def forward(
        self, h: torch.Tensor, states: torch.Tensor, gradients: TokenGradients
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [n, T + 1, d_in] and B [n, d_out, T + 1] of the update in units of ℓ ‖W‖; zero at tokens not counted.

        Args:
            h: encoded edits [n, width].
            states: encoded tokens [n, T, width], in the places of the gradient's tokens.
            gradients: of n edits with T tokens.
        """
        counted = gradients.counted[..., None]
        inputs = self.inputs(gradients.inputs) * counted  # û [n, T, d_in]
        outputs = gradients.outputs  # δ [n, T, d_out]
        norm = product_norm(inputs, outputs)[:, None, None]
        alpha, gamma, b, d = self.edit(h).split([self.d_out, self.d_in, self.d_out, self.d_in], dim=-1)
        whole = self.strength(h)  # η [n, 1]
        strengths = torch.sigmoid(whole[:, None] + self.token_strength(states))  # σ(η_t) [n, T, 1]
        a, g = self.d_out * alpha.softmax(-1), 1 + gamma
        A = torch.cat([g[:, None] * inputs, self.d_in**-0.5 * d[:, None]], dim=1)
        shift = torch.sigmoid(whole) * self.d_out**-0.5 * b
        B = torch.cat([strengths * a[:, None] * outputs / norm, shift[:, None]], dim=1)
        return A, -B.mT


def product_norm(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """‖Σ_t δ_t u_tᵀ‖, Frobenius, [n], from the tokens' inner products; u [n, T, d_in], δ [n, T, d_out]."""
    products = (outputs @ outputs.mT) * (inputs @ inputs.mT)  # [n, T, T]
    return products.sum((1, 2)).clamp_min(torch.finfo(products.dtype).tiny).sqrt()
