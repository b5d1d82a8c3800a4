"""A model that vLLM cannot serve with LoRA is refused at import, not at serving."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import StableLmConfig

from vllm_edit.engine.lora_support import check_lora_support, lora_class
from vllm_edit.engine.model_sources import ModelSources
from vllm_edit.errors import EditError


def _folder(tmp_path: Path, architecture: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        ("Qwen3ForCausalLM", "Qwen3ForCausalLM"),
        ("MistralForCausalLM", "MistralForCausalLM"),  # declared through another class
        ("Gemma3ForCausalLM", "Gemma3ForCausalLM"),
        ("GPTNeoXForCausalLM", "TransformersForCausalLM"),  # vLLM's backend for transformers' own classes
        ("GPT2LMHeadModel", "GPT2WithLoRA"),  # ours
    ],
)
def test_a_class_with_lora_is_found_in_vllms_sources_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, name: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail("vLLM was asked"))
    found = lora_class(_folder(tmp_path, architecture))
    assert found is not None
    assert (found.name, found.supports_lora) == (name, True)
    check_lora_support(tmp_path)


def test_the_sources_do_not_declare_lora_for_a_class_without_it() -> None:
    sources = ModelSources.installed()
    assert sources is not None
    assert sources.class_of("StableLmForCausalLM") == "StablelmForCausalLM"
    assert not sources.supports_lora("StableLmForCausalLM")
    assert sources.class_of("NobodysForCausalLM") is None


@pytest.mark.slow
def test_stablelm_is_refused_after_asking_vllm_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = StableLmConfig(**shape, num_key_value_heads=2, architectures=["StableLmForCausalLM"])
    config.save_pretrained(tmp_path)
    monkeypatch.setenv("VLLM_EDIT_STORE", str(tmp_path / "no store"))  # must not reach our plugin in that process
    with pytest.raises(EditError, match=r"StableLmForCausalLM \(StablelmForCausalLM\) does not support LoRA"):
        check_lora_support(tmp_path)


def test_asking_keeps_this_process_free_of_vllm(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "LlamaForCausalLM")
    program = (
        "import sys, pathlib\n"
        "from vllm_edit.engine.lora_support import check_lora_support\n"
        "check_lora_support(pathlib.Path(sys.argv[1]))\n"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_vllm_one_line_says_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ModelSources, "installed", classmethod(lambda cls: None))
    with caplog.at_level(logging.WARNING):
        check_lora_support(_folder(tmp_path, "StableLmForCausalLM"))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["vLLM is not installed"]


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"no readable config\.json"):
        check_lora_support(tmp_path)
