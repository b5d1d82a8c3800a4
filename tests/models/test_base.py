"""A base model that cannot be loaded is one clear error, and every change to a base is noticed."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import save_tiny, tiny_model
from vllm_edit.artefacts.site import Fingerprint
from vllm_edit.errors import EditError
from vllm_edit.models import base as base_module
from vllm_edit.models.base import Base, bit_sums, bits, unchanged
from vllm_edit.text.prompts import prompt_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast) -> Base:
    return Base.of(tiny_model("gpt2", tokenizer), tokenizer)


def test_a_folder_loads_as_a_base(folder: Path) -> None:
    base = Base.load(folder, device="cpu")
    assert base.fingerprint == Fingerprint.of_folder(folder)
    assert base.layout.down[1] == "model.layers.1.mlp.down_proj"
    assert not base.model.training
    assert base.model.dtype == torch.float32
    assert base.state_digest() == Base.load(str(folder), device="cpu").state_digest()


def test_half_precision_can_be_asked_for(folder: Path) -> None:
    assert Base.load(folder, device="cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="not a model folder"):
        Base.load(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "not a model!"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(EditError, match="expected 'atlas', a folder"):
        Base.load(name)


def test_a_hub_model_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EditError, match="hub cannot be reached; expected 'atlas'"):
        Base.load("someone/some-model-that-is-not-cached")


def test_a_broken_config_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(EditError, match="cannot be loaded"):
        Base.load(tmp_path)


def test_a_byte_level_tokenizer_under_llamas_name_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    settings = other / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("TokenizersBackend", "LlamaTokenizer"))
    with pytest.raises(
        EditError, match=r"other cannot be edited: the tokenizer does not give text back: expected .The "
    ):
        Base.load(other)


def test_a_tokenizer_that_ends_plain_text_itself_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    ending = copy.deepcopy(tokenizer)
    named = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B </s>", named)
    with pytest.raises(EditError, match="puts '</s>' after plain text"):
        Base.of(tiny_model("llama", tokenizer), ending)


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", tokenizer)
    model.resize_token_embeddings(300)
    with pytest.raises(EditError, match=r"the tokenizer gives id \d+ for .*, the model has rows 0 to 299"):
        Base.of(model, tokenizer)


def test_a_template_whose_tokens_the_model_does_not_know_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    longer = copy.deepcopy(tokenizer)
    longer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    longer.chat_template = "<|new|>{{ messages[0].content }}"
    with pytest.raises(EditError, match=r"for '<\|new\|>', the model has rows 0 to 511"):
        Base.of(tiny_model("llama", tokenizer), longer)


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ raise_exception('no such\nturn') }}", "{{ messages[3].content }}"]
)
def test_a_template_that_renders_no_turn_is_one_line(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(EditError, match="the chat template cannot render a user's turn") as raised:
        Base.of(tiny_model("llama", tokenizer), broken)
    assert "\n" not in str(raised.value)


def test_a_hybrid_model_of_linear_and_full_attention_is_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
    heads = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
    config = AutoConfig.for_model(
        "qwen3_5_text",
        vocab_size=512,
        num_key_value_heads=2,
        head_dim=32,
        linear_value_head_dim=16,
        **shape,
        **heads,
    )
    with pytest.raises(EditError, match=r"3 of its 4 layers keep a state of linear attention \(0, 1, 2"):
        Base.of(AutoModelForCausalLM.from_config(config), tokenizer)


def test_a_template_that_accepts_only_lists_of_parts_is_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    listing = copy.deepcopy(tokenizer)
    parts = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    listing.chat_template = f"<|user|>\n{parts}<|end|>\n<|assistant|>\n"
    with pytest.raises(EditError, match=r"leaves out the text of a user's turn .* or remove it") as raised:
        Base.of(tiny_model("llama", tokenizer), listing)
    assert "\n" not in str(raised.value)


def test_named_templates_without_a_default_are_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    named = copy.deepcopy(tokenizer)
    named.chat_template = {"rag": tokenizer.chat_template, "tool_use": tokenizer.chat_template}
    with pytest.raises(EditError, match=r"cannot render a user's turn: .*no default") as raised:
        Base.of(tiny_model("llama", tokenizer), named)
    assert "\n" not in str(raised.value)
    named.chat_template = {"default": tokenizer.chat_template, "rag": "{{ messages[0].content }}"}
    assert prompt_ids(named, "Who?", chat=True) == prompt_ids(tokenizer, "Who?", chat=True)
    Base.of(tiny_model("llama", tokenizer), named)


def test_the_same_model_in_memory_has_the_same_fingerprint(tokenizer: PreTrainedTokenizerFast) -> None:
    first = Base.of(tiny_model("llama", tokenizer), tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=3)
    assert Base.of(tiny_model("llama", tokenizer), tokenizer).fingerprint == first.fingerprint
    assert Base.of(tiny_model("llama", tokenizer, seed=1), tokenizer).fingerprint != first.fingerprint


def test_reading_the_model_is_no_change(base: Base) -> None:
    with unchanged(base):
        base.model(torch.arange(4)[None])


def _write_weight(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[3, 3] += 1e-6


def _write_through_data(model: PreTrainedModel) -> None:
    model.transformer.h[1].mlp.c_proj.weight.data[3, 3] += 1e-6


def _replace_weight(model: PreTrainedModel) -> None:
    module = model.transformer.h[1].mlp.c_proj
    module.weight = torch.nn.Parameter(module.weight + 1e-6)


def _add_hook(model: PreTrainedModel) -> None:
    model.transformer.h[1].mlp.c_proj.register_forward_hook(lambda *_: None)


def _freeze(model: PreTrainedModel) -> None:
    model.transformer.h[1].mlp.c_proj.weight.requires_grad_(False)


def _train(model: PreTrainedModel) -> None:
    model.transformer.h[1].mlp.c_proj.train()


IN_PLACE = [_write_weight, _replace_weight, _add_hook, _freeze, _train]


@pytest.mark.parametrize("change", [*IN_PLACE, _write_through_data])
def test_every_change_is_named(base: Base, change: Callable[[PreTrainedModel], None]) -> None:
    with pytest.raises(RuntimeError, match=r"transformer\.h\.1\.mlp\.c_proj"), unchanged(base):
        change(base.model)


@pytest.mark.parametrize("change", IN_PLACE)
def test_the_cheap_check_sees_every_change_but_writes_through_data(
    base: Base, change: Callable[[PreTrainedModel], None]
) -> None:
    with pytest.raises(RuntimeError, match=r"transformer\.h\.1\.mlp\.c_proj"), unchanged(base, exact=False):
        change(base.model)


def test_the_bytes_are_hashed_once_more_in_each_use_but_anew_after_a_change_in_between(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(base_module, "bits", lambda tensor: read.append(1) or bits(tensor))
    every = sum(1 for _ in (*base.model.parameters(), *base.model.buffers()))
    counts = []
    for change in (None, None, _add_hook, None):
        if change:
            change(base.model)
        read.clear()
        with unchanged(base):
            pass
        counts.append(len(read) / every)
    assert counts == [2, 1, 2, 1]


def _listed(tensor: torch.Tensor) -> list[list[int]]:
    return [sums.tolist() for sums in bit_sums(tensor).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(6, 8), (5, 3), (4,), ()])
def test_on_a_gpu_one_changed_element_shows_in_the_sums_of_the_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    before = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    after = before.clone()
    flat = after.view(-1)
    flat[-1] = ~flat[-1] if dtype == torch.bool else flat[-1] + 1
    assert _listed(after) != _listed(before)
    assert _listed(before.clone()) == _listed(before)


def test_on_a_gpu_exchanged_rows_and_a_transposed_matrix_show_in_the_sums_of_the_bits() -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert _listed(matrix.flip(0)) != _listed(matrix)
    assert _listed(matrix.mT) != _listed(matrix)
    assert _listed(matrix[:, :0]) == _listed(torch.empty(0, 3))


def test_a_change_is_noticed_also_after_an_exception(base: Base) -> None:
    def compile_half_way() -> None:
        with unchanged(base):
            _write_weight(base.model)
            raise EditError("stopped half way")

    with pytest.raises(RuntimeError, match=r"c_proj") as raised:
        compile_half_way()
    assert isinstance(raised.value.__context__, EditError)


def test_an_exception_without_a_change_passes_through(base: Base) -> None:
    with pytest.raises(EditError, match="half way"), unchanged(base):
        raise EditError("stopped half way")
