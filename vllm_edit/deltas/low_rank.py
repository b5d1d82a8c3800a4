"""LowRank: one module's update ΔW = B·A, and the algebra on it that never forms ΔW.

Shapes: B [d_out, r], A [r, d_in]; component i is the column B[:, i] with the row A[i, :].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_edit.errors import EditError

# Components whose norms agree within this do not change, so that balancing again after a cast is an exact no-op.
_BALANCED_WITHIN = 0.01
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise `EditError` if factors cannot be cast to `dtype`: an integer would round them to zero."""
    if dtype not in _DTYPES:
        raise EditError(f"expected a dtype for factors among {', '.join(map(str, _DTYPES))}; got {dtype}")


@dataclass(frozen=True)
class LowRank:
    """One module's update ΔW = B·A.

    B is [d_out, r], A [r, d_in], both float32 or float64 on the CPU; they are cast only when saved (`save_peft`).
    """

    B: torch.Tensor
    A: torch.Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise EditError(
                f"a delta needs B [d_out, r] and A [r, d_in]; got B {tuple(self.B.shape)}, A {tuple(self.A.shape)}"
            )

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of ΔW: (d_out, d_in)."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> torch.Tensor:
        """ΔW [d_out, d_in], for tests and small models."""
        return self.B @ self.A

    def norm(self) -> float:
        """Frobenius norm of ΔW, from an r × r core, in float64."""
        return float(torch.linalg.matrix_norm(self._core()[1]))

    def balanced(self) -> LowRank:
        """The same ΔW in float64 with ‖A_i‖ = ‖B_i‖ per component: B_i ← s·B_i, A_i ← A_i/s, s = √(‖A_i‖/‖B_i‖).

        A cast to half precision then keeps both factors in range (docs/methods.md). Components whose norms agree
        within 1 % do not change. A component with a zero factor adds nothing to ΔW: both factors become zero, so that
        the other factor cannot overflow in a cast and turn 0 into NaN.
        """
        B, A = self.B.double(), self.A.double()
        norm_B, norm_A = B.norm(dim=0), A.norm(dim=1)  # [r], [r]
        void = (norm_B == 0) | (norm_A == 0)
        s = (norm_A / norm_B).sqrt()
        s = torch.where(void | ((s**2 - 1).abs() <= _BALANCED_WITHIN), 1.0, s)
        keep = (~void).double()
        return LowRank(B * (s * keep), A * (keep / s)[:, None])

    def cast(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """B [d_out, r] and A [r, d_in], balanced in float64, then cast, on the CPU, detached.

        Raises:
            EditError: `dtype` is none of `check_dtype`, or cannot hold a value; or a value is not finite.
        """
        check_dtype(dtype)
        part = self.balanced()
        B, A = (factor.detach().to("cpu", dtype).contiguous() for factor in (part.B, part.A))
        if not (B.isfinite().all() and A.isfinite().all()):
            largest = max(float(factor.abs().max()) for factor in (part.B, part.A))
            raise EditError(f"expected factors that {dtype} can hold, got a largest value of {largest:g}")
        return B, A

    def truncated(self, rank: int) -> tuple[LowRank, float]:
        """The best approximation of ΔW of at most `rank`, in float64, and the energy dropped: Σ_{i>rank} σ_i².

        QR of B and Aᵀ, SVD of the core (docs/methods.md): B = Q_B R_B, Aᵀ = Q_A R_A, R_B R_Aᵀ = U S Vᵀ, so that
        ΔW ≈ (Q_B U √S)(√S Vᵀ Q_Aᵀ), optimal by Eckart–Young. Unchanged where the rank is already low enough.
        """
        if rank < 1:
            raise EditError(f"cannot truncate a delta to rank {rank}; expected a rank of at least 1")
        if self.rank <= rank:
            return self, 0.0
        Q_B, core, Q_A = self._core()
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        root = S[:rank].sqrt()
        B = Q_B @ (U[:, :rank] * root)  # [d_out, rank]
        A = (root[:, None] * Vh[:rank]) @ Q_A.mT  # [rank, d_in]
        return LowRank(B, A), float((S[rank:] ** 2).sum())

    @classmethod
    def nearest(cls, dense: torch.Tensor, rank: int) -> tuple[LowRank, float]:
        """The best approximation of ΔW [d_out, d_in] of at most `rank`, and the energy dropped; as in `truncated`.

        From the eigenvectors U of the smaller of ΔWΔWᵀ and ΔWᵀΔW, ΔW ≈ U_r (U_rᵀ ΔW), optimal by Eckart–Young. A full
        SVD of a large matrix takes many times longer, for digits that the adapter's float32 does not hold.
        """
        if dense.shape[0] > dense.shape[1]:
            turned, dropped = cls.nearest(dense.mT, rank)
            return cls(B=turned.A.mT, A=turned.B.mT), dropped
        dense = dense.detach().double()
        energies, vectors = torch.linalg.eigh(dense @ dense.mT)  # ascending, [d_out]
        U = vectors[:, -rank:]
        return cls(B=U.cpu(), A=(U.mT @ dense).cpu()), float(energies[:-rank].clamp_min(0).sum())

    def _core(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q_B [d_out, p], core [p, q], Q_A [d_in, q] with ΔW = Q_B · core · Q_Aᵀ, Q orthonormal, p, q ≤ r; float64."""
        Q_B, R_B = torch.linalg.qr(self.B.double())
        Q_A, R_A = torch.linalg.qr(self.A.double().mT)
        return Q_B, R_B @ R_A.mT, Q_A


def stack(parts: list[LowRank]) -> LowRank:
    """The sum of updates of one module: B = [B_1 B_2 …], A = [A_1; A_2; …]. Exact, ranks add."""
    dtype = parts[0].B.dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.B.dtype)
    return LowRank(
        torch.cat([part.B.to(dtype) for part in parts], dim=1), torch.cat([part.A.to(dtype) for part in parts], dim=0)
    )
