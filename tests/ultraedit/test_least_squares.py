"""The low-rank update equals the published dense formula; values follow the normalised gradients."""

from __future__ import annotations

import pytest
import torch

from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.ultraedit.gradient_statistics import MatrixStatistics
from vllm_edit.editing.ultraedit.least_squares import solved, values_of

TOKENS, D_IN, D_OUT = 5, 12, 7


def random_gradients(edits: int, tokens: int, seed: int) -> TokenGradients:
    """Random token gradients; the last token of each edit is padding."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = (torch.randn(edits, tokens, width, generator=generator) + 0.5 for width in (D_IN, D_OUT))
    inputs[:, -1] = outputs[:, -1] = 0
    return TokenGradients.of(inputs, outputs)


@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_the_low_rank_update_is_the_dense_least_squares_solution(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    H, V = (torch.randn(TOKENS, width, generator=generator, dtype=torch.float64) for width in (D_IN, D_OUT))
    update = LowRank(B=solved(H, V, ridge), A=H)
    dense = torch.linalg.solve(H.mT @ H + ridge * torch.eye(D_IN, dtype=H.dtype), H.mT @ V)  # ΔWᵀ, as published
    assert update.rank == TOKENS
    torch.testing.assert_close(update.dense(), dense.mT)


def test_a_small_ridge_gives_every_token_its_value_and_a_large_ridge_none() -> None:
    generator = torch.Generator().manual_seed(1)
    H, V = (torch.randn(TOKENS, width, generator=generator, dtype=torch.float64) for width in (D_IN, D_OUT))
    torch.testing.assert_close(H @ (solved(H, V, 1e-9) @ H).mT, V, rtol=1e-5, atol=1e-5)
    assert (H @ (solved(H, V, 1e9) @ H).mT).norm() < 1e-6 * V.norm()


def test_edits_in_one_batch_are_solved_as_if_alone_and_padding_adds_nothing() -> None:
    gradients = random_gradients(3, TOKENS, seed=2)
    together = solved(gradients.inputs, gradients.outputs, 0.5)
    for edit in range(3):
        H, V = gradients.inputs[edit, :-1], gradients.outputs[edit, :-1]
        torch.testing.assert_close(together[edit][:, :-1], solved(H, V, 0.5))
        assert together[edit][:, -1].abs().max() == 0


@pytest.mark.parametrize("centred", [True, False])
def test_values_descend_the_scaled_gradient_and_grow_with_the_inputs_distance_from_the_mean(centred: bool) -> None:
    statistics, gradients = MatrixStatistics.of(random_gradients(40, 9, seed=3)), random_gradients(2, 4, seed=4)
    weight = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(5))
    values = values_of(statistics, gradients, weight, 0.25, centred)
    flat = random_gradients(40, 9, seed=3)
    u, d = flat.inputs[flat.counted].double(), flat.outputs[flat.counted].double()
    unit = 0.25 * weight.double().square().mean().sqrt() * u.square().sum(1).mean().sqrt()
    for edit in range(2):
        for token in range(3):
            h = (gradients.inputs[edit, token].double() - u.mean(0)) / u.std(0)
            v = (gradients.outputs[edit, token].double() - centred * d.mean(0)) / d.std(0)
            expected = -unit * h.square().sum() / D_IN * v
            torch.testing.assert_close(values[edit, token].double(), expected, rtol=1e-4, atol=1e-4)
        assert values[edit, -1].abs().max() == 0
    torch.testing.assert_close(values_of(statistics, gradients, weight, 0.5, centred), 2 * values)


def test_only_a_centred_gradient_moves_a_token_that_the_model_predicts_already() -> None:
    statistics, gradients = MatrixStatistics.of(random_gradients(40, 9, seed=3)), random_gradients(1, 3, seed=4)
    certain = TokenGradients(gradients.inputs, gradients.outputs * 1e-9, gradients.counted)
    weight = torch.ones(D_OUT, D_IN)
    assert values_of(statistics, certain, weight, 0.5, centred=False).norm() < 1e-6
    assert values_of(statistics, certain, weight, 0.5, centred=True).norm() > 0.1
