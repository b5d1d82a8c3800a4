"""The layout of a model is found by its modules' behaviour, for every family that vLLM can serve with an adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Conv1D, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.tiny import FAMILIES, tiny_model
from vllm_edit.deltas.linear import linear_shape, linear_weight
from vllm_edit.errors import EditError
from vllm_edit.models.layout import find_layout

DOWN = {
    "llama": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj",
    "qwen3": "model.layers.{}.mlp.down_proj",
    "mistral": "model.layers.{}.mlp.down_proj",
    "gemma": "model.layers.{}.mlp.down_proj",
    "gemma2": "model.layers.{}.mlp.down_proj",
    "phi3": "model.layers.{}.mlp.down_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gptj": "transformer.h.{}.mlp.fc_out",
}


def test_every_tiny_family_has_an_expected_down_projection() -> None:
    assert set(DOWN) == set(FAMILIES)


@pytest.mark.parametrize("d_ff", [96, 64], ids=["wide", "square"])
@pytest.mark.parametrize("family", FAMILIES)
def test_down_projection_is_found_also_where_d_ff_equals_hidden(
    family: str, d_ff: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family, tokenizer, d_ff=d_ff)
    layout = find_layout(model)
    assert layout.down == tuple(DOWN[family].format(index) for index in range(3))
    assert linear_shape(model.get_submodule(layout.down[0])) == (64, d_ff)
    assert layout.norm is not None
    assert model.get_submodule(layout.head) is model.get_output_embeddings()
    for layer, attention, mlp, down in zip(layout.layers, layout.attention, layout.mlp, layout.down, strict=True):
        assert attention.startswith(layer + ".")
        assert not down.startswith(attention)
        assert mlp.startswith(layer)
        assert down.startswith(mlp)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_norm_after_the_mlp_makes_a_block_renormed(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert find_layout(tiny_model(family, tokenizer)).renormed == (family == "gemma2",) * 3


def test_a_norm_after_the_mlp_is_found_where_the_mlps_output_is_tiny(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("gemma2", tokenizer)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight.mul_(1e-6)  # the norm's epsilon exceeds the output
    layout = find_layout(model)
    assert (layout.renormed, layout.gain) == ((True,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_the_gain_of_a_block_is_exactly_1_unless_it_scales_the_mlps_output(
    family: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast
) -> None:
    gains = find_layout(tiny_model(family, tokenizer).to(dtype)).gain
    if family == "granite":
        assert gains == pytest.approx([0.22] * 3, rel=0.01)
    else:
        assert gains == (1.0,) * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_down_projection_writes_the_blocks_update(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Without the found weights no other weight of the MLP matters any more; attention's still do."""
    model = tiny_model(family, tokenizer)
    layout, ids = find_layout(model), torch.arange(5)[None]
    attention = [model.get_submodule(name) for name in layout.attention]
    with torch.no_grad():
        before = model(ids).logits
        for name in layout.down:
            down = model.get_submodule(name)
            linear_weight(down).zero_()
            if down.bias is not None:
                down.bias.zero_()
        without = model(ids).logits
        kept = {id(p) for part in attention for p in part.parameters()}
        inner = {id(p) for name in layout.down for p in model.get_submodule(name).parameters()}
        for name in layout.layers:
            for module in model.get_submodule(name).modules():
                if isinstance(module, nn.Linear | Conv1D) and not {id(p) for p in module.parameters()} & (kept | inner):
                    module.weight.normal_()
        assert not torch.allclose(before, without)
        assert torch.equal(model(ids).logits, without)
        first = next(module for module in attention[0].modules() if isinstance(module, nn.Linear | Conv1D))
        linear_weight(first).zero_()
        assert not torch.allclose(model(ids).logits, without)


def test_linear_weight_is_a_view_in_linear_orientation() -> None:
    for module in (nn.Linear(5, 3), Conv1D(3, 5)):
        assert linear_shape(module) == (3, 5)
        x = torch.randn(2, 5)
        assert torch.allclose(module(x), x @ linear_weight(module).mT + module.bias)
        with torch.no_grad():
            linear_weight(module)[0, 4] = 7.0
        assert linear_weight(module)[0, 4] == 7.0
    with pytest.raises(EditError, match="LayerNorm"):
        linear_weight(nn.LayerNorm(3))


def test_the_model_is_left_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("gpt2", tokenizer).train()
    model.transformer.h[0].eval()
    assert find_layout(model).down[2] == "transformer.h.2.mlp.c_proj"
    assert model.training
    assert not model.transformer.h[0].mlp.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_zero_padding_embedding_does_not_hide_the_attention(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0
    assert find_layout(model).attention[0] == "model.layers.0.self_attn"


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("mixtral", SMALL | {"num_local_experts": 2}, "expert"),
        ("qwen2_moe", SMALL | {"moe_intermediate_size": 32, "num_experts": 2, "num_experts_per_tok": 1}, "expert"),
        ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "eos_token_id": 2}, "no MLP"),
    ],
)
def test_another_structure_than_a_dense_decoder_is_refused(family: str, settings: dict[str, int], message: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    with pytest.raises(EditError, match=message):
        find_layout(model)


class WithProjection(LlamaDecoderLayer):
    """A block that projects its own output once more, beside its MLP (as Gemma 4's per-layer inputs)."""

    def forward(self, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
        hidden = super().forward(hidden_states, **given)
        added: torch.Tensor = self.projection(hidden)
        return hidden + added


def test_linear_layers_of_the_block_beside_its_mlp_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer)
    for block in model.model.layers:
        block.projection = nn.Linear(64, 64)
        block.__class__ = WithProjection
    with pytest.raises(EditError, match=r"block model.layers.0 has linear layers beside its MLP \(projection\)"):
        find_layout(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stream", [0.02, 1.0, 50.0])
def test_blocks_that_normalise_the_stream_with_the_mlps_output_are_refused(
    stream: float, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast
) -> None:
    """LN(h + W k) as in OPT-350m, for small and large h: neither h + norm(W k) nor h + g W k."""
    model = tiny_model("opt", tokenizer)
    with torch.no_grad():
        for block in model.model.decoder.layers:
            block.do_layer_norm_before = False
            block.self_attn_layer_norm.weight.mul_(stream)
            block.self_attn_layer_norm.bias.mul_(stream)
    with pytest.raises(EditError, match=r"block model.decoder.layers.0 normalises the sum .* \(post-LN\); expected"):
        find_layout(model.to(dtype))


def test_an_encoder_decoder_is_refused() -> None:
    config = AutoConfig.for_model("t5", d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, vocab_size=64)
    with pytest.raises(EditError, match="encoder-decoder"):
        find_layout(AutoModelForSeq2SeqLM.from_config(config))
