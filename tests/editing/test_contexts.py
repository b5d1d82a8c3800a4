"""Contexts come from the model itself, the same for the same seed, and disturb no random state."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_tokenizer
from vllm_edit import atlas
from vllm_edit.artefacts.site import Context
from vllm_edit.editing.site.contexts import generate_contexts
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.greedy import continuations
from vllm_edit.models.positions import contextual, locate
from vllm_edit.text.matching import mentions
from vllm_edit.text.prompts import prompt_ids


@pytest.fixture(scope="module")
def base(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Base:
    return Base.of(llama, tokenizer)


def test_the_first_context_is_bare_and_a_third_is_chat(base: Base) -> None:
    contexts = generate_contexts(base, 9)
    assert len(set(contexts)) == 9
    assert contexts[0] == Context()
    chats = [context for context in contexts if context.chat]
    assert len(chats) == 3
    assert chats[0] == Context(chat=True)
    assert sum(not context.prefix for context in contexts) == 2


def test_prefixes_are_short_sentences_without_braces_or_special_tokens(base: Base) -> None:
    prefixes = [context.prefix for context in generate_contexts(base, 20) if context.prefix]
    for prefix in prefixes:
        assert prefix.endswith((". ", "。"))
        assert prefix.isprintable()
        assert not set("{}\ufffd") & set(prefix)
        ids = base.tokenizer(prefix, add_special_tokens=False)["input_ids"]
        assert not {0, 1, 2, 3, 4, 5, 6} & set(ids)
    words = base.tokenizer(prefixes, add_special_tokens=False)["input_ids"]
    assert max(map(len, words)) <= 2 + 10 + 2  # seed word, generated, full stop and space; re-read they may differ


def test_equal_seeds_give_equal_contexts_whatever_was_drawn_before(base: Base) -> None:
    first = generate_contexts(base, 6, seed=3)
    torch.rand(7)
    generate_contexts(base, 6, seed=4)
    assert generate_contexts(base, 6, seed=3) == first
    assert generate_contexts(base, 6, seed=4) != first


def test_the_global_random_state_and_the_model_are_left_alone(base: Base) -> None:
    before = torch.get_rng_state()
    with unchanged(base):
        generate_contexts(base, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_model_writes_other_contexts(base: Base, tokenizer: PreTrainedTokenizerFast) -> None:
    other = Base.of(tiny_model("llama", tokenizer, seed=1), tokenizer)
    assert generate_contexts(other, 6) != generate_contexts(base, 6)


def test_no_prefix_mentions_a_forbidden_text(base: Base) -> None:
    contexts = generate_contexts(base, 12)
    word = next(
        word for context in contexts for word in context.prefix.split() if len(word) > 3 and mentions(word, word)
    )
    assert any(mentions(context.prefix, word) for context in contexts)
    again = generate_contexts(base, 12, forbidden=[word])
    assert not any(mentions(context.prefix, word) for context in again)


@pytest.mark.slow
def test_prefixes_that_change_the_bases_answer_are_replaced() -> None:
    """Like "In which city does Wenceslas Square stand.": atlas continues with Prague, whatever the prompt is."""
    base, edits = Base.load("atlas"), atlas.sweep_edits()[:12]
    prompts, subjects = [edit.prompt for edit in edits], [edit.subject for edit in edits]

    def changed(contexts: Iterable[Context]) -> int:
        bare = {chat: begun(Context(chat=chat)) for chat in (False, True)}
        return sum(a != b for context in contexts for a, b in zip(begun(context), bare[context.chat], strict=True))

    def begun(context: Context) -> list[list[int]]:
        ids = [prompt_ids(base.tokenizer, contextual(prompt, context), context.chat) for prompt in prompts]
        return continuations(base.model, base.tokenizer, ids, 1)

    drawn = generate_contexts(base, forbidden=subjects)
    chosen = generate_contexts(base, forbidden=subjects, asked=prompts)
    assert len(set(chosen)) == len(drawn)
    assert changed(chosen) < changed(drawn)
    assert generate_contexts(base, forbidden=subjects, asked=prompts) == chosen


def test_a_prompt_that_the_model_cannot_read_is_refused_by_its_beginning(base: Base) -> None:
    with pytest.raises(
        UnsafeEdit, match=r"the prompt 'Paris is Paris is .* … .* in its context has .* reads at most 256"
    ):
        generate_contexts(base, asked=["Tea is", "Paris is " * 200])


def test_every_context_can_be_put_around_a_prompt(base: Base) -> None:
    for context in generate_contexts(base, 9):
        located = locate(base.tokenizer, "The capital of France is", "France", context)
        assert base.tokenizer.decode(located.ids[located.subject_last]) == " France"


@pytest.mark.parametrize(("template", "bos"), [(False, True), (False, False), (True, False)])
def test_without_template_there_is_no_chat_and_without_bos_seed_words_suffice(
    llama: PreTrainedModel, template: bool, bos: bool
) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    if not template:
        tokenizer.chat_template = None
    if not bos:
        tokenizer.bos_token = None
    contexts = generate_contexts(Base.of(llama, tokenizer), 6)
    assert len(set(contexts)) == 6
    assert any(context.chat for context in contexts) == template


def test_a_bos_token_that_the_tokenizer_does_not_put_before_text_begins_no_context(llama: PreTrainedModel) -> None:
    with_token, without = tiny_tokenizer(bos=False), tiny_tokenizer(bos=False)
    without.bos_token = None
    for tokenizer in (with_token, without):
        tokenizer.chat_template = None
    assert with_token.bos_token_id is not None
    contexts = generate_contexts(Base.of(llama, with_token), 6)
    assert contexts == generate_contexts(Base.of(llama, without), 6)
    assert contexts != generate_contexts(Base.of(llama, tiny_tokenizer(bos=True)), 6, chat_share=0)


def test_one_context_is_the_bare_one(base: Base) -> None:
    assert generate_contexts(base, 1) == (Context(),)


def test_too_few_different_texts_are_an_error(base: Base) -> None:
    with pytest.raises(EditError, match="different allowed prefixes in 580 attempts, 29 are needed"):
        generate_contexts(base, 30, chat_share=0, shortest=1, longest=1, top_k=1)
    with pytest.raises(EditError, match="shortest"):
        generate_contexts(base, 3, shortest=4, longest=2)
