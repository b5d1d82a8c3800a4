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

`satisfiable` chooses the columns that fit together: a preserved key contradicts an edited key that it nearly equals.
Compiling and composing share this, so that a patch compiled jointly and its parts composed preserve the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.deltas.delta import LowRank
from vllm_edit.errors import EditError, Unsolvable

PRESERVED_COSINE = 0.9
"""A preserved key contradicts an edited key if their whitened cosine exceeds this."""
SAME_COSINE = 0.999
"""Two preserved keys count as equal if their whitened cosine exceeds this: both would be linearly dependent."""
OPENING = "opening"
"""The form of edited columns that are dropped where they clash with a column of another group."""
_SMALLEST_PIVOT = 1e-6
"""A key is linearly dependent on the earlier keys if a smaller share of its kᵀC⁻¹k is independent of them. Such a share
is rounding of the stored float32 vectors, which a solve would amplify."""
ROOM = 0.25
"""Maximum number of preserved columns in units of d_in, for methods without their own: without damping, every column
takes one of the d_in dimensions from the edits."""


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
    damped = product + (system.damping * strength).diag()
    factor, failed = torch.linalg.cholesky_ex(damped)
    failed_at = int(failed)  # the column's number from 1; 0 if the factorisation succeeded
    if not failed_at:
        weak = (factor.diagonal().square() < _SMALLEST_PIVOT * damped.diagonal()).nonzero()
        failed_at = int(weak[0]) + 1 if len(weak) else 0
    if failed_at:
        raise Unsolvable(
            f"the keys of column {failed_at - 1} and of an earlier one are linearly dependent, so their edits "
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


def gram(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """KᵀC⁻¹K [n, n] float64, made exactly symmetric, from K and C⁻¹K, both [n, d_in]."""
    if keys.ndim != 2 or keys.shape != whitened.shape:
        raise EditError(f"keys and C⁻¹ keys must both be [n, d_in]; got {tuple(keys.shape)}, {tuple(whitened.shape)}")
    product = keys.double() @ whitened.double().T
    return (product + product.T) / 2


def interference(keys: torch.Tensor, whitened: torch.Tensor) -> torch.Tensor:
    """Cosines of the keys in the metric C⁻¹ [n, n] float64: how far each column's edit acts on the others' keys."""
    return _normed(gram(keys, whitened))


def satisfiable(
    keys: torch.Tensor,
    whitened: torch.Tensor,
    groups: Sequence[int],
    shares: Sequence[float],
    forms: Sequence[str],
    room: float = ROOM,
) -> list[int]:
    """Indices of the columns whose constraints one update can satisfy together, ascending.

    All edited columns are among them, except clashing openings.

    Args:
        keys: K [n, d_in].
        whitened: C⁻¹K [n, d_in].
        groups: each column's group.
        shares: each column's share.
        forms: each column's form.
        room: maximum number of preserved columns in units of d_in.
    """
    # First limit the number of columns: it bounds the Gram product below.
    chosen = without_copies(keys, shares)
    chosen = [chosen[place] for place in within_room([shares[place] for place in chosen], keys.shape[1], room)]
    cosines = interference(keys[chosen], whitened[chosen])
    agreed = agreeing(cosines, [groups[place] for place in chosen], [forms[place] for place in chosen])
    chosen, cosines = [chosen[place] for place in agreed], cosines[agreed][:, agreed]
    return [chosen[place] for place in keepable(cosines, [shares[place] for place in chosen])]


def without_copies(keys: torch.Tensor, shares: Sequence[float]) -> list[int]:
    """Indices of the columns, without preserved ones whose key an earlier preserved column has, bit for bit.

    A prompt that many patches preserve must not take the room of others.

    Args:
        keys: K [n, d_in].
        shares: each column's share.
    """
    places, known = list[int](), set[bytes]()
    for place, (key, share) in enumerate(zip(keys, shares, strict=True)):
        content = None if share else key.numpy().tobytes()
        if content is None:
            places.append(place)
        elif content not in known:
            known.add(content)
            places.append(place)
    return places


def within_room(shares: Sequence[float], d_in: int, room: float = ROOM) -> list[int]:
    """Indices of the columns after thinning the preserved ones (share 0) evenly to at most `room` · d_in.

    Without damping every column uses one dimension of d_in: a hundred patches with ten preserved keys each would leave
    none for edits. With damping preserved keys are only approximately preserved, and there may be more of them.
    """
    most = int(room * d_in)
    preserved = [place for place, share in enumerate(shares) if not share]
    if len(preserved) > most:
        preserved = [preserved[step * len(preserved) // most] for step in range(most)]
    chosen = set(preserved)
    return [place for place, share in enumerate(shares) if share or place in chosen]


def agreeing(cosines: torch.Tensor, groups: Sequence[int], forms: Sequence[str]) -> list[int]:
    """Indices of the columns, without those of form `OPENING` that coincide with a column of another group.

    Two edits of one subject have the same key where the subject begins a text, but two residuals: neither constraint
    can be satisfied there.

    Args:
        cosines: the columns' `interference` [n, n].
        groups: each column's group.
        forms: each column's form.
    """
    number = torch.tensor(list(groups))
    optional = torch.tensor([form == OPENING for form in forms])
    clashes = ((cosines.abs() > PRESERVED_COSINE) & (number[:, None] != number[None, :])).any(dim=1)
    return [place for place, out in enumerate((optional & clashes).tolist()) if not out]


def keepable(cosines: torch.Tensor, shares: Sequence[float]) -> list[int]:
    """Indices of the columns, without preserved ones that contradict an edited column or repeat a preserved one.

    A key that one patch preserves and another edits cannot be preserved.

    Args:
        cosines: the columns' `interference` [n, n].
        shares: each column's share.
    """
    edited = torch.tensor([share > 0 for share in shares])
    contradicts = (cosines[:, edited] > PRESERVED_COSINE).any(dim=1)
    repeats = ((cosines > SAME_COSINE).tril(-1) & ~edited[None, :]).any(dim=1)
    left_out = ~edited & (contradicts | repeats)
    return [place for place, out in enumerate(left_out.tolist()) if not out]


def _normed(product: torch.Tensor) -> torch.Tensor:
    norms = product.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return product / norms[:, None] / norms[None, :]
