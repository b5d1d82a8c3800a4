"""The gate's LoRA is the paper's dense formula, and every vector of the gate has its effect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.knowledge_editor.gradient_gate import GradientGate, product_norm

WIDTH, UNITS = 6, 4


def gate_and_inputs(
    shape: tuple[int, int], edits: int, tokens: int, seed: int
) -> tuple[GradientGate, torch.Tensor, torch.Tensor, TokenGradients]:
    """A gate with random parameters and statistics, encoded edits, encoded tokens, and gradients with padding."""
    torch.manual_seed(seed)
    d_out, d_in = shape
    gate = GradientGate(shape, WIDTH, UNITS).double()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    gradients = TokenGradients.of(
        torch.randn(edits, tokens, d_in, dtype=torch.float64), torch.randn(edits, tokens, d_out, dtype=torch.float64)
    )
    gradients.outputs[-1, tokens // 2 + 1 :] = 0
    gradients = TokenGradients.of(gradients.inputs, gradients.outputs)
    gate.observe(gradients)
    h, states = torch.randn(edits, WIDTH).double(), torch.randn(edits, tokens, WIDTH).double()
    return gate.eval(), h, states, gradients


def dense(gate: GradientGate, h: torch.Tensor, states: torch.Tensor, gradients: TokenGradients) -> torch.Tensor:
    """−(α̂ ⊙ Ĝ + σ(η) b dᵀ) of one edit, [d_out, d_in], with the gate α̂ as a whole matrix."""
    alpha, gamma, b, d = gate.edit(h).split([gate.d_out, gate.d_in, gate.d_out, gate.d_in])
    eta = gate.strength(h)
    gradient = torch.zeros(gate.d_out, gate.d_in, dtype=h.dtype)
    length = torch.zeros_like(gradient)
    for u, delta, state, counted in zip(
        gradients.inputs, gradients.outputs, states, gradients.counted.tolist(), strict=True
    ):
        if counted:
            product = torch.outer(delta, gate.inputs(u))
            length = length + product
            gradient = gradient + torch.sigmoid(eta + gate.token_strength(state)) * product
    gated = torch.outer(gate.d_out * alpha.softmax(0), 1 + gamma) * gradient / length.norm()
    return -(gated + torch.sigmoid(eta) * torch.outer(b, d) / (gate.d_out * gate.d_in) ** 0.5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    edits=st.integers(1, 3),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_the_lora_is_the_dense_formula(shape: tuple[int, int], edits: int, tokens: int, seed: int) -> None:
    gate, h, states, gradients = gate_and_inputs(shape, edits, tokens, seed)
    with torch.no_grad():
        A, B = gate(h, states, gradients)
        assert A.shape == (edits, tokens + 1, shape[1])
        assert B.shape == (edits, shape[0], tokens + 1)
        for number in range(edits):
            own = TokenGradients(*(part[number] for part in vars(gradients).values()))
            expected = dense(gate, h[number], states[number], own)
            assert (B[number] @ A[number] - expected).norm() <= 1e-9 * expected.norm()


def test_a_token_that_does_not_count_has_no_component() -> None:
    gate, h, states, gradients = gate_and_inputs((4, 5), 2, 6, seed=1)
    A, _ = gate(h, states, gradients)
    assert (A != 0).any(-1)[:, :-1].tolist() == gradients.counted.tolist()
    assert not gradients.counted.all()


def test_states_of_padding_do_not_matter() -> None:
    gate, h, states, gradients = gate_and_inputs((4, 5), 2, 6, seed=1)
    A, B = gate(h, states, gradients)
    states[~gradients.counted] += 1.0
    other = gate(h, states, gradients)
    assert torch.equal(B @ A, other[1] @ other[0])
    states[gradients.counted] += 1.0
    other = gate(h, states, gradients)
    assert not torch.allclose(B @ A, other[1] @ other[0])


def test_a_longer_gradient_gives_the_same_update() -> None:
    gate, h, states, gradients = gate_and_inputs((4, 5), 2, 6, seed=1)
    A, B = gate(h, states, gradients)
    longer = TokenGradients(gradients.inputs, 100 * gradients.outputs, gradients.counted)
    same = gate(h, states, longer)
    assert torch.allclose(B @ A, same[1] @ same[0])


def test_the_norm_of_a_sum_of_outer_products_needs_no_dense_matrix() -> None:
    inputs, outputs = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(outputs.mT @ inputs)
    assert product_norm(inputs, outputs).tolist() == pytest.approx(expected.tolist())
