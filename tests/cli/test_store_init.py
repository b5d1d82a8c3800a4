"""`store init` refuses a base of which no patch could be compiled or served: one line, and no store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.serving import places
from tests.tiny import save_tiny
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
from vllm_edit.errors import EditError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("whole"))


def _quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(quantised))


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace("TokenizersBackend", "LlamaTokenizer"))


@pytest.mark.parametrize("damage", [_quantised, _pointer, _other_tokenizer])
def test_a_base_that_cannot_be_edited(
    program: Program, tmp_path: Path, whole: Path, damage: Callable[[Path], None]
) -> None:
    model = shutil.copytree(whole, tmp_path / "model")
    damage(model)
    ran = program("store", "init", "--model", model, "--layer", 1, "--store", tmp_path / "store")
    assert ran.code == 1
    assert ran.out == ""
    assert str(model) in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_texts_that_are_too_short_are_refused_before_the_model_is_asked_anything(
    program: Program, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_edit.release.swept_store.ask_pool", lambda *_: pytest.fail("the model was asked"))
    (tmp_path / "texts.txt").write_text("One short line.\n" * 3)
    for layer in ((), ("--layer", 1)):
        ran = program(
            "store", "init", "--model", whole, *layer, "--texts", tmp_path / "texts.txt", "--store", tmp_path / "store"
        )
        assert (ran.code, "give more text" in ran.err) == (1, True), ran.err
        assert not (tmp_path / "store").exists()


def test_an_empty_name_of_a_store_is_refused(program: Program, whole: Path) -> None:
    for words in (("store", "init", "--model", whole, "--layer", 1), ("list",)):
        ran = program(*words, "--store", "")
        assert (ran.code, "the store's name is empty" in ran.err) == (1, True), ran.err


@pytest.mark.parametrize("method", [("--layer", 1), ("--method", "mend", "--network", NETWORK_FOLDERS["mend"])])
def test_a_base_that_vllm_has_no_lora_for(
    program: Program, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, method: tuple[object, ...]
) -> None:
    def refuse(folder: Path) -> None:
        raise EditError(f"vLLM has no LoRA for {folder}")

    monkeypatch.setattr("vllm_edit.engine.lora_support.check_lora_support", refuse)
    ran = program("store", "init", "--model", whole, *method, "--store", tmp_path / "store")
    assert (ran.code, ran.err) == (1, f"vllm-edit: vLLM has no LoRA for {whole}\n")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("thinking", [None, "off", "after"])
def test_status_says_how_a_template_that_thinks_is_asked(
    program: Program, tmp_path: Path, whole: Path, thinking: str | None
) -> None:
    store = places.make_store(tmp_path / "store", places.make_site(whole, thinking=thinking))
    printed = program("store", "status", "--store", store.url, "--json").json
    assert printed.get("thinking") == thinking
    assert ("thinking" in printed) is (thinking is not None)


@pytest.mark.parametrize(
    ("layer", "method", "message"),
    [
        ("first", "rome", "expected auto or a layer's number, got 'first'"),
        ("-2", "memit", "expected auto, a layer's number or a range of layers, got '-2'"),
        ("1-2", "rome", "only a store for memit has several layers: add --method memit"),
        ("2-1", "memit", "expected the first layer before the last, got '2-1'"),
    ],
)
def test_layers_that_no_site_can_have_are_a_mistake_in_the_call(
    program: Program, tmp_path: Path, layer: str, method: str, message: str
) -> None:
    ran = program("store", "init", f"--layer={layer}", "--method", method, "--store", tmp_path / "store")
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (None, 1)),
        (("--layer", "7"), (7, 1)),
        (("--method", "memit"), (None, 3)),
        (("--method", "memit", "--layer", "auto"), (None, 3)),
        (("--method", "memit", "--layer", "5-7"), (7, 3)),
        (("--method", "memit", "--layer", "7"), (7, 1)),
    ],
)
def test_a_range_of_layers_is_the_last_and_their_number(
    program: Program,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: tuple[int | None, int],
) -> None:
    asked = list[tuple[int | None, int]]()

    def create(url: object, base: object, *, layer: int | None, depth: int, **others: object) -> None:
        asked.append((layer, depth))
        raise EditError("enough")

    monkeypatch.setattr("vllm_edit.release.swept_store.create_store", create)
    monkeypatch.setattr("vllm_edit.engine.lora_support.check_lora_support", lambda folder: None)
    program("store", "init", "--model", whole, *arguments, "--store", tmp_path / "store")
    assert asked == [expected]
