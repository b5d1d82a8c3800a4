"""THE solver: every closed-form editor at one module is a setting of `solve`.

With C the second moment of the module's input, K = [k_1 … k_n] the columns' keys and R the groups' residuals, each
shared by the group's columns through the selection matrix S [groups, n]: S_gi is the share of column i if it belongs to
group g, else 0. A share is 1, or 0 for a kept column, the key of a prompt that the update must not move:

    Δ = (R S) (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹

λ = 0 minimises tr(Δ C Δᵀ) subject to Δ k_i = r_group(i) (ROME, arXiv 2202.05262, eq. 2; many keys: EMMET, 2403.14236).
n = 1, λ = 0 is r-ROME (2403.07175). λ > 0 is EMMET = MEMIT at one layer (2210.07229, eq. 14).

Because the columns of a group share one residual, Δ = R·A with A = S (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹ [groups, d_in]: the rank is
the number of *groups*, however many columns a group has. Everything is computed in float64 from the stored vectors K
and C⁻¹K; C itself is not needed any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.deltas.delta import LowRank
from vllm_edit.errors import EditError

KEPT_COSINE = 0.9
"""A key to be kept whose whitened cosine with an edited one exceeds this contradicts it."""


def gram(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """KᵀC⁻¹K [n, n] float64, made exactly symmetric. keys, whitened: K and C⁻¹K, both [n, d_in]."""
    if keys.ndim != 2 or keys.shape != whitened.shape:
        raise EditError(f"keys and C⁻¹ keys must both be [n, d_in]; got {tuple(keys.shape)}, {tuple(whitened.shape)}")
    product = keys.double() @ whitened.double().T
    return (product + product.T) / 2


def interference(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """Cosines of the keys in the metric C⁻¹ [n, n] float64: how far each column's edit acts on the others' keys."""
    product = gram(keys, whitened)
    norms = product.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return product / norms[:, None] / norms[None, :]


def row_space(
    keys: torch.Tensor,
    whitened: torch.Tensor,
    groups: Sequence[int],
    damping: float = 0.0,
    shares: Sequence[float] | None = None,
) -> torch.Tensor:
    """A = S (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹ [groups, d_in] float64, where λ = damping · mean diag(KᵀC⁻¹K).

    keys, whitened: [n, d_in]. groups: the group of each column; every group 0 … max has at least one. shares: of each
    column, by default 1.

    Raises:
        EditError: bad shapes or groups, or keys that coincide so nearly that no finite solution exists.
    """
    product = gram(keys, whitened)
    count = product.shape[0]
    if len(groups) != count or sorted(set(groups)) != list(range(max(groups, default=-1) + 1)) or not count:
        raise EditError(
            f"every column needs a group and every group a column; got {count} columns, groups {list(groups)}"
        )
    if damping < 0:
        raise EditError(f"damping must not be negative; got {damping}")
    ridge = damping * product.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(product + ridge * torch.eye(count, dtype=product.dtype))
    if failed.item():
        raise EditError(
            f"the keys of column {failed.item() - 1} and of an earlier one are linearly dependent, so their edits "
            "cannot be solved jointly; use damping > 0, or put them into one key group"
        )
    selection = torch.zeros(max(groups) + 1, count, dtype=product.dtype)
    selection[torch.tensor(groups), torch.arange(count)] = _shares(shares, count)
    return selection @ torch.cholesky_solve(whitened.double(), factor)


def solve(
    keys: torch.Tensor,
    whitened: torch.Tensor,
    residuals: torch.Tensor,
    groups: Sequence[int],
    damping: float = 0.0,
    shares: Sequence[float] | None = None,
) -> LowRank:
    """The joint update Δ = R·A (module docstring): B = Rᵀ [d_out, groups], A = `row_space` [groups, d_in], float64.

    keys, whitened: K and C⁻¹K, [n, d_in]. residuals: [groups, d_out]. groups, shares: of each of the n columns.
    """
    A = row_space(keys, whitened, groups, damping, shares)
    if residuals.ndim != 2 or residuals.shape[0] != A.shape[0]:
        raise EditError(f"expected residuals [{A.shape[0]} groups, d_out]; got {tuple(residuals.shape)}")
    return LowRank(B=residuals.double().T.contiguous(), A=A)


def plain_sum(
    keys: torch.Tensor,
    whitened: torch.Tensor,
    residuals: torch.Tensor,
    groups: Sequence[int],
    damping: float = 0.0,
    shares: Sequence[float] | None = None,
) -> LowRank:
    """Σ of each group's own solution, as if the others did not exist. For comparison only: it keeps the cross terms

    Δ_sum k_j = r_j + Σ_{i≠j} r_i (k_iᵀC⁻¹k_j) / (k_iᵀC⁻¹k_i)   (one column a group, λ = 0).
    """
    rows = []
    for group in range(residuals.shape[0]):
        own = [column for column, member in enumerate(groups) if member == group]
        given = None if shares is None else [shares[column] for column in own]
        rows.append(row_space(keys[own], whitened[own], [0] * len(own), damping, given))
    return LowRank(B=residuals.double().T.contiguous(), A=torch.cat(rows))


def constraint_error(
    delta: LowRank,
    keys: torch.Tensor,
    residuals: torch.Tensor,
    groups: Sequence[int],
    shares: Sequence[float] | None = None,
) -> torch.Tensor:
    """‖Δ k_i − share_i · r_group(i)‖ / ‖r_group(i)‖ per column, [n] float64: how a composition by algebra is judged."""
    whole = residuals.double()[torch.tensor(groups)]  # [n, d_out]
    wanted = whole * _shares(shares, len(keys))[:, None]
    got = (keys.double() @ delta.A.double().T) @ delta.B.double().T  # [n, d_out]
    norms = whole.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    error: torch.Tensor = (got - wanted).norm(dim=1) / norms
    return error


def as_saved(update: LowRank) -> LowRank:
    """The update with the numbers that an adapter holds: balanced in float64, then float32."""
    balanced = update.balanced()
    return LowRank(B=balanced.B.float(), A=balanced.A.float())


def _shares(shares: Sequence[float] | None, count: int) -> torch.Tensor:
    """The columns' shares [n] float64."""
    return torch.ones(count, dtype=torch.float64) if shares is None else torch.tensor(shares, dtype=torch.float64)
