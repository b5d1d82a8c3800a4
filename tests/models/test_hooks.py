"""Capturing and replacing is scoped: it works inside the block, and leaves nothing outside, also after an exception."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import FAMILIES, tiny_model
from vllm_edit.deltas.forward import low_rank_forward
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.errors import EditError, NotFound
from vllm_edit.models.hooks import (
    capture_inputs,
    capture_outputs,
    find_module,
    frozen,
    inputs_of,
    outputs_of,
    replace_output,
)
from vllm_edit.models.layout import find_layout

IDS = torch.tensor([[7, 30, 200, 41], [9, 8, 300, 5], [11, 12, 13, 14]])
DOWN = "model.layers.1.mlp.down_proj"
Capture = Callable[[nn.Module, list[str]], AbstractContextManager[dict[str, torch.Tensor]]]
Measure = Callable[..., dict[str, torch.Tensor]]


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_input_and_output_agree_with_the_weight(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    name = find_layout(model).down[1]
    down = find_module(model, name)
    with torch.no_grad(), capture_inputs(model, [name]) as inputs, capture_outputs(model, [name]) as outputs:
        model(IDS)
    assert inputs[name].shape == (3, 4, 96)
    assert outputs[name].shape == (3, 4, 64)
    product = inputs[name] @ linear_weight(down).mT
    if isinstance(down.bias, torch.Tensor):
        product = product + down.bias
    assert torch.allclose(product, outputs[name], atol=1e-5)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(("capture", "measure"), [(capture_inputs, inputs_of), (capture_outputs, outputs_of)])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_measured_without_computing_later_blocks(
    family: str, capture: Capture, measure: Measure, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family, tokenizer)
    names, later = list(find_layout(model).down[:2]), find_layout(model).layers[2]
    reached: list[int] = []
    with torch.no_grad(), capture(model, names) as whole:
        model(IDS)
    find_module(model, later).register_forward_pre_hook(lambda *_: reached.append(1))
    with torch.no_grad():
        found = measure(model, names, input_ids=IDS)
    assert found.keys() == set(names)
    assert all(torch.equal(found[name], whole[name]) for name in names)
    assert not reached
    assert hooks_of(model) == 1


@pytest.mark.parametrize("measure", [inputs_of, outputs_of])
def test_an_error_of_the_models_own_is_not_taken_for_the_end(
    measure: Measure, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama", tokenizer)
    with pytest.raises(IndexError):
        measure(model, [DOWN], input_ids=torch.tensor([[10**6]]))
    assert hooks_of(model) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj"])
def test_replacing_a_blocks_output_changes_later_blocks(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Blocks give tensors or tuples. Two rows get equal states at the last block, so they end in equal logits."""
    model = tiny_model(family, tokenizer)
    last = find_layout(model).layers[-1]
    with torch.no_grad():
        before = model(IDS).logits
        with replace_output(model, last, lambda states: states[:1].expand_as(states)):
            inside = model(IDS).logits
        assert torch.allclose(inside, before[:1].expand_as(before), atol=1e-5)
        assert torch.equal(model(IDS).logits, before)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_forward_is_the_model_with_changed_weights(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    down = find_module(model, find_layout(model).down[1])
    A, B = torch.randn(2, 96) * 0.1, torch.randn(64, 2) * 0.1
    with torch.no_grad():
        with low_rank_forward(down, A, B):
            low_rank = model(IDS).logits
        linear_weight(down).add_(B @ A)
        merged = model(IDS).logits
    assert torch.allclose(low_rank, merged, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_each_row_of_a_batch_gets_its_own_update(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    down = find_module(model, find_layout(model).down[1])
    A, B = torch.randn(3, 2, 96) * 0.1, torch.randn(3, 64, 2) * 0.1
    with torch.no_grad():
        with low_rank_forward(down, A, B):
            together = model(IDS).logits
        for row in range(3):
            with low_rank_forward(down, A[row], B[row]):
                alone = model(IDS[row : row + 1]).logits
            assert torch.allclose(together[row : row + 1], alone, atol=1e-4)
        with low_rank_forward(down, A[0], B):  # one shared A, a B per row
            shared = model(IDS).logits
        with low_rank_forward(down, A[:1].expand(3, 2, 96), B):
            assert torch.allclose(model(IDS).logits, shared, atol=1e-5)


def test_gradients_reach_each_rows_own_factor(llama: PreTrainedModel) -> None:
    A = torch.randn(3, 1, 96)
    B = torch.zeros(3, 64, 1, requires_grad=True)
    with frozen(llama), low_rank_forward(find_module(llama, DOWN), A, B):
        llama(IDS).logits[1].square().sum().backward()
    assert B.grad is not None
    assert B.grad[1].abs().sum() > 0
    assert B.grad[[0, 2]].abs().sum() == 0
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_a_half_precision_module_takes_float32_factors(tokenizer: PreTrainedTokenizerFast) -> None:
    module = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    A, B, x = torch.ones(1, 4), torch.full((3, 1), 0.5), torch.ones(1, 2, 4, dtype=torch.bfloat16)
    with torch.no_grad(), low_rank_forward(module, A, B):
        changed = module(x)
    assert changed.dtype == torch.bfloat16
    assert torch.allclose(changed - module(x), torch.full((1, 2, 3), 2.0, dtype=torch.bfloat16), atol=0.02)


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        ((2, 96), (64, 3), "expected A"),
        ((96,), (64, 1), "expected A"),
        ((2, 1, 96), (3, 64, 1), "different numbers of rows: 2 and 3"),
        ((1, 95), (64, 1), "maps 96 → 64; the update maps 95 → 64"),
        ((1, 96), (63, 1), "maps 96 → 64; the update maps 96 → 63"),
        ((2, 1, 96), (2, 64, 1), "for 2 rows; the batch's input has shape"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    llama: PreTrainedModel, A: tuple[int, ...], B: tuple[int, ...], message: str
) -> None:
    with (
        pytest.raises(EditError, match=message),
        low_rank_forward(find_module(llama, DOWN), torch.zeros(A), torch.zeros(B)),
    ):
        llama(IDS)
    assert hooks_of(llama) == 0


def test_an_unknown_module_names_the_nearest(llama: PreTrainedModel) -> None:
    with pytest.raises(NotFound, match=r"no module 'model\.layers\.1\.mlp\.down'; nearest: .*down_proj"):
        find_module(llama, "model.layers.1.mlp.down")


SCOPES: list[Callable[[PreTrainedModel], AbstractContextManager[Any]]] = [
    lambda model: capture_inputs(model, [DOWN]),
    lambda model: capture_outputs(model, [DOWN]),
    lambda model: replace_output(model, DOWN, lambda states: states * 2),
    lambda model: low_rank_forward(find_module(model, DOWN), torch.ones(1, 96), torch.ones(64, 1)),
]


@pytest.mark.parametrize("scope", SCOPES)
def test_only_own_hooks_are_removed_also_after_an_exception(
    tokenizer: PreTrainedTokenizerFast, scope: Callable[[PreTrainedModel], AbstractContextManager[Any]]
) -> None:
    model = tiny_model("llama", tokenizer)
    seen: list[int] = []
    find_module(model, DOWN).register_forward_hook(lambda *_: seen.append(1))

    def fail_inside() -> None:
        with scope(model):
            model(IDS)
            raise EditError("stopped")

    with pytest.raises(EditError, match="stopped"):
        fail_inside()
    assert hooks_of(model) == 1
    model(IDS)
    assert len(seen) == 2


@pytest.mark.parametrize("capture", [capture_inputs, capture_outputs])
def test_an_unknown_second_name_leaves_no_hook(llama: PreTrainedModel, capture: Callable[..., Any]) -> None:
    with pytest.raises(NotFound), capture(llama, [DOWN, "model.layers.9"]):
        pass
    assert hooks_of(llama) == 0


def test_freezing_is_undone_flag_by_flag_and_mode_by_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("gpt2", tokenizer).train()
    block = find_module(model, "transformer.h.0").eval()
    weight = model.transformer.wte.weight.requires_grad_(False)

    def fail_inside() -> None:
        with frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise EditError("stopped")

    with pytest.raises(EditError, match="stopped"):
        fail_inside()
    assert model.training
    assert not any(module.training for module in block.modules())
    assert [p for p in model.parameters() if not p.requires_grad] == [weight]
