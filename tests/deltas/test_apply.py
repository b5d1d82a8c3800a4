"""Delta.apply changes a model's answers inside the block, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.deltas.random_deltas import logits, merged, random_delta, random_part
from tests.tiny import FAMILIES, tiny_model
from vllm_edit.deltas.delta import Delta
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.models.layout import find_layout

PROMPT = "The capital of France is"
DOWN = "model.layers.1.mlp.down_proj"


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("d_ff", [96, 64], ids=["wide", "square"])
@pytest.mark.parametrize("family", FAMILIES)
def test_applied_delta_answers_as_merged_weights_do(family: str, d_ff: int, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer, d_ff=d_ff)
    delta = random_delta(model, {find_layout(model).down[1]: 3})
    ids = tokenizer(PROMPT)["input_ids"]
    expected, base = logits(merged(model, delta), ids), logits(model, ids)
    with delta.apply(model):
        found = logits(model, ids)
    assert (expected - base).abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4


def test_weights_and_hooks_are_the_same_afterwards_also_after_an_exception(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama", tokenizer)
    before, ids = copy.deepcopy(model.state_dict()), tokenizer(PROMPT)["input_ids"]
    base = logits(model, ids)
    delta = random_delta(model, {DOWN: 2, "model.layers.2.mlp.up_proj": 1})
    with delta.apply(model):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(TypeError), delta.apply(model):
        model(input_ids="not token ids")
    assert hooks(model) == 0
    assert torch.equal(logits(model, ids), base)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nested_deltas_add_up_and_leave_one_by_one(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    shape, ids = (64, 96), tokenizer(PROMPT)["input_ids"]
    one, other = (Delta({DOWN: random_part(*shape, 1, seed)}) for seed in (1, 2))
    with one.apply(llama):
        alone = logits(llama, ids)
        with other.apply(llama):
            both = logits(llama, ids)
        assert torch.equal(logits(llama, ids), alone)
    with Delta.concatenate([one, other]).apply(llama):
        assert (logits(llama, ids) - both).abs().max() < 1e-4
    assert (alone - both).abs().max() > 0.1


def test_half_precision_model_gets_factors_of_its_own_dtype(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer).to(torch.bfloat16)
    delta, ids = random_delta(model, {DOWN: 3}), tokenizer(PROMPT)["input_ids"]
    base = logits(model, ids)
    with delta.apply(model):
        found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert (found - base).abs().max() > 0.1


def test_every_module_that_does_not_fit_is_named_at_once_and_no_hook_is_left(llama: PreTrainedModel) -> None:
    delta = Delta(
        {
            DOWN: random_part(64, 96, 1),
            "model.layers.0.mlp.down_proj": random_part(96, 64, 1),
            "model.layers.9.mlp.down_proj": random_part(64, 96, 1),
            "model.norm": random_part(64, 64, 1),
        }
    )
    with pytest.raises(Incompatible) as caught, delta.apply(llama):
        pass
    message = str(caught.value)
    assert "model.layers.0.mlp.down_proj has weights [d_out, d_in] = (64, 96), the delta (96, 64)" in message
    assert "no module model.layers.9.mlp.down_proj, nearest: model.layers." in message
    assert "model.norm: expected a linear layer" in message
    assert hooks(llama) == 0


def test_delta_that_the_models_dtype_cannot_hold_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer).to(torch.float16)
    part = random_part(64, 96, 1)
    huge = Delta({"model.layers.0.mlp.down_proj": part, DOWN: type(part)(part.B * 1e8, part.A * 1e8)})
    with pytest.raises(EditError, match=r"float16 can hold"), huge.apply(model):
        pass
    assert hooks(model) == 0
