"""The linear constraints of a joint solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.errors import EditError


@dataclass(frozen=True)
class System:
    """The constraints on an update Δ at one module: Δ k_i = share_i · r_group(i) for every column i. Build with `of`.

    The residuals [groups, d_out] are not included: the row space of Δ does not depend on them.

    Attributes:
        keys: K [n, d_in].
        whitened: C⁻¹K [n, d_in].
        gram: KᵀC⁻¹K [n, n] float64.
        groups: each column's group.
        shares: each column's share: 1, or 0 for a key that the update must not move.
        damping: λ, relative to the mean k̄ᵀC⁻¹k̄ of a column's group.
    """

    keys: torch.Tensor
    whitened: torch.Tensor
    gram: torch.Tensor
    groups: tuple[int, ...]
    shares: tuple[float, ...]
    damping: float = 0.0

    @classmethod
    def of(
        cls,
        keys: torch.Tensor,
        whitened: torch.Tensor,
        groups: Sequence[int],
        damping: float = 0.0,
        shares: Sequence[float] | None = None,
    ) -> System:
        """Build the system of these columns.

        Args:
            keys: K [n, d_in].
            whitened: C⁻¹K [n, d_in].
            groups: each column's group, numbered from 0 without gaps.
            damping: λ ≥ 0.
            shares: each column's share; by default 1.

        Raises:
            EditError: bad shapes, a column without a group, a group without a column, or a negative damping.
        """
        product = gram(keys, whitened)
        count = product.shape[0]
        given = (1.0,) * count if shares is None else tuple(shares)
        if damping < 0:
            raise EditError(f"damping must not be negative; got {damping}")
        complete = count and sorted(set(groups)) == list(range(max(groups) + 1))
        if not complete or len(groups) != count or len(given) != count:
            raise EditError(
                f"every column needs a group and a share, and every group a column; got {count} columns, groups "
                f"{list(groups)}, {len(given)} shares"
            )
        return cls(keys, whitened, product, tuple(groups), given, damping)

    @property
    def cosines(self) -> torch.Tensor:
        """How far each column's edit acts on the others' keys, [n, n] float64 (see `interference`)."""
        return _normed(self.gram)

    def only(self, columns: Sequence[int]) -> System:
        """The system of some columns, in this order; groups keep their numbers."""
        chosen = list(columns)
        return System(
            self.keys[chosen],
            self.whitened[chosen],
            self.gram[chosen][:, chosen],
            tuple(self.groups[column] for column in chosen),
            tuple(self.shares[column] for column in chosen),
            self.damping,
        )

    def alone(self, group: int) -> System:
        """The system of one group's columns, as group 0."""
        own = self.only([column for column, member in enumerate(self.groups) if member == group])
        return System(own.keys, own.whitened, own.gram, (0,) * len(own.groups), own.shares, self.damping)


def gram(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """KᵀC⁻¹K [n, n] float64, made exactly symmetric, from K and C⁻¹K, both [n, d_in]."""
    if keys.ndim != 2 or keys.shape != whitened.shape:
        raise EditError(f"keys and C⁻¹ keys must both be [n, d_in]; got {tuple(keys.shape)}, {tuple(whitened.shape)}")
    product = keys.double() @ whitened.double().T
    return (product + product.T) / 2


def interference(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """Cosines of the keys in the metric C⁻¹ [n, n] float64: how far each column's edit acts on the others' keys."""
    return _normed(gram(keys, whitened))


def _normed(product: torch.Tensor) -> torch.Tensor:
    norms = product.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return product / norms[:, None] / norms[None, :]
