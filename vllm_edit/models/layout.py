"""Where a model keeps its decoder blocks, attention, MLP, MLP down projection, final norm and head.

Found by structure and by behaviour in one tiny forward pass, never by a module's or a model's name:

- the decoder blocks are the largest `ModuleList` that runs in a forward pass on text;
- in a block, attention is the child that mixes positions: a change of its input at the first position changes its
  output at the last position. An MLP does not mix positions;
- the down projection is the MLP's last linear layer, and its output is the MLP's output; the linear layers before it
  are the gate and up projections, fused or separate;
- a block normalises its MLP's output (as in Gemma 2 and 3) if doubling that output does not change the block's output;
- a block scales its MLP's output (as in Granite) by the gain with which a change of that output changes the block's;
- a block normalises the *sum* of its MLP's output and the residual stream (post-LN, as in OPT-350m) if one MLP output
  changes the block's output differently at positions with different streams.

Other models (mixture of experts, encoder-decoder, an MLP that adds the residual itself, linear layers beside the MLP,
post-LN) are refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Conv1D, PreTrainedModel

from vllm_edit.deltas.linear import linear_shape
from vllm_edit.errors import EditError
from vllm_edit.models.hooks import frozen, main_tensor

_PROBE_LENGTH = 4
_SAME = 0.5
"""Relative change of a block's output, when its MLP's output is doubled, below which the block normalises it."""
_UNLIKE = 0.05
"""Difference between two positions' changes, relative to the block's output, above which the streams there matter.
Rounding in half precision stays below a third of it."""
_UNSCALED = 0.01
"""Largest difference between a gain and 1 that counts as rounding."""


@dataclass(frozen=True)
class Layout:
    """Runtime names of modules; a tuple has one entry per decoder block.

    mlp: the block itself if it contains its MLP's layers directly (OPT).
    matrices: the linear layers of a block's MLP in the order in which they run; the last is `down`.
    renormed: True if the block normalises its MLP's output: h + norm(W k + b) instead of h + W k + b. A change of
    W k + b then counts relative to W k + b, and the norm limits its effect.
    gain: g of a block that scales its MLP's output: h + g (W k + b). 1 if the block does not scale or normalises it.
    norm: None for a model without a final norm.
    """

    layers: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    matrices: tuple[tuple[str, ...], ...]
    down: tuple[str, ...]
    renormed: tuple[bool, ...]
    gain: tuple[float, ...]
    norm: str | None
    head: str


def find_layout(model: PreTrainedModel) -> Layout:
    """The layout of a causal language model of transformers. The model is not changed.

    Raises:
        EditError: the model is not a dense decoder with one MLP per block; the message gives the difference.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise EditError("this is an encoder-decoder; expected a causal (decoder-only) language model")
    names = {module: name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    if head is None:
        raise EditError("the model has no output embeddings; expected a model with a language-modelling head")
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and all(map(_has_linear, m))]
    watched = {child for stack in stacks for block in stack for child in block.modules()} | {head}
    watched |= {module for module in model.modules() if not any(module.children())}
    with torch.no_grad(), frozen(model):
        trace = _Trace.of(model, watched)
        ran = [list(stack) for stack in stacks if all(block in trace.outputs for block in stack)]
        if not ran:
            raise EditError("no stack of decoder blocks (a ModuleList that runs on text) was found in the model")
        blocks = max(ran, key=lambda stack: sum(map(_size, stack)))
        parts = [_Parts.of(block, names[block], trace) for block in blocks]
    return Layout(
        layers=tuple(names[block] for block in blocks),
        attention=tuple(names[part.attention] for part in parts),
        mlp=tuple(names[part.mlp] for part in parts),
        matrices=tuple(tuple(names[layer] for layer in part.matrices) for part in parts),
        down=tuple(names[part.down] for part in parts),
        renormed=tuple(part.renormed for part in parts),
        gain=tuple(part.gain for part in parts),
        norm=_final_norm(blocks[-1], head, names, trace),
        head=names[head],
    )


@dataclass(frozen=True)
class _Trace:
    """One forward pass: the order in which modules finished, with their arguments and outputs."""

    order: list[nn.Module]
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: dict[nn.Module, Any]

    @classmethod
    def of(cls, model: PreTrainedModel, watched: set[nn.Module]) -> _Trace:
        trace = cls([], {}, {})

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            trace.order.append(module)
            trace.calls[module] = (args, kwargs)
            trace.outputs[module] = output

        device = next(model.get_input_embeddings().parameters()).device
        ids = torch.arange(_PROBE_LENGTH, device=device)[None]
        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return trace


@dataclass(frozen=True)
class _Parts:
    """A block's attention, its MLP (the block itself if the MLP is not a module), the MLP's linear layers in the order
    in which they run, whether the block normalises their output, and the gain with which it adds it."""

    attention: nn.Module
    mlp: nn.Module
    matrices: tuple[nn.Module, ...]
    renormed: bool
    gain: float

    @property
    def down(self) -> nn.Module:
        return self.matrices[-1]

    @classmethod
    def of(cls, block: nn.Module, name: str, trace: _Trace) -> _Parts:
        children = [child for child in trace.order if child in set(block.children()) and _has_linear(child)]
        mixing = [child for child in children if _mixes_positions(child, trace)]
        tokenwise = [child for child in children if child not in mixing]
        if len(mixing) != 1:
            raise EditError(f"block {name} has {len(mixing)} parts that mix positions; expected only its attention")
        if any(weight.ndim > 2 for child in block.children() if child not in mixing for weight in child.parameters()):
            raise EditError(f"block {name} holds weights of several experts; only dense MLPs can be edited")
        if any(map(_is_linear, tokenwise)) and not all(map(_is_linear, tokenwise)):
            alone = {child for child in tokenwise if _is_linear(child)}
            beside = ", ".join(own for own, child in block.named_children() if child in alone)
            raise EditError(f"block {name} has linear layers beside its MLP ({beside}); expected its MLP alone")
        linear = {layer for child in tokenwise for layer in child.modules() if _is_linear(layer)}
        ran = [layer for layer in trace.order if layer in linear]
        hidden = main_tensor(trace.outputs[block]).shape[-1]
        if not ran or len(ran) != len(linear) or linear_shape(ran[-1])[0] != hidden:
            raise EditError(
                f"block {name} has no MLP of the kind that can be edited: expected linear layers that all run for "
                f"every token, the last of them with {hidden} outputs; got {len(linear)}, of which {len(ran)} ran"
            )
        down = ran[-1]
        mlp = next(child for child in tokenwise if down in set(child.modules()))
        result = main_tensor(trace.outputs[mlp])
        if not torch.equal(result, main_tensor(trace.outputs[down]).reshape(result.shape)):
            raise EditError(f"block {name}: the MLP's output is not its last linear layer's output (experts?)")
        addition = _Addition(block, down, trace)
        if not addition.ignores_the_stream():
            raise EditError(
                f"block {name} normalises the sum of its MLP's output and the residual stream (post-LN); expected a "
                "block that adds its MLP's output to the stream"
            )
        renormed = addition.renorms()
        gain = 1.0 if renormed else addition.gain()
        return cls(mixing[0], block if mlp is down else mlp, tuple(ran), renormed, gain)


def _mixes_positions(module: nn.Module, trace: _Trace) -> bool:
    """True if the module's output at the last position depends on its input at the first. Runs the module twice."""
    args, kwargs = trace.calls[module]
    inputs = [*args, *kwargs.values()]
    hidden = next(x for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point())
    changed = hidden.clone()
    ramp = torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)  # not a multiple of anything a norm removes
    changed[..., 0, :] += ((1 + hidden.abs().max()) * ramp).to(hidden.dtype)

    def last(replacement: torch.Tensor) -> torch.Tensor:
        swap = {key: replacement if value is hidden else value for key, value in kwargs.items()}
        return main_tensor(module(*(replacement if x is hidden else x for x in args), **swap))[..., -1, :]

    before, after = last(hidden), last(changed)
    # Not torch.equal: an expert's rounding depends on the other tokens that are routed to it.
    return bool((after - before).abs().max() > 1e-5 * before.abs().max())


@dataclass(frozen=True)
class _Addition:
    """A block's output as a function of its down projection's output, with which every method replaces that output."""

    block: nn.Module
    down: nn.Module
    trace: _Trace

    def ignores_the_stream(self) -> bool:
        """True if one output of `down` changes the block's output equally at every position: h + g y or h + norm(y).

        LN(h + y) does not change if y has the direction of h, and changes at all other positions. The longest h is
        taken, so that the other positions' rounding hardly counts. Runs the block twice.
        """
        stream = self._out(torch.zeros(()))
        longest = stream.norm(dim=1).argmax()
        direction = stream[longest] / stream[longest].abs().max().clamp_min(torch.finfo(stream.dtype).tiny)
        moved = self._out(self._size * direction)
        change = moved - stream
        unlike = (change - change[longest]).norm(dim=1)
        return bool((unlike <= _UNLIKE * moved.norm(dim=1)).all())

    def renorms(self) -> bool:
        """True if doubling the output of `down` hardly changes the block's output. Runs the block three times."""
        nothing, once, twice = (self._out(share * self._probe) for share in (0.0, 0.5, 1.0))
        return bool((twice - once).norm() < _SAME * (once - nothing).norm())

    def gain(self) -> float:
        """Change of the block's output per change of the output of `down`, in a block that does not normalise it.

        Runs the block twice.
        """
        change = self._out(self._probe) - self._out(-self._probe)
        given = 2 * self._probe.to(main_tensor(self.trace.outputs[self.down]).dtype).double().expand(change.shape)
        gain = float((change * given).sum() / given.square().sum())
        return 1.0 if abs(gain - 1) < _UNSCALED else gain

    @property
    def _size(self) -> float:
        """Larger than the stream, so that the stream's rounding in half precision hardly counts."""
        return 1 + 8 * float(main_tensor(self.trace.outputs[self.block]).abs().max())

    @property
    def _probe(self) -> torch.Tensor:
        """[hidden]: `_size`, with alternating signs."""
        output = main_tensor(self.trace.outputs[self.down])
        return self._size * (1 - 2 * (torch.arange(output.shape[-1], device=output.device) % 2)).double()

    def _out(self, replacement: torch.Tensor) -> torch.Tensor:
        """The block's output [positions, hidden] float64 if `down` gives `replacement` [hidden] at every position."""
        output = main_tensor(self.trace.outputs[self.down])
        given = replacement.to(output.device, output.dtype).expand(output.shape)
        args, kwargs = self.trace.calls[self.block]
        with self.down.register_forward_hook(lambda module, inputs, output: given):
            return main_tensor(self.block(*args, **kwargs)).double().flatten(0, -2)


def _final_norm(last_block: nn.Module, head: nn.Module, names: dict[nn.Module, str], trace: _Trace) -> str | None:
    """The last leaf module with a weight vector that runs between the last block and the head; None without one."""
    between = trace.order[trace.order.index(last_block) + 1 : trace.order.index(head)]
    norms = [m for m in between if [p.ndim for p in m.parameters()] in ([1], [1, 1])]
    return names[norms[-1]] if norms else None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _has_linear(module: nn.Module) -> bool:
    return any(map(_is_linear, module.modules()))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
