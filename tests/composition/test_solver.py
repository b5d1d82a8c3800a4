"""The solver against formulas written out in full, in float64."""

from __future__ import annotations

import pytest
import torch

from vllm_edit.composition.solver import System, constraint_error, interference, plain_sum, row_space, solve
from vllm_edit.errors import EditError, Unsolvable

D_IN, D_OUT = 12, 7


@pytest.fixture
def moment() -> torch.Tensor:
    """A second moment C [d_in, d_in], float64, well conditioned."""
    vectors = torch.randn(200, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return vectors.T @ vectors / 200


def draw(columns: int, groups: int, moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K [columns, d_in], C⁻¹K and R [groups, d_out], float64."""
    generator = torch.Generator().manual_seed(columns)
    keys = torch.randn(columns, D_IN, dtype=torch.float64, generator=generator)
    residuals = torch.randn(groups, D_OUT, dtype=torch.float64, generator=generator)
    return keys, torch.linalg.solve(moment, keys.T).T, residuals


def test_one_undamped_column_is_r_rome(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(1, 1, moment)
    k, r = keys[0], residuals[0]
    u = torch.linalg.solve(moment, k)
    expected = torch.outer(r / (k @ u), u)  # Λ uᵀ with Λ = r / (kᵀ C⁻¹ k)
    torch.testing.assert_close(
        solve(System.of(keys, whitened, [0]), residuals).dense(), expected, rtol=1e-12, atol=1e-12
    )


def test_without_damping_every_constraint_is_met_and_the_sum_of_rank_ones_misses_them(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(5, 5, moment)
    system = System.of(keys, whitened, [0, 1, 2, 3, 4])
    assert constraint_error(system, residuals, solve(system, residuals)).max() < 1e-10
    assert constraint_error(system, residuals, plain_sum(system, residuals)).min() > 1e-3


def test_without_damping_the_update_is_the_least_in_the_metric_of_the_second_moment(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(3, 3, moment)
    least = solve(System.of(keys, whitened, [0, 1, 2]), residuals).dense()
    null = torch.linalg.svd(keys)[2][3:]  # directions that the constraints leave free
    other = least + 0.1 * torch.randn(D_OUT, len(null), dtype=torch.float64) @ null
    assert torch.trace(least @ moment @ least.T) < torch.trace(other @ moment @ other.T)


def test_damping_of_equally_strong_keys_is_memit_at_one_layer(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(4, 4, moment)
    strength = (keys * whitened).sum(dim=1, keepdim=True).sqrt()
    keys, whitened = keys / strength, whitened / strength  # k̄ᵀC⁻¹k̄ = 1
    ridge = 0.3
    K = keys.T
    expected = residuals.T @ K.T @ torch.linalg.inv(ridge * moment + K @ K.T)  # R Kᵀ (λC + K Kᵀ)⁻¹
    got = solve(System.of(keys, whitened, [0, 1, 2, 3], damping=0.3), residuals).dense()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_damping_moves_a_weak_key_as_much_beside_a_strong_one_as_alone(moment: torch.Tensor) -> None:
    keys, whitened, _ = draw(2, 2, moment)
    along = (keys[1] @ whitened[0]) / (keys[0] @ whitened[0])
    keys[1], whitened[1] = keys[1] - along * keys[0], whitened[1] - along * whitened[0]  # no interference
    keys[1], whitened[1] = 100 * keys[1], 100 * whitened[1]
    both = System.of(keys, whitened, [0, 1], damping=0.1)
    torch.testing.assert_close(keys @ row_space(both).T, torch.eye(2, dtype=torch.float64) / 1.1, atol=1e-9, rtol=0)


def test_damping_of_a_group_is_relative_to_the_mean_strength_of_its_own_columns(moment: torch.Tensor) -> None:
    keys, whitened, _ = draw(3, 2, moment)
    gram = keys @ whitened.T
    alone = System.of(keys[:2], whitened[:2], [0, 0], damping=0.3)
    ridge = 0.3 * gram[:2, :2].diagonal().mean() * torch.eye(2, dtype=torch.float64)
    expected = torch.ones(1, 2, dtype=torch.float64) @ torch.linalg.inv(gram[:2, :2] + ridge) @ whitened[:2]
    torch.testing.assert_close(row_space(alone), expected)
    along = torch.linalg.solve(gram[:2, :2], gram[:2, 2])  # without interference from the other group …
    keys[2], whitened[2] = 100 * (keys[2] - along @ keys[:2]), 100 * (whitened[2] - along @ whitened[:2])
    both = System.of(keys, whitened, [0, 0, 1], damping=0.3)  # … however strong it is
    torch.testing.assert_close(row_space(both)[:1], expected, rtol=1e-9, atol=1e-9)


def test_columns_of_a_group_share_its_residual_and_cost_no_rank(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(5, 2, moment)
    system = System.of(keys, whitened, [0, 0, 1, 0, 1])
    update = solve(system, residuals)
    assert update.rank == 2
    assert constraint_error(system, residuals, update).max() < 1e-10


def test_interference_is_one_on_the_diagonal_and_the_cosine_after_whitening_elsewhere(moment: torch.Tensor) -> None:
    keys, whitened, _ = draw(3, 3, moment)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(moment), keys.T, upper=False).T
    expected = torch.nn.functional.cosine_similarity(white[:, None], white[None], dim=-1)
    torch.testing.assert_close(interference(keys, whitened), expected)


def test_coinciding_keys_are_refused_without_damping_and_solved_with_it(moment: torch.Tensor) -> None:
    keys, whitened, residuals = draw(1, 1, moment)
    keys, whitened, residuals = keys.repeat(2, 1), whitened.repeat(2, 1), torch.cat([residuals, -residuals])
    with pytest.raises(EditError, match="key group"):
        solve(System.of(keys, whitened, [0, 1]), residuals)
    assert solve(System.of(keys, whitened, [0, 1], damping=0.1), residuals).dense().abs().max() < 1e-9  # they cancel


def test_keys_that_differ_only_by_rounding_are_refused_without_damping(moment: torch.Tensor) -> None:
    first, _, residuals = draw(1, 1, moment)
    keys = torch.cat([first, torch.nextafter(first.float(), torch.tensor(9.0)).double()])
    whitened = torch.linalg.solve(moment, keys.T).T
    with pytest.raises(Unsolvable, match="linearly dependent"):
        solve(System.of(keys, whitened, [0, 1]), torch.cat([residuals, -residuals]))


@pytest.mark.parametrize("groups", [[0], [0, 2], [1, 1]])
def test_columns_without_a_group_and_groups_without_a_column_are_refused(
    groups: list[int], moment: torch.Tensor
) -> None:
    keys, whitened, _ = draw(2, 2, moment)
    with pytest.raises(EditError, match="every column needs a group"):
        System.of(keys, whitened, groups)


def test_a_preserved_column_is_not_moved_and_costs_no_rank() -> None:
    generator = torch.Generator().manual_seed(5)
    keys, residuals = torch.randn(3, 12, generator=generator), torch.randn(1, 7, generator=generator)
    keys[2] = 0.9 * keys[0] + 0.1 * keys[2]  # a neighbour's key, close to the edited one
    system = System.of(keys, keys, [0, 0, 0], shares=[1.0, 0.0, 0.0])
    update = solve(system, residuals)
    moved = keys.double() @ update.dense().T  # C = I
    assert update.rank == 1
    assert torch.allclose(moved[0], residuals[0].double())
    assert moved[1:].abs().max() < 1e-9 < moved[0].abs().max()
    assert constraint_error(system, residuals, update).max() < 1e-9
    without = solve(System.of(keys[:1], keys[:1], [0]), residuals)
    assert (keys[2].double() @ without.dense().T).norm() > 0.5 * residuals.norm()
