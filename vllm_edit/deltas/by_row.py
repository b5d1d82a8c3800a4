"""One forward pass over a batch whose rows use different deltas, or the base."""

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
    """Within the block row i of every batch uses `deltas[i]`, or the base if that is None.

    Factors are padded with zeros to a common rank, and balanced and cast as in `applied`. Equals `applied` if all rows
    have the same delta.

    Raises:
        Incompatible: modules that the model lacks, or that do not fit a delta; no hook is set.
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
    """Stack each row's B [d_out, r_i] and A [r_i, d_in] to B [rows, d_out, r] and A [rows, r, d_in], padded with zeros.

    At least one row must have factors.
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
