"""Padding needs a row of the embedding, which a padding token that was added later may lack."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.models.base import Base
from vllm_edit.models.greedy import continuations, pad_id
from vllm_edit.models.padding import padding_id


def test_a_padding_token_without_a_row_of_the_embedding_is_not_used() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", tokenizer)
    texts = list(SENTENCES)
    prompts = [tokenizer(text)["input_ids"] for text in texts[:2]]
    base = Base.of(model, tokenizer)
    name = base.layout.down[1]
    before = second_moments(base, [name], texts, minimum_ratio=1)[0].matrix, continuations(model, tokenizer, prompts, 4)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == len(model.get_input_embeddings().weight)
    assert pad_id(model, tokenizer) < tokenizer.pad_token_id
    after = second_moments(base, [name], texts, minimum_ratio=1)[0].matrix, continuations(model, tokenizer, prompts, 4)
    assert torch.equal(before[0], after[0])
    assert [ids[:1] for ids in before[1]] == [ids[:1] for ids in after[1]]


@pytest.mark.parametrize(("candidates", "expected"), [((3, 4), 3), ((None, 4), 4), ((9999, 4), 4), ((9999, None), 0)])
def test_the_first_id_with_a_row_is_taken(candidates: tuple[int | None, ...], expected: int) -> None:
    assert padding_id(tiny_model("llama", tiny_tokenizer()), *candidates) == expected
