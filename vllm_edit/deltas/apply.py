"""Scoped application: a model that answers with a delta inside a `with` block, its weights untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from vllm_edit.deltas.linear import linear_shape, linear_weight
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.names import nearest


@contextmanager
def applied(model: nn.Module, parts: Mapping[str, LowRank]) -> Iterator[None]:
    """Within the block each named module returns W x + b + B(A x); on exit its hooks are removed, also on exceptions.

    The factors stay unmerged, as in vLLM: they are balanced, cast to the module's dtype and multiplied one after the
    other. Blocks nest; their deltas add up.

    Raises:
        Incompatible: modules that the model lacks, or that are not linear layers of the delta's shape. The message
            lists all of them; no hook is set.
    """
    modules = fitting_modules(model, parts)
    with ExitStack() as hooks:
        for name, module in modules.items():
            weight = linear_weight(module)
            B, A = (factor.to(weight.device) for factor in parts[name].cast(weight.dtype))
            hooks.callback(module.register_forward_hook(_adder(B, A)).remove)
        yield


def _adder(B: torch.Tensor, A: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Forward hook adding B(A x): x [..., d_in] → output [..., d_out]."""

    def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (args[0] @ A.mT) @ B.mT

    return add


def fitting_modules(model: nn.Module, parts: Mapping[str, LowRank]) -> dict[str, nn.Module]:
    """The model's modules that the delta changes, by name.

    Raises:
        Incompatible: the model lacks a module, or a shape does not fit; lists all problems.
    """
    known = dict(model.named_modules())
    modules: dict[str, nn.Module] = {}
    problems: list[str] = []
    for name, part in parts.items():
        if name not in known:
            similar = nearest(name, filter(None, known))
            problems.append(f"no module {name}" + (f", nearest: {', '.join(similar)}" if similar else ""))
            continue
        try:
            shape = linear_shape(known[name])
        except EditError as error:
            problems.append(f"{name}: {error}")
            continue
        if shape != part.shape:
            problems.append(f"{name} has weights [d_out, d_in] = {shape}, the delta {part.shape}")
        modules[name] = known[name]
    if problems:
        raise Incompatible(
            f"the delta does not fit this {type(model).__name__}: {'; '.join(problems)}; "
            "apply it to the base model that it was compiled for"
        )
    return modules
