"""Row by row: one batch whose rows are answered under different deltas, or by the base, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from vllm_edit.deltas.apply import applied, fitting_modules
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.forward import low_rank_forward
from vllm_edit.deltas.linear import linear_weight


@contextmanager
def applied_by_row(model: nn.Module, deltas: Sequence[Delta | None]) -> Iterator[None]:
    """Within the block row i of every batch is answered under `deltas[i]`, or by the base where that is None.

    Factors of lower rank are filled up with zeros, which add nothing. Balanced and cast as in `applied`, to which this
    comes down where all rows have one delta.

    Raises:
        Incompatible: modules that the model lacks, or that do not fit a delta; named before any hook is set.
    """
    distinct = {id(delta): delta for delta in deltas}
    if len(distinct) <= 1:
        only = next(iter(distinct.values()), None)
        with applied(model, only.parts if only is not None else {}):
            yield
        return
    owners = {key: delta.parts for key, delta in distinct.items() if delta is not None}
    modules: dict[str, nn.Module] = {}
    for parts in owners.values():
        modules |= fitting_modules(model, parts)
    with ExitStack() as hooks:
        for name, module in modules.items():
            weight = linear_weight(module)
            cast = {key: parts[name].cast(weight.dtype) for key, parts in owners.items() if name in parts}
            B, A = _stacked([cast.get(id(delta)) for delta in deltas])
            hooks.enter_context(low_rank_forward(module, A.to(weight.device), B.to(weight.device)))
        yield


def _stacked(factors: Sequence[tuple[torch.Tensor, torch.Tensor] | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """B [rows, d_out, r] and A [rows, r, d_in] of each row's B [d_out, r_i] and A [r_i, d_in], zeros where it has none.

    At least one row has factors.
    """
    present = [pair for pair in factors if pair is not None]
    rank = max(A.shape[0] for _, A in present)
    first_B, first_A = present[0]
    B = first_B.new_zeros(len(factors), first_B.shape[0], rank)
    A = first_A.new_zeros(len(factors), rank, first_A.shape[1])
    for row, pair in enumerate(factors):
        if pair is not None:
            own_B, own_A = pair
            B[row, :, : own_B.shape[1]] = own_B
            A[row, : own_A.shape[0]] = own_A
    return B, A
