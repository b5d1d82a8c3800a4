"""A model that cannot be a base is one line that names it, before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlavaConfig,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.importing import import_model

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` to change."""
    return shutil.copytree(whole, tmp_path / "model")


def set_json(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(EditError, match=message) as raised:
        Base.load(folder, device="cpu")
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "fp8"},
        {"quant_method": "nobodys"},
    ],
    ids=lambda said: said["quant_method"],
)
def test_a_quantised_model_is_refused_by_the_kind_of_quantisation(
    folder: Path, quantisation: dict[str, object]
) -> None:
    set_json(folder / "config.json", quantization_config=quantisation)
    refused(folder, rf"is quantised \({quantisation['quant_method']}\); .* not supported")


def test_quantisation_declared_elsewhere_is_refused_too(folder: Path) -> None:
    set_json(folder / "config.json", compression_config={"quant_method": "compressed-tensors"})
    refused(folder, r"is quantised \(compressed-tensors\)")
    shutil.copy(folder / "generation_config.json", folder / "hf_quant_config.json")
    set_json(folder / "config.json", compression_config=None)
    refused(folder, r"is quantised \(hf_quant_config\.json\)")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_a_tensor(path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(path.parent)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(path.parent, state_dict=kept)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a pointer": ("model.safetensors", lambda path: path.write_text("version https://git-lfs…"), "Git LFS pointer"),
    "cut weights": ("model.safetensors", _cut, "truncated or damaged"),
    "a lost tensor": ("model.safetensors", _without_a_tensor, "no weights for 1 of the model's tensors"),
    "a cut tokenizer": ("tokenizer.json", _cut, "the tokenizer of .* cannot be loaded"),
    "a tokenizer that is a list": ("tokenizer.json", lambda path: path.write_text("[]"), "the tokenizer of .* cannot"),
    "another shape": (
        "config.json",
        lambda path: set_json(path, vocab_size=10),
        r"another shape .* is \(512, 64\), expected",
    ),
    "a negative number": ("config.json", lambda path: set_json(path, num_hidden_layers=-1), "cannot be|no "),
    "a number as text": ("config.json", lambda path: set_json(path, hidden_size="many"), "cannot be loaded"),
    "no model's type": ("config.json", lambda path: set_json(path, model_type="nobodys"), "cannot be loaded"),
    "an adapter": ("adapter_config.json", lambda path: path.write_text("{}"), "is an adapter"),
}


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_one_line(folder: Path, file: str, damage: Callable[[Path], object], message: str) -> None:
    damage(folder / file)
    refused(folder, message)


@pytest.mark.parametrize(
    "config",
    [
        Gemma3Config(text_config=_TEXT, vision_config=_VISION, mm_tokens_per_image=4),
        Mistral3Config(
            text_config={**_TEXT, "model_type": "mistral"}, vision_config={**_VISION, "model_type": "pixtral"}
        ),
        LlavaConfig(
            text_config={**_TEXT, "model_type": "llama"}, vision_config=_VISION | {"model_type": "clip_vision_model"}
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_wraps_a_language_model_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig
) -> None:
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(config)
    shape.to_empty(device="cpu").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(tmp_path, f"is a {config.model_type} model, which combines a language model")


def test_weights_that_vllm_alone_would_load_are_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    refused(folder, "only one of vLLM and transformers loads")


def test_a_limit_of_attention_scores_is_applied_as_vllm_applies_it(tmp_path: Path) -> None:
    tokenizer, ids = tiny_tokenizer(), torch.arange(8, 40)[None]
    model = tiny_model("gemma2", tokenizer)
    for block in model.model.layers:
        block.self_attn.attn_logit_softcapping = 0.5
    model.config.attn_logit_softcapping = 0.5
    model.save_pretrained(tmp_path / "gemma2")
    tokenizer.save_pretrained(tmp_path / "gemma2")
    with torch.no_grad():
        limited = model(ids).logits
        loaded = Base.load(tmp_path / "gemma2", device="cpu").model(input_ids=ids).logits
        unlimited = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma2", attn_implementation="sdpa")(ids).logits
    assert (unlimited - limited).abs().max() > 0.01, "transformers' default ignores the limit"
    torch.testing.assert_close(loaded, limited, rtol=1e-5, atol=1e-5)
    assert import_model(tmp_path / "gemma2", tmp_path / "imported").difference == 0.0


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"model_type": "nobodys", "auto_map": {"AutoConfig": "code.Config"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}),
    ],
    ids=["model", "tokenizer"],
)
def test_no_question_asks_whether_to_run_code_of_a_folder(
    folder: Path, file: str, changed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "n")
    (folder / "code.py").write_text("raise SystemExit('ran')")
    set_json(folder / file, **changed)
    refused(folder, "custom code")
    assert not asked
