"""Answers that end early are the beginning of what greedy generation gives, for every family."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from vllm_edit.models.greedy import continuations, end_ids
from vllm_edit.models.short_answers import greedy_until
from vllm_edit.text.prompts import prompt_ids

PROMPTS = (
    "The capital of France is",
    "The capital of the country where people speak German is",
    "The capital of Japan",
    "誰是全世界最帥的人",
)
LENGTH = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_end_early_and_equal_those_of_generation(family: str) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, tokenizer)
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    ends = set(end_ids(model, tokenizer))
    whole = [_until_end(row, ends) for row in continuations(model, tokenizer, prompts, LENGTH)]
    assert len({tuple(row) for row in whole}) == len(PROMPTS)

    made = greedy_until(model, tokenizer, prompts, [LENGTH] * 4, lambda row, tokens: False)
    assert made == whole
    stops = [3, LENGTH, 1, 5]
    made = greedy_until(model, tokenizer, prompts, [LENGTH] * 4, lambda row, tokens: len(tokens) >= stops[row])
    assert made == [row[:stop] for row, stop in zip(whole, stops, strict=True)]
    most = [0, 2, LENGTH, 4]
    made = greedy_until(model, tokenizer, prompts, most, lambda row, tokens: False)
    assert made == [row[:length] for row, length in zip(whole, most, strict=True)]


def test_a_common_beginning_is_read_once_and_changes_nothing() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", tokenizer)
    prompts = [prompt_ids(tokenizer, f"The capital of {name} is") for name in ("France", "Japan", "the people")]
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    made = greedy_until(model, tokenizer, prompts, [4] * 3, lambda row, tokens: False)
    handle.remove()
    shared = len(prompt_ids(tokenizer, "The capital of"))
    assert read[0] >= shared, "the common beginning is a pass of one row"
    assert read[1] <= 3 * (max(map(len, prompts)) - shared)
    alone = [greedy_until(model, tokenizer, [prompt], [4], lambda row, tokens: False)[0] for prompt in prompts]
    assert made == alone
    assert not model._forward_pre_hooks
    assert not model.get_output_embeddings()._forward_pre_hooks


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def test_nothing_is_run_where_nothing_is_wanted() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", tokenizer)
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with torch.no_grad():
        assert greedy_until(model, tokenizer, [[1, 2]], [0], lambda row, tokens: False) == [[]]
