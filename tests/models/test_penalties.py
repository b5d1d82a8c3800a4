"""Greedy answers with what a model's generation_config asks: a prompt at a time, in plain arithmetic, as reference."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_model
from vllm_edit.models.greedy import continuations
from vllm_edit.models.penalties import Penalties
from vllm_edit.models.short_answers import greedy_until
from vllm_edit.text.prompts import prompt_ids

PROMPTS = [
    "x",
    "The capital of France is",
    "誰是美國總統？",
    "The Eiffel Tower is in the city of the tower of the city",
]
LENGTH = 10


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    made = tiny_model("llama", tokenizer)
    made.generation_config.pad_token_id = tokenizer.eos_token_id  # padding that would be taken for a token of the row
    return made


def _alone(model: PreTrainedModel, end: int, prompt: list[int], wanted: Penalties) -> list[int]:
    """Token by token from the whole text, penalised in a loop over tokens."""
    made: list[int] = []
    while len(made) < LENGTH and end not in made:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *made]])).logits[0, -1].tolist()
        for token in {*prompt, *made}:
            factor = wanted.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        for token, times in Counter(made).items():
            logits[token] -= wanted.frequency_penalty * times + wanted.presence_penalty
        made.append(max(range(len(logits)), key=logits.__getitem__))
    return made


@pytest.mark.parametrize(
    "wanted",
    [
        Penalties(),
        Penalties(repetition_penalty=1.5),
        Penalties(repetition_penalty=0.8),
        Penalties(1.2, presence_penalty=0.3, frequency_penalty=0.1),
    ],
)
def test_a_batch_is_penalised_as_each_prompt_is_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, wanted: Penalties
) -> None:
    config = GenerationConfig(**vars(wanted), pad_token_id=tokenizer.eos_token_id)
    monkeypatch.setattr(model, "generation_config", config)
    assert Penalties.of(config) == wanted
    end, prompts = tokenizer.eos_token_id, [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    expected = [_alone(model, end, prompt, wanted) for prompt in prompts]
    found = continuations(model, tokenizer, prompts, LENGTH)
    assert [row[: len(alone)] for row, alone in zip(found, expected, strict=True)] == expected
    until = greedy_until(model, tokenizer, prompts, [LENGTH] * len(prompts), lambda row, tokens: False)
    assert until == [[token for token in alone if token != end] for alone in expected]
    assert model.generation_config is config


def test_a_generation_config_entry_that_no_server_uses_changes_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    expected = continuations(model, tokenizer, prompts, LENGTH)
    assert any(left == right for row in expected for left, right in pairwise(row)), "it repeats itself"
    others = {"num_beams": 3, "no_repeat_ngram_size": 1, "min_new_tokens": 5, "temperature": 0.6, "do_sample": True}
    monkeypatch.setattr(model, "generation_config", GenerationConfig(**others))
    assert continuations(model, tokenizer, prompts, LENGTH) == expected
