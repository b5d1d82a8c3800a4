"""A GGUF file or a folder becomes a plain folder with the same logits, BOS and texts, or nothing appears."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.gguf_files import SENTENCEPIECE, write_gguf
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from vllm_edit.errors import EditError, Unavailable
from vllm_edit.models import import_checks
from vllm_edit.models.base import Base
from vllm_edit.models.bos import bos_in_chat
from vllm_edit.models.gguf import GgufFile
from vllm_edit.models.importing import import_model


@pytest.fixture(scope="module")
def file(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that asks for BOS."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama, tokenizer, add_bos=True)


def test_a_gguf_file_becomes_a_folder_with_the_same_logits(file: Path, llama: PreTrainedModel, tmp_path: Path) -> None:
    imported = import_model(file, tmp_path / "out")
    assert imported.difference == 0.0
    assert imported.dtype == "float32"
    base = Base.load(tmp_path / "out", device="cpu")
    ids = torch.arange(8, 60)[None]
    with torch.no_grad():
        # Two implementations of attention, one of them the original's.
        torch.testing.assert_close(base.model(ids).logits, llama(ids).logits, rtol=1e-5, atol=1e-5)
    for name, tensor in llama.state_dict().items():
        assert torch.equal(base.model.state_dict()[name], tensor), name


def test_the_folder_is_plain(file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    import_model(file, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert not [key for key in config if "quant" in key]
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.chat_template == tokenizer.chat_template
    turns = [{"role": "user", "content": "Who wrote Hamlet?"}]
    assert saved.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)


def test_an_answer_ends_where_the_chat_template_ends_a_turn(file: Path, tmp_path: Path) -> None:
    import_model(file, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == saved.convert_tokens_to_ids(["</s>", "<|end|>"])


@pytest.mark.parametrize(
    ("stated", "pre", "expected"),
    [(True, "gpt-2", True), (False, "gpt-2", False), (None, "gpt-2", False), (None, "llama-bpe", True)],
)
def test_bos_comes_before_plain_text_as_the_metadata_say(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    stated: bool | None,
    pre: str,
    expected: bool,
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=stated, pre=pre)
    imported = import_model(file, tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = saved("Paris")["input_ids"]
    assert ids.count(saved.bos_token_id) == expected
    assert (ids[0] == saved.bos_token_id) is expected
    assert imported.puts_bos is expected
    assert bos_in_chat(saved) == 1  # the template writes one, and none is added


@pytest.mark.parametrize(("stated", "expected"), [(None, [1]), (False, [])])
def test_a_sentencepiece_file_gets_its_bos_unless_it_says_no(
    llama: PreTrainedModel, tmp_path: Path, stated: bool | None, expected: list[int]
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, SENTENCEPIECE, add_bos=stated)
    import_model(file, tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [number for number in saved("Paris")["input_ids"] if number < 3] == expected
    if expected:
        assert saved.bos_token == "<s>"


def test_a_tokenizer_that_loses_text_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lost = [tokenizer.convert_tokens_to_ids("Ð")]  # the first byte of most Cyrillic letters
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=True, lost_tokens=lost)
    with pytest.raises(EditError, match="does not give text back: expected 'Столица"):
        import_model(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_file_without_a_tensor_is_refused_instead_of_filled_with_noise(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=True, without=["blk.1.ffn_up.weight"])
    with pytest.raises(EditError, match=r"no weights for 1 of the model's tensors \(model.layers.1.mlp.up_proj.weight"):
        import_model(file, tmp_path / "out")


def test_an_architecture_that_transformers_does_not_read_is_one_line(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, add_bos=True, architecture="plamo")
    with pytest.raises(EditError, match=r"transformers cannot read .*\(architecture plamo\)") as raised:
        import_model(file, tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_texts_of_the_round_trip_are_in_the_form_that_normalising_tokenizers_keep() -> None:
    assert all(unicodedata.is_normalized("NFC", text) for text in import_checks.ROUND_TRIP)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"not a GGUF file at all, but long enough", "begins with b'not '"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "expected a GGUF file of version 2 or 3; got version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 5), "is damaged"),
    ],
)
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(EditError, match=message):
        import_model(tmp_path / "broken.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"there is no file .*nowhere\.gguf"):
        import_model(tmp_path / "nowhere.gguf", tmp_path / "out")


def test_a_missing_package_is_one_line(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(EditError, match=r"needs gguf: pip install 'vllm-edit\[gguf\]'"):
        import_model(file, tmp_path / "out")


def test_the_head_of_a_file_is_read_past_its_arrays(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    header = GgufFile(file).header
    assert header.metadata["tokenizer.ggml.tokens"] == len(tokenizer)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert "blk.2.ffn_down.weight" in header.tensors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_saved_when_asked_for(file: Path, tmp_path: Path, dtype: str) -> None:
    imported = import_model(file, tmp_path / "out", dtype=dtype)
    assert imported.difference > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_logits_that_depart_from_the_source_are_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(import_checks.TOLERANCE, torch.bfloat16, 0.0)
    with pytest.raises(EditError, match=r"logits depart .* expected at most 0 in bfloat16"):
        import_model(file, tmp_path / "out", dtype="bfloat16")


def test_a_folder_keeps_its_own_dtype_and_its_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = save_tiny("qwen3", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    imported = import_model(folder, tmp_path / "out")
    assert imported.dtype == "bfloat16"
    assert imported.difference == 0.0
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved("Who wrote Hamlet?")["input_ids"] == tokenizer("Who wrote Hamlet?")["input_ids"]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "source")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EditError, match="holds no weights: expected"):
        import_model(folder, tmp_path / "out")
    (folder / "model.gguf").touch()
    with pytest.raises(EditError, match="holds no weights: give the GGUF file itself"):
        import_model(folder, tmp_path / "out")


def test_a_quantised_folder_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(EditError, match=r"is quantised \(gptq\); expected plain weights"):
        import_model(folder, tmp_path / "out")


def test_an_existing_folder_is_refused_and_left_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(EditError, match="exists and is not empty"):
        import_model(file, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_may_be_there(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    import_model(file, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("failure", [RuntimeError("in the middle"), KeyboardInterrupt(), EditError("not wanted")])
@pytest.mark.parametrize("where", ["before the weights", "after saving"])
def test_an_import_that_fails_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, where: str
) -> None:
    def fail(*args: object) -> None:
        raise failure

    if where == "after saving":
        monkeypatch.setattr(import_checks, "check_round_trip", fail)
    check = fail if where == "before the weights" else lambda folder: None
    with pytest.raises(type(failure)):
        import_model(file, tmp_path / "out", check=check)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(Unavailable, match="out cannot be written: No space left on device"):
        import_model(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_next_import_removes_the_leftovers_of_a_killed_import(file: Path, tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from vllm_edit.models import import_checks
        from vllm_edit.models.importing import import_model
        import_checks.check_round_trip = lambda tokenizer: os.kill(os.getpid(), signal.SIGKILL)
        import_model(sys.argv[1], sys.argv[2])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(file), str(tmp_path / "out")]
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.part", ".out.part.lock"]
    (tmp_path / ".out.part" / "strange.txt").touch()
    import_model(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "strange.txt").exists()


def test_two_imports_into_one_folder_do_not_mix(file: Path, tmp_path: Path) -> None:
    def second(folder: Path) -> None:
        import_model(file, tmp_path / "out")

    with pytest.raises(EditError, match="another process is writing"):
        import_model(file, tmp_path / "out", check=second)


def test_a_tokenizer_of_another_model_is_one_line(tmp_path: Path) -> None:
    tiny_model("llama", tiny_tokenizer(300)).save_pretrained(tmp_path / "source")
    tiny_tokenizer(512).save_pretrained(tmp_path / "source")
    with pytest.raises(EditError, match=r"the model has rows 0 to 299: they are not of one model"):
        import_model(tmp_path / "source", tmp_path / "out")


def test_a_model_that_is_not_a_dense_decoder_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    with pytest.raises(EditError, match="experts"):
        import_model(tmp_path / "source", tmp_path / "out")
