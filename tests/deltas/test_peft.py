"""PEFT reads our files, we read PEFT's files, and an adapter that B·A cannot express is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tests.deltas.random_deltas import logits, random_delta, random_part
from tests.tiny import tiny_model
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.digest import digest_tensors
from vllm_edit.errors import EditError

DOWN = "model.layers.1.mlp.down_proj"
UP = "model.layers.2.mlp.up_proj"
PROMPT = "The capital of France is"


def two_modules() -> Delta:
    return Delta({UP: random_part(96, 64, 2, seed=1), DOWN: random_part(64, 96, 5, seed=2)})


def test_files_are_the_same_bytes_for_the_same_delta_in_any_order(tmp_path: Path) -> None:
    delta = two_modules()
    first = delta.save_peft(tmp_path / "first", base_name="tiny")
    second = Delta(dict(reversed(list(delta.parts.items())))).save_peft(tmp_path / "second", base_name="tiny")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def test_config_holds_the_keys_that_are_read_and_a_scale_of_one_for_every_rank(tmp_path: Path) -> None:
    folder = two_modules().save_peft(tmp_path, base_name="tiny")
    pattern = {r"^model\.layers\.2\.mlp\.up_proj": 2}
    assert json.loads((folder / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "r": 5,
        "lora_alpha": 5,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": [DOWN, UP],
    }


def test_digest_is_that_of_the_saved_tensors_and_survives_loading(tmp_path: Path) -> None:
    delta = two_modules()
    folder = delta.save_peft(tmp_path, base_name="tiny")
    assert digest_tensors(load_file(folder / "adapter_model.safetensors")) == delta.digest
    assert Delta.load_peft(folder).digest == delta.digest
    stronger = Delta({**delta.parts, UP: LowRank(delta.parts[UP].B * 1.001, delta.parts[UP].A)})
    assert stronger.digest != delta.digest


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_loaded_delta_is_the_saved_one_up_to_the_cast(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    delta = two_modules()
    loaded = Delta.load_peft(delta.save_peft(tmp_path, base_name="tiny", dtype=dtype))
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {dtype}
    assert loaded.parts.keys() == delta.parts.keys()
    for name, part in delta.parts.items():
        assert (loaded.parts[name].dense() - part.dense()).norm() < tolerance * part.norm()


def test_loaded_delta_does_not_change_with_its_file(tmp_path: Path) -> None:
    delta = two_modules()
    loaded = Delta.load_peft(delta.save_peft(tmp_path, base_name="tiny"))
    Delta({name: LowRank(-part.B, part.A) for name, part in delta.parts.items()}).save_peft(tmp_path, base_name="tiny")
    assert loaded.digest == delta.digest


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rsLoRA"])
def test_adapter_of_peft_with_scales_and_rank_patterns_answers_as_in_peft(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rslora: bool
) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["down_proj", "q_proj"],
        rank_pattern={"layers.1.mlp.down_proj": 2},
        alpha_pattern={"q_proj": 5},
        use_rslora=rslora,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model, ids = tiny_model("llama", tokenizer), tokenizer(PROMPT)["input_ids"]
    base = logits(model, ids)
    peft_model = get_peft_model(tiny_model("llama", tokenizer), config).eval()
    peft_model.save_pretrained(tmp_path)
    delta = Delta.load_peft(tmp_path)
    assert {part.rank for part in delta.parts.values()} == {2, 4}
    with delta.apply(model):
        found = logits(model, ids)
    assert (logits(peft_model, ids) - base).abs().max() > 0.1
    assert (logits(peft_model, ids) - found).abs().max() < 1e-4


def test_peft_reads_conv1d_adapters_of_a_square_weight_in_the_right_orientation(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, ids = tiny_model("gpt2", tokenizer, d_ff=64), tokenizer(PROMPT)["input_ids"]
    delta = random_delta(model, {"transformer.h.1.mlp.c_proj": 2})
    delta.save_peft(tmp_path, base_name="tiny", fan_in_fan_out=True)
    with delta.apply(model):
        applied = logits(model, ids)
    base = logits(model, ids)
    found = logits(PeftModel.from_pretrained(model, str(tmp_path)), ids)
    assert (applied - base).abs().max() > 0.1
    assert (found - applied).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
    ],
    ids=["dora", "bias", "modules_to_save"],
)
def test_adapter_of_peft_that_is_not_plain_lora_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, feature: dict[str, Any], complaint: str
) -> None:
    config = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", **feature)
    get_peft_model(tiny_model("llama", tokenizer), config).save_pretrained(tmp_path)
    with pytest.raises(EditError, match=complaint):
        Delta.load_peft(tmp_path)


def test_every_problem_of_an_adapter_is_reported_at_once(tmp_path: Path) -> None:
    folder = two_modules().save_peft(tmp_path, base_name="tiny")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_dora": True, "init_lora_weights": "pissa_niter_4", "peft_type": "LOHA"}))
    prefix, tensors = "base_model.model.", load_file(folder / "adapter_model.safetensors")
    tensors[f"{prefix}{UP}.lora_A.weight"] = torch.ones(3, 64)  # the config says rank 2
    del tensors[f"{prefix}{DOWN}.lora_B.weight"]
    tensors[f"{prefix}{DOWN}.lora_magnitude_vector"] = torch.ones(64)
    tensors |= {
        f"{prefix}nan.lora_A.weight": torch.full((5, 2), torch.nan),
        f"{prefix}nan.lora_B.weight": torch.ones(2, 5),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(EditError) as caught:
        Delta.load_peft(folder)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder}: ") for line in lines)
    complaints = (
        "use_dora is True, expected False",
        "init_lora_weights is 'pissa_niter_4'",
        "peft_type is 'LOHA', expected 'LORA'",
        f"{UP}: expected lora_A [2, d_in] and lora_B [d_out, 2], got (3, 64) and (96, 2)",
        f"{DOWN}: lora_B.weight is missing",
        "lora_magnitude_vector: expected base_model.model.<module>",
        "nan: a factor holds infinite or NaN values",
    )
    assert len(lines) == len(complaints)
    assert all(any(complaint in line for line in lines) for complaint in complaints)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"adapter_config.json": None}, "is not an adapter folder.*No such file"),
        ({"adapter_config.json": b"{"}, "is not an adapter folder.*JSONDecodeError"),
        ({"adapter_config.json": b"[]"}, "holds a list, expected a JSON object"),
        ({"adapter_config.json": b'{"r": 5}'}, "lora_alpha is None, expected a positive number"),
        ({"adapter_model.safetensors": b"short"}, "is not an adapter folder.*SafetensorError"),
    ],
    ids=["no config", "not json", "not an object", "no alpha", "not safetensors"],
)
def test_damaged_folder_is_refused(tmp_path: Path, damage: dict[str, bytes | None], complaint: str) -> None:
    folder = two_modules().save_peft(tmp_path, base_name="tiny")
    for name, content in damage.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(EditError, match=complaint):
        Delta.load_peft(folder)


def test_delta_that_no_adapter_can_hold_is_refused_by_module_before_anything_is_written(tmp_path: Path) -> None:
    huge, empty = LowRank(torch.full((2, 1), 1e9), torch.full((1, 2), 1e9)), LowRank(torch.ones(2, 0), torch.ones(0, 2))
    folder = tmp_path / "adapter"
    with pytest.raises(EditError, match=r"b: rank 0.*a: expected factors that torch\.float16 can hold"):
        Delta({"a": huge, "b": empty}).save_peft(folder, base_name="tiny", dtype=torch.float16)
    with pytest.raises(EditError, match="no modules"):
        Delta({}).save_peft(folder, base_name="tiny")
    assert not folder.exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_cannot_hold_factors_is_refused_before_anything_is_written(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = tmp_path / "adapter"
    expected = rf"^expected a dtype for factors among torch\.float64, .*; got {dtype}$"
    with pytest.raises(EditError, match=expected):
        two_modules().save_peft(folder, dtype=dtype)
    with pytest.raises(EditError, match=expected):
        random_part(4, 3, 2, seed=1).cast(dtype)
    assert not folder.exists()


def test_peft_loads_an_adapter_that_was_saved_without_the_base_models_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, ids = tiny_model("llama", tokenizer), tokenizer(PROMPT)["input_ids"]
    delta = random_delta(model, {DOWN: 2})
    with delta.apply(model):
        applied = logits(model, ids)
    found = logits(PeftModel.from_pretrained(model, str(delta.save_peft(tmp_path))), ids)
    assert (found - applied).abs().max() < 1e-4
