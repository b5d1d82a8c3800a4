"""Balancing, truncating and concatenating random deltas: which part remains and which is dropped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.errors import EditError

DIMENSIONS = st.integers(1, 7)
MODULES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
# The same examples every time, and no deadline: a busy machine must not fail a test.
PROPERTY = settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def parts(draw: Callable[..., int], d_out: int | None = None, d_in: int | None = None) -> LowRank:
    """A random update of rank 1 to 9 (also above its own dimensions), components of very different scales."""
    rows, columns, rank = d_out or draw(DIMENSIONS), d_in or draw(DIMENSIONS), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale_B, scale_A = (10.0 ** torch.randint(-4, 4, (rank,), generator=generator) for _ in range(2))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    B = torch.randn(rows, rank, generator=generator) * scale_B
    A = torch.randn(rank, columns, generator=generator) * scale_A[:, None]
    return LowRank(B.to(dtype), A.to(dtype))


def dense(part: LowRank) -> torch.Tensor:
    return part.B.double() @ part.A.double()


def magnitude(part: LowRank) -> float:
    """Σ ‖B_i‖‖A_i‖: what rounding errors of B·A are relative to, since components may cancel."""
    return float((part.B.double().norm(dim=0) * part.A.double().norm(dim=1)).sum())


@PROPERTY
@given(parts())
def test_balancing_keeps_the_update_and_equals_the_norms_of_each_component(part: LowRank) -> None:
    balanced = part.balanced()
    assert torch.allclose(dense(balanced), dense(part), rtol=0, atol=1e-12 * magnitude(part))
    assert torch.allclose(balanced.B.norm(dim=0), balanced.A.norm(dim=1), rtol=0.01, atol=0)


@PROPERTY
@given(parts())
def test_balancing_a_cast_balanced_update_changes_no_bit(part: LowRank) -> None:
    B, A = part.cast(torch.float32)
    again_B, again_A = LowRank(B, A).cast(torch.float32)
    assert torch.equal(B, again_B)
    assert torch.equal(A, again_A)


def test_component_with_a_zero_factor_becomes_zero_so_that_half_precision_stays_finite() -> None:
    part = LowRank(torch.tensor([[1e30, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 3.0]]))
    B, A = part.cast(torch.float16)
    assert B[:, 0].item() == 0
    assert torch.allclose(B.float() @ A.float(), torch.tensor([[2.0, 3.0]]), rtol=1e-2)


def test_unbalanced_factors_that_underflow_in_half_precision_survive_balancing() -> None:
    part = LowRank(torch.full((4, 1), 1e-9), torch.full((1, 3), 1e6))
    B, A = part.cast(torch.float16)
    assert torch.allclose(B.float() @ A.float(), torch.full((4, 3), 1e-3), rtol=1e-2)
    assert part.B.to(torch.float16).count_nonzero() == 0  # what a plain cast would have done


@PROPERTY
@given(parts(), st.integers(1, 8))
def test_truncation_is_the_best_approximation_of_its_rank_and_reports_the_energy_dropped(
    part: LowRank, rank: int
) -> None:
    reduced, dropped = part.truncated(rank)
    singular = torch.linalg.svdvals(dense(part))
    tail = float((singular[rank:] ** 2).sum()) if part.rank > rank else 0.0
    assert reduced.rank <= rank
    assert reduced.shape == part.shape
    assert dropped == pytest.approx(tail, rel=1e-6, abs=(1e-12 * magnitude(part)) ** 2)
    error = float(torch.linalg.matrix_norm(dense(reduced) - dense(part)))
    assert error == pytest.approx(tail**0.5, rel=1e-6, abs=1e-11 * magnitude(part))


@PROPERTY
@given(parts())
def test_truncation_to_the_own_rank_changes_nothing(part: LowRank) -> None:
    delta, dropped = Delta({MODULES[0]: part}).truncate(part.rank)
    assert dropped == 0.0
    assert delta.parts[MODULES[0]] is part


def test_truncation_reports_the_dropped_share_of_the_energy_of_all_modules() -> None:
    first = LowRank(torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0])))  # σ² = 9, 4, 1
    second = LowRank(torch.eye(2), torch.diag(torch.tensor([1.0, 1.0])))  # σ² = 1, 1
    delta, dropped = Delta(dict(zip(MODULES, (first, second), strict=True))).truncate(1)
    assert delta.rank == 1
    assert dropped == pytest.approx((4 + 1 + 1) / (9 + 4 + 1 + 1 + 1))


def test_truncation_of_a_zero_update_drops_no_energy() -> None:
    delta, dropped = Delta({MODULES[0]: LowRank(torch.zeros(4, 3), torch.zeros(3, 5))}).truncate(1)
    assert (delta.rank, dropped) == (1, 0.0)


@PROPERTY
@given(st.lists(parts(d_out=4, d_in=3), min_size=1, max_size=4))
def test_concatenation_adds_updates_and_ranks(found: list[LowRank]) -> None:
    total = Delta.concatenate([Delta({MODULES[0]: part}) for part in found]).parts[MODULES[0]]
    assert total.rank == sum(part.rank for part in found)
    size = sum(magnitude(part) for part in found)
    assert torch.allclose(dense(total), sum(map(dense, found), torch.zeros(4, 3)), rtol=0, atol=1e-12 * size)


@PROPERTY
@given(parts(d_out=6, d_in=5), parts(d_out=6, d_in=5))
def test_concatenation_truncated_to_the_full_rank_is_still_the_sum(first: LowRank, second: LowRank) -> None:
    total = Delta.concatenate([Delta({MODULES[0]: first}), Delta({MODULES[0]: second})])
    reduced, _ = total.truncate(5)  # ΔW is 6 × 5, so rank 5 loses nothing
    size = magnitude(first) + magnitude(second)
    assert torch.allclose(dense(reduced.parts[MODULES[0]]), dense(first) + dense(second), rtol=0, atol=1e-11 * size)


def test_concatenation_keeps_modules_that_only_one_delta_has() -> None:
    one, other = LowRank(torch.ones(2, 1), torch.ones(1, 3)), LowRank(torch.ones(4, 2), torch.ones(2, 5))
    total = Delta.concatenate([Delta({MODULES[0]: one}), Delta({MODULES[1]: other})])
    assert {name: part.rank for name, part in total.parts.items()} == {MODULES[0]: 1, MODULES[1]: 2}
    assert Delta.concatenate([]).parts == {}


def test_concatenation_of_different_shapes_is_refused_by_module() -> None:
    one, other = LowRank(torch.ones(2, 1), torch.ones(1, 3)), LowRank(torch.ones(3, 1), torch.ones(1, 2))
    with pytest.raises(EditError, match=r"layers\.0.*\(2, 3\), \(3, 2\)"):
        Delta.concatenate([Delta({MODULES[0]: one}), Delta({MODULES[0]: other})])


def test_truncation_below_rank_one_is_refused() -> None:
    with pytest.raises(EditError, match="at least 1"):
        LowRank(torch.ones(2, 2), torch.ones(2, 2)).truncated(0)
