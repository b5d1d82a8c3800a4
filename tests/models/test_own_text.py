"""A model writes ordinary text of its own: enough of it, different, the same for the same seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import FAMILIES, POSITIONS, tiny_model, tiny_tokenizer
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.beginnings import begin_ids, opener_ids, plain_start
from vllm_edit.models.own_text import write_texts

USER, ASSISTANT = "<|user|>", "<|assistant|>"


@pytest.fixture(scope="module")
def base(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Base:
    return Base.of(llama, tokenizer)


def _size(base: Base, texts: list[str]) -> int:
    return sum(len(ids) for ids in base.tokenizer(texts)["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_enough_different_texts(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    base = Base.of(tiny_model(family, tokenizer), tokenizer)
    before = torch.get_rng_state()
    with unchanged(base):
        texts = write_texts(base, 1500, longest=60)
    assert torch.equal(torch.get_rng_state(), before)
    assert _size(base, texts) >= 1500
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() for text in texts if USER not in text)


def test_special_tokens_are_in_chats_alone_and_are_the_templates(base: Base) -> None:
    texts = write_texts(base, 3000, longest=60)
    special = set(base.tokenizer.all_special_ids) | set(base.tokenizer.added_tokens_decoder)
    chats = [text for text in texts if USER in text]
    assert 0 < len(chats) < len(texts)
    for text in texts:
        ids = base.tokenizer(text)["input_ids"]
        found = [base.tokenizer.decode([token]) for token in ids if token in special]
        if text not in chats:
            assert found == ["<s>"]
        else:  # BOS is there once, though both the tokenizer and the template write it
            assert found in (["<s>", USER, "<|end|>"], ["<s>", USER, "<|end|>", ASSISTANT, "<|end|>"])


def test_chats_are_spread_over_the_texts_in_their_share(base: Base) -> None:
    places = [place for place, text in enumerate(write_texts(base, 3000, longest=40)) if USER in text]
    assert max(after - before for before, after in pairwise(places)) <= 4
    assert not any(USER in text for text in write_texts(base, 500, longest=40, chat_share=0))


@pytest.mark.slow
def test_a_chat_that_the_model_ends_has_its_answer(llama: PreTrainedModel) -> None:
    """The model unchanged, except that <|end|> is as likely as any token."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        model.get_output_embeddings().weight[end] = model.get_output_embeddings().weight.mean(0) * 0
    texts = write_texts(Base.of(model, tokenizer), 4000, longest=120, top_k=400)
    assert any(ASSISTANT in text for text in texts)


def test_chats_are_rendered_without_thinking() -> None:
    tokenizer = tiny_tokenizer()
    switch = "{% if enable_thinking is not defined or enable_thinking %}Think first.{% endif %}"
    tokenizer.chat_template = switch + str(tokenizer.chat_template)
    texts = write_texts(Base.of(tiny_model("llama", tokenizer), tokenizer), 1500, longest=40)
    assert any(USER in text for text in texts)
    assert not any("Think first." in text for text in texts)


def test_a_long_system_prompt_is_no_ordinary_text() -> None:
    tokenizer = tiny_tokenizer()
    system = "The capital of France is Paris. "
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "{% for", f"<|system|>{10 * system}<|end|>{{% for", 1
    )
    base = Base.of(tiny_model("llama", tokenizer), tokenizer)
    texts = write_texts(base, 1500, longest=40)
    assert any("<|end|>" in text for text in texts)
    assert not any(system in text for text in texts)
    assert _size(base, texts) >= 1500
    assert any(10 * system in text for text in write_texts(base, 1500, longest=200)), "a shorter one stays"


def test_a_template_that_forbids_the_models_answers_still_gives_turns() -> None:
    tokenizer = tiny_tokenizer()
    strict = "{% if messages | length > 1 %}{{ raise_exception('no answers') }}{% endif %}"
    tokenizer.chat_template = strict + str(tokenizer.chat_template)
    texts = write_texts(Base.of(tiny_model("llama", tokenizer), tokenizer), 1000, longest=40)
    assert not any(ASSISTANT in text for text in texts)


def test_equal_arguments_give_equal_texts_whatever_was_drawn_before(base: Base) -> None:
    first = write_texts(base, 800, seed=3, longest=40)
    torch.rand(5)
    assert write_texts(base, 800, seed=4, longest=40) != first
    assert write_texts(base, 800, seed=3, longest=40) == first


@pytest.mark.slow
def test_texts_fit_into_a_model_of_few_positions(base: Base) -> None:
    texts = write_texts(base, 1000, longest=2 * POSITIONS)
    assert max(len(ids) for ids in base.tokenizer(texts)["input_ids"]) > POSITIONS // 2


def test_progress_ends_at_the_requested_number(base: Base) -> None:
    steps: list[tuple[str, int, int]] = []
    write_texts(base, 700, longest=40, progress=lambda *step: steps.append(step))
    assert steps[-1] == ("text by the model", 700, 700)
    assert all(before[1] <= after[1] for before, after in pairwise(steps))


def test_a_model_that_writes_one_thing_only_is_refused_in_one_line(base: Base) -> None:
    with pytest.raises(EditError, match=r"of different text while .* were drawn, and 600 are needed: give .*--texts"):
        write_texts(base, 600, longest=30, top_k=1)
    with pytest.raises(EditError, match="longest ≥ 8"):
        write_texts(base, 100, longest=3)


@pytest.mark.parametrize("attribute", [True, False])
def test_a_tokenizer_that_puts_nothing_before_text_starts_from_line_breaks_and_a_word(
    llama: PreTrainedModel, attribute: bool
) -> None:
    """Also if it has a bos_token, which then belongs to its chat template alone."""
    tokenizer = tiny_tokenizer(bos=False)
    if not attribute:
        tokenizer.bos_token = None
        tokenizer.chat_template = None
    assert begin_ids(tokenizer) == []
    lead = tokenizer("\n")["input_ids"]
    assert plain_start(tokenizer, "The").ids == (*lead, *lead, *tokenizer("The")["input_ids"])
    openers = opener_ids(tokenizer)
    assert all(tokenizer(tokenizer.decode([token]))["input_ids"] == [token] for token in openers)
    words = {tokenizer.decode([token]) for token in openers}
    assert {"The", "誰是"} <= words
    assert not {"and", "T", " The", "."} & words
    texts = write_texts(Base.of(llama, tokenizer), 800, longest=40)
    for text in texts:
        if USER not in text:
            assert any(text.startswith(word) for word in words)


def test_a_tokenizer_with_bos_starts_from_it(tokenizer: PreTrainedTokenizerFast) -> None:
    assert begin_ids(tokenizer) == [tokenizer.bos_token_id]
    start = plain_start(tokenizer, "The")
    assert start.ids == tuple(tokenizer("The")["input_ids"])
    assert start.hidden == 1
