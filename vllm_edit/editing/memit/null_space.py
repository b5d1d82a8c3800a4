"""The null space of a second moment (AlphaEdit, arXiv 2410.02355): directions that ordinary text does not use.

P = U Uᵀ, with U the eigenvectors of C whose eigenvalues are small. AlphaEdit (its reference code) solves

    ΔWᵀ = (P (K Kᵀ + K_p K_pᵀ) + λ I)⁻¹ P K Rᵀ,    K_p: keys that the update must not move

which is ΔW = R E ([K K_p]ᵀ P [K K_p] + λ I)⁻¹ [K K_p]ᵀ P, where E selects the columns of K: the solver's formula with P
in place of C⁻¹, and K_p as its columns of share 0 (`composition.solver`). Departures from the code: the threshold is
relative to C's scale, so that it means the same in every layer and model; P is stored as a basis, and K_p as a matrix
of keys, so that no d_in × d_in matrix is made per edit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.errors import EditError


@dataclass(frozen=True, eq=False)
class NullSpace:
    """P / c, where c is C's scale: its mean eigenvalue, except with very long keys (`SecondMoment.scale`).

    C⁻¹ would be I / c if C were a multiple of I, so the units are the same.

    Attributes:
        basis: [d_in, m] float64, orthonormal: of the null space, or of its complement if that is smaller.
        inside: True if `basis` spans the null space.
        scale: c.
    """

    basis: torch.Tensor
    inside: bool
    scale: float

    @classmethod
    def of(cls, moment: SecondMoment, threshold: float) -> NullSpace:
        """The eigenvectors of C with an eigenvalue below `threshold` times c.

        Raises:
            EditError: C has no such eigenvector.
        """
        C = moment.matrix.double()
        values, vectors = torch.linalg.eigh(C)  # ascending
        scale = moment.scale(float(values.mean()))
        count = int((values < threshold * scale).sum())
        if not count:
            raise EditError(
                f"no eigenvalue of the second moment is below {threshold:g} times their scale (the smallest is "
                f"{float(values[0]) / scale:.2g} times): raise null_space, or use memit"
            )
        inside = count <= len(values) // 2
        return cls(vectors[:, :count] if inside else vectors[:, count:], inside, scale)

    @property
    def rank(self) -> int:
        """Dimension of the null space."""
        size, count = self.basis.shape
        return count if self.inside else size - count

    def whiten(self, keys: torch.Tensor) -> torch.Tensor:
        """P k / c for each row of keys [n, d_in]. Returns [n, d_in] float64."""
        keys = keys.double()
        within = (keys @ self.basis) @ self.basis.T
        return (within if self.inside else keys - within) / self.scale
