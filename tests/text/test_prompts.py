"""An answer is trained with the ids that it has behind its prompt, with tokenizers of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.sentencepiece import KINDS, saved, sentencepiece
from tests.tiny import tiny_tokenizer
from vllm_edit.artefacts.site import Context
from vllm_edit.editing.rome.name_keys import proper_names
from vllm_edit.errors import EditError
from vllm_edit.models.import_checks import ROUND_TRIP, check_round_trip
from vllm_edit.models.positions import locate
from vllm_edit.text.prompts import answer_ids, continuation, ids_after, prompt_ids, render

ASKED = (
    ("The capital of France is", "Paris"),
    ("The capital of France:\n", "Paris"),
    ("In 1889 the Eiffel Tower was", "1,083 feet high"),
    ("法國的首都是", "巴黎"),
    ("The capital of France is", "巴黎"),
    ("Столица Франции —", "Париж"),
    ("Who wrote Hamlet?", "“Shakespeare”"),
)
MADE = {
    **{f"{kind}, {'with' if bos else 'without'} BOS": (kind, bos) for kind in KINDS for bos in (True, False)},
    "byte-level, with BOS": ("byte-level", True),
    "byte-level, without BOS": ("byte-level", False),
}


@pytest.fixture(scope="module", params=MADE.values(), ids=MADE.keys())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A tokenizer as it is loaded from its files."""
    kind, bos = request.param
    tokenizer = tiny_tokenizer(bos=bos) if kind == "byte-level" else sentencepiece(kind, bos=bos)
    return saved(tokenizer, tmp_path_factory.mktemp("tokenizer"))


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("prompt", "answer"), ASKED)
def test_prompt_and_answer_have_the_ids_of_both_tokenized_together(
    made: PreTrainedTokenizerFast, prompt: str, answer: str, chat: bool
) -> None:
    text = render(made, prompt, chat)
    whole = made(text + continuation(text, answer), add_special_tokens=not chat)["input_ids"]
    assert prompt_ids(made, prompt, chat) + answer_ids(made, prompt, answer, chat) == whole


def test_every_built_tokenizer_gives_text_back_and_knows_its_own_bos(made: PreTrainedTokenizerFast) -> None:
    check_round_trip(made)
    assert made.decode(ids_after(made, "x", ROUND_TRIP[0])) == ROUND_TRIP[0]


@pytest.mark.parametrize("chat", [False, True])
def test_the_subjects_last_token_is_found(made: PreTrainedTokenizerFast, chat: bool) -> None:
    for prompt, subject in (("The capital of France is", "France"), ("誰是李宏毅？", "李宏毅")):
        found = locate(made, prompt, subject, Context(chat=chat))
        assert found.ids == prompt_ids(made, prompt, chat)
        assert subject in made.decode(found.ids[found.subject_first : found.subject_last + 1])


def test_names_of_one_token_are_found_whatever_the_tokenizer_puts_before_a_text(made: PreTrainedTokenizerFast) -> None:
    for name in proper_names(made, 5):
        assert len(ids_after(made, "with", f" {name}")) == 1
    assert proper_names(made, 5)


def test_llama_2s_own_class_after_a_template_that_ends_in_a_new_line(tmp_path: Path) -> None:
    """transformers builds that class anew from vocabulary and merges, with a space before the first text only."""
    sentencepiece("llama2").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text().replace("TokenizersBackend", "LlamaTokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__ == "LlamaTokenizer"
    pieces = tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, "Where is the Eiffel Tower?", "Paris", chat=True))
    assert pieces == tokenizer.convert_ids_to_tokens(ids(tokenizer, "\nParis"))[-len(pieces) :]
    assert not pieces[0].startswith("▁")


# How a template ends before an answer, how it writes one, and the answer behind that end.
_TURN = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endfor %}"
_ANSWERED = "{% for m in messages if m.role == 'assistant' %}OPENED{{ m.content }}<|end|>{% endfor %}"
JOINTS = {
    "nothing": ("<|assistant|>", "<|assistant|>", "Paris"),
    "a word and nothing": ("[/INST]", "[/INST]", "Paris"),
    "a space": ("<|assistant|>", "<|assistant|> ", " Paris"),
    "a new line": ("<|assistant|>", "<|assistant|>{{ '\\n' }}", "\nParis"),
    "a new line before": ("<|assistant|>{{ '\\n' }}", "<|assistant|>{{ '\\n' }}", "Paris"),
    "a thinking that is left out": ("<|assistant|></think>", "<|assistant|>", " Paris"),
    "a thinking that is kept": ("<|assistant|></think>", "<|assistant|></think>", "Paris"),
    "a thinking that the template begins": ("<|assistant|><think>", "<|assistant|>", "Paris"),
    "more than white space": ("<|assistant|>", "<|assistant|>final:", " Paris"),
    "no answer": ("<|assistant|>", "{{ raise_exception('users only') }}", " Paris"),
    "an error of types": ("<|assistant|>", "{{ 'a' + 1 }}", " Paris"),
}


@pytest.mark.parametrize(("end", "opened", "joined"), JOINTS.values(), ids=JOINTS.keys())
def test_an_answer_follows_a_turn_as_the_template_writes_it(end: str, opened: str, joined: str) -> None:
    tokenizer = tiny_tokenizer()
    template = _TURN + _ANSWERED.replace("OPENED", opened)
    tokenizer.chat_template = f"{template}{{% if add_generation_prompt %}}{end}{{% endif %}}"
    for answer in ("Paris", " Paris "):
        ids = answer_ids(tokenizer, "The capital of France is", answer, chat=True)
        assert tokenizer.decode(ids) == joined
    spaceless = tokenizer.decode(answer_ids(tokenizer, "法國的首都是", "巴黎", chat=True))
    assert spaceless == joined.replace("Paris", "巴黎").lstrip(" ")
    assert tokenizer.decode(answer_ids(tokenizer, "The capital of France is", "Paris")) == " Paris"


def _merging(merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A BPE of a few letters with these merges and no pre-tokenizer but for spaces."""
    letters = dict.fromkeys([*"abx:1\nĠÿ", *(left + right for left, right in merges)])
    core = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_where_a_token_covers_the_seam_the_answer_has_the_ids_of_its_own() -> None:
    tokenizer = _merging([("a", "b"), ("b", "x")])
    assert ids(tokenizer, "aabx") == ids(tokenizer, "a") + ids(tokenizer, "ab") + ids(tokenizer, "x")
    assert ids_after(tokenizer, "aa", "bx") == ids(tokenizer, "bx")


def test_a_text_that_merges_with_everything_is_refused() -> None:
    tokenizer = _merging([(":", "b"), ("1", "b"), ("a", "b"), ("\n", "b"), ("x", "b")])
    with pytest.raises(EditError, match="merges 'b' with any text"):
        ids_after(tokenizer, "x", "b")
