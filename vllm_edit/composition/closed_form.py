"""The closed-form solver: every closed-form editor at one module is a setting of `solve`.

C is the second moment of the module's input, K = [k_1 … k_n] the columns' keys, and R the groups' residuals. The
columns of a group share its residual through the selection matrix S [groups, n]: S_gi is the share of column i if it
belongs to group g, else 0. A share is 1, or 0 for a preserved column, the key of a prompt that must not move:

    Δ = (R S) (KᵀC⁻¹K + λD)⁻¹ KᵀC⁻¹,     D diagonal, D_ii = mean of k_jᵀC⁻¹k_j over the columns j of i's group

λ = 0 minimises tr(Δ C Δᵀ) subject to Δ k_i = r_group(i) (ROME, arXiv 2202.05262, eq. 2; many keys: EMMET, 2403.14236).
n = 1, λ = 0 is r-ROME (2403.07175). λ > 0 is EMMET = MEMIT at one layer (2210.07229, eq. 14), except for D: theirs is
one number for all columns, which damps an edit of a common word, whose k̄ᵀC⁻¹k̄ is small, more than an edit of a rare
name. With D each group is damped as if it were solved alone.

Because the columns of a group share one residual, Δ = R·A with A = S (KᵀC⁻¹K + λD)⁻¹ KᵀC⁻¹ [groups, d_in]: the rank is
the number of *groups*, however many columns a group has. Everything is computed in float64 from the stored vectors K
and C⁻¹K (a `System`); C itself is no longer needed.
"""

from __future__ import annotations

import torch

from vllm_edit.composition.system import System
from vllm_edit.deltas.delta import LowRank
from vllm_edit.errors import EditError, Unsolvable


def row_space(system: System) -> torch.Tensor:
    """A = S (KᵀC⁻¹K + λD)⁻¹ KᵀC⁻¹ [groups, d_in] float64, with D as in the module's docstring and λ = damping.

    The n × n system is solved for the groups' rows of S only: n² · groups + groups · n · d_in products.

    Raises:
        Unsolvable: keys coincide so nearly that no finite solution exists.
    """
    product, count = system.gram, len(system.groups)
    groups = torch.tensor(system.groups)
    sums = torch.zeros(max(system.groups) + 1, dtype=product.dtype).index_add(0, groups, product.diagonal())
    strength = (sums / groups.bincount())[groups]  # D's diagonal, [n]
    factor, failed = torch.linalg.cholesky_ex(product + (system.damping * strength).diag())
    if failed.item():
        raise Unsolvable(
            f"the keys of column {failed.item() - 1} and of an earlier one are linearly dependent, so their edits "
            "cannot be solved jointly; use more damping, or put them into one key group"
        )
    selection = torch.zeros(count, max(system.groups) + 1, dtype=product.dtype)  # Sᵀ [n, groups]
    selection[torch.arange(count), groups] = torch.tensor(system.shares, dtype=product.dtype)
    return torch.cholesky_solve(selection, factor).T @ system.whitened.double()


def solve(system: System, residuals: torch.Tensor) -> LowRank:
    """The joint update Δ = R·A (module docstring): B = Rᵀ [d_out, groups], A = `row_space` [groups, d_in], float64.

    Args:
        system: the constraints.
        residuals: [groups, d_out].

    Raises:
        EditError: the residuals' shape does not fit the system's groups.
        Unsolvable: see `row_space`.
    """
    A = row_space(system)
    if residuals.ndim != 2 or residuals.shape[0] != A.shape[0]:
        raise EditError(f"expected residuals [{A.shape[0]} groups, d_out]; got {tuple(residuals.shape)}")
    return LowRank(B=residuals.double().T.contiguous(), A=A)


def rows_alone(system: System) -> torch.Tensor:
    """Each group's A as if the others did not exist, [groups, d_in] float64."""
    return torch.cat([row_space(system.alone(group)) for group in range(max(system.groups) + 1)])


def plain_sum(system: System, residuals: torch.Tensor) -> LowRank:
    """Σ of each group's own solution, as if the others did not exist. For comparison only: the cross terms remain

    Δ_sum k_j = r_j + Σ_{i≠j} r_i (k_iᵀC⁻¹k_j) / (k_iᵀC⁻¹k_i)   (one column per group, λ = 0).
    """
    return LowRank(B=residuals.double().T.contiguous(), A=rows_alone(system))


def constraint_error(system: System, residuals: torch.Tensor, update: LowRank) -> torch.Tensor:
    """‖Δ k_i − share_i · r_group(i)‖ / ‖r_group(i)‖ per column, [n] float64. residuals: [groups, d_out]."""
    whole = residuals.double()[torch.tensor(system.groups)]  # [n, d_out]
    wanted = whole * torch.tensor(system.shares, dtype=torch.float64)[:, None]
    got = (system.keys.double() @ update.A.double().T) @ update.B.double().T  # [n, d_out]
    norms = whole.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    error: torch.Tensor = (got - wanted).norm(dim=1) / norms
    return error


def as_saved(update: LowRank) -> LowRank:
    """The update as an adapter stores it: balanced in float64, then cast to float32."""
    balanced = update.balanced()
    return LowRank(B=balanced.B.float(), A=balanced.A.float())
