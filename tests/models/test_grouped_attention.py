"""Attention that reads keys and values once a group gives the model's own numbers, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from vllm_edit.models.greedy import continuations
from vllm_edit.models.grouped_attention import grouped_attention
from vllm_edit.models.padding import padded

PROMPTS = ([11, 12, 13, 14, 15, 16, 17], [21, 22, 23], [31, 32, 33, 34, 35])


def grouped(family: str) -> PreTrainedModel:
    """A model of four heads that attends by torch's kernels, with two heads of keys where its family has such."""
    return tiny_model(family, tiny_tokenizer(), hidden=128, groups=2, attention="sdpa")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])  # it has no such kernel
def test_logits_and_gradients_are_the_models_own(family: str) -> None:
    model = grouped(family)
    ids, mask = padded(PROMPTS, 0, left=True)
    embedded = model.get_input_embeddings()(ids).detach()

    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        given = embedded.clone().requires_grad_()
        logits = model(inputs_embeds=given, attention_mask=mask).logits[:, -1]
        return logits.detach(), torch.autograd.grad(logits.square().sum(), given)[0]

    expected = logits_and_gradient()
    with grouped_attention(model):
        found = logits_and_gradient()
    for item, other in zip(found, expected, strict=True):
        torch.testing.assert_close(item, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 4])
def test_tokens_after_stored_tokens_see_all_of_them(shared: int) -> None:
    model = grouped("llama")
    prompts = [[5, 6, 7, 8, *prompt] for prompt in PROMPTS]
    found = continuations(model, tiny_tokenizer(), prompts, 6, shared)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        for token in answer:
            with torch.no_grad():
                assert int(model(input_ids=ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_keys_are_not_repeated_for_every_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heads = grouped("llama"), list[int]()
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        heads.append(key.shape[1])
        return kernel(query, key, *args, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    ids, mask = padded(PROMPTS, 0, left=True)
    with grouped_attention(model):
        model(input_ids=ids, attention_mask=mask)
    assert set(heads) == {2}


def test_a_model_attends_as_before_afterwards_whatever_happens_inside() -> None:
    model = grouped("llama")

    def fails() -> None:
        with grouped_attention(model):
            assert model.config._attn_implementation != "sdpa"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert model.config._attn_implementation == "sdpa"
