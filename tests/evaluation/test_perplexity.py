"""Perplexity against a slow reference: one text at a time, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import SENTENCES, tiny_model
from vllm_edit.errors import EditError
from vllm_edit.evaluation.perplexity import perplexity, perplexity_drift, pieces_of
from vllm_edit.store.compiled import CompiledPatch

TEXTS = [*SENTENCES[:5], "全世界最帥的人是誰？", "A", ""]


@torch.no_grad()
def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[float, int]:
    losses = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for end in range(1, len(ids)):
            logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
            losses.append(-torch.log_softmax(logits, dim=-1)[ids[end]].item())
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexity_weighs_tokens_and_not_texts(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    expected, count = reference(model, tokenizer, TEXTS)
    pieces = pieces_of(model, tokenizer, TEXTS)
    assert sum(len(piece) - 1 for piece in pieces) == count
    for rows in (1, 4, 100):
        assert perplexity(model, tokenizer, pieces, rows=rows) == pytest.approx(expected, rel=1e-4)


def test_drift_is_the_relative_change_and_the_model_stays_as_it_was(
    compiled: CompiledPatch, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    found = perplexity_drift(llama, tokenizer, compiled.delta, TEXTS)
    base, count = reference(llama, tokenizer, TEXTS)
    with compiled.delta.apply(llama):
        edited, _ = reference(llama, tokenizer, TEXTS)
    assert (found.base, found.edited) == (pytest.approx(base, rel=1e-4), pytest.approx(edited, rel=1e-4))
    assert found.tokens == count
    assert found.drift == pytest.approx(edited / base - 1, rel=1e-3)
    assert abs(found.drift) > 0.01, "a large random delta moves ordinary text"
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_a_text_longer_than_the_context_is_cut_into_pieces(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = " ".join(SENTENCES * 3)
    ids = tokenizer(long)["input_ids"]
    context = llama.config.max_position_embeddings
    pieces = pieces_of(llama, tokenizer, [long])
    assert len(pieces) == math.ceil(len(ids) / context) > 1
    assert [token for piece in pieces for token in piece] == ids


def test_text_without_tokens_to_predict_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditError, match="at least two tokens"):
        pieces_of(llama, tokenizer, [""])
