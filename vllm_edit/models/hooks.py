"""Capture and replacement of activations. Every hook belongs to a context manager, which removes it on exit.

Modules are addressed by their runtime name (`model.layers.6.mlp.down_proj`). Some families flatten batch and sequence
before the MLP (OPT); tensors are always [batch, seq, d] here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import nearest

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`.

    Raises:
        NotFound: there is no such module; the message contains the most similar names.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        raise NotFound(f"the model has no module {name!r}", nearest(name, names)) from None


def main_tensor(output: object) -> torch.Tensor:
    """The hidden states in a module's output: the output itself, or the first element of a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, torch.Tensor):
        raise EditError(
            f"expected a tensor, or a tuple that starts with a tensor, as module output; got {type(output)}"
        )
    return tensor


@contextmanager
def capture_inputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Name → input [batch, seq, d_in] of each module in the latest forward pass of `model`, detached."""
    with ExitStack() as stack:
        shape, captured = _batch_shape(model, stack), dict[str, torch.Tensor]()

        def hook_of(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                captured[name] = _unflatten(args[0].detach(), shape)

            return hook

        for name in names:
            stack.callback(find_module(model, name).register_forward_pre_hook(hook_of(name)).remove)
        yield captured


def inputs_of(model: nn.Module, names: Sequence[str], **given: torch.Tensor | bool) -> dict[str, torch.Tensor]:
    """Name → input [batch, seq, d_in] of each module in one forward pass of `model` on `given`, detached.

    The pass ends when the last of these inputs is available; later modules are not run.
    """
    return _in_part(model, names, given, capture_inputs, nn.Module.register_forward_pre_hook)


def outputs_of(model: nn.Module, names: Sequence[str], **given: torch.Tensor | bool) -> dict[str, torch.Tensor]:
    """Name → output [batch, seq, d_out] of each module in one forward pass of `model` on `given`, detached.

    The pass ends when the last of these outputs is available; later modules are not run.
    """
    return _in_part(model, names, given, capture_outputs, nn.Module.register_forward_hook)


def _in_part(
    model: nn.Module,
    names: Sequence[str],
    given: Mapping[str, torch.Tensor | bool],
    capture: Callable[[nn.Module, Iterable[str]], AbstractContextManager[dict[str, torch.Tensor]]],
    register: Callable[[nn.Module, Callable[..., None]], RemovableHandle],
) -> dict[str, torch.Tensor]:
    """What `capture` finds in a forward pass that ends when it has found all of `names`."""

    def end(*_: object) -> None:
        if len(captured) == len(set(names)):
            raise _Ended

    with ExitStack() as stack:
        captured = stack.enter_context(capture(model, names))
        for name in names:
            stack.callback(register(find_module(model, name), end).remove)  # runs after the hook that captures
        with suppress(_Ended):
            model(**given)
        return captured


class _Ended(Exception):
    """Raised by a hook to end a forward pass; it never leaves `_in_part`."""


@contextmanager
def capture_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Name → output [batch, seq, d_out] of each module in the latest forward pass of `model`, detached."""
    with ExitStack() as stack:
        shape, captured = _batch_shape(model, stack), dict[str, torch.Tensor]()

        def hook_of(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                captured[name] = _unflatten(main_tensor(output).detach(), shape)

            return hook

        for name in names:
            stack.callback(find_module(model, name).register_forward_hook(hook_of(name)).remove)
        yield captured


@contextmanager
def replace_output(model: nn.Module, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the context, the module's output o [batch, seq, d_out] is replaced by `function(o)` of the same shape."""
    with ExitStack() as stack:
        shape = _batch_shape(model, stack)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            before = main_tensor(output)
            after = function(_unflatten(before, shape)).reshape(before.shape)
            return (after, *output[1:]) if isinstance(output, tuple) else after

        stack.callback(find_module(model, name).register_forward_hook(hook).remove)
        yield


@contextmanager
def last_position(model: CausalLM) -> Iterator[None]:
    """Within the block only each row's last position reaches the head, so the logits are [rows, 1, vocabulary]."""

    def select(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0][:, -1:],)  # [rows, tokens, d] → [rows, 1, d]

    with model.get_output_embeddings().register_forward_pre_hook(select):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the context, the model is in eval mode and no parameter requires a gradient; both are restored on exit."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _batch_shape(model: nn.Module, stack: ExitStack) -> list[int]:
    """A list with [batch, seq] of the model's latest forward pass, which a hook in `stack` updates."""
    shape: list[int] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        first = next(value for value in given if isinstance(value, torch.Tensor))
        shape[:] = first.shape[:2]

    stack.callback(model.register_forward_pre_hook(hook, with_kwargs=True).remove)
    return shape


def _unflatten(tensor: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """[batch·seq, d] → [batch, seq, d]; tensors of any other shape are returned unchanged."""
    if tensor.ndim == 2 and len(shape) == 2 and tensor.shape[0] == shape[0] * shape[1]:
        return tensor.reshape(*shape, tensor.shape[-1])
    return tensor
