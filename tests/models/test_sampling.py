"""A sampled text depends on its own random numbers alone, and the KV cache changes nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import FAMILIES, tiny_model
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.sampling import Draft, Start, sampled

BANNED, ENDS = (1, 3), (20, 21, 22)


def _drafts(starts: list[Start], longest: int, seed: int = 0, top_k: int = 12) -> list[Draft]:
    generator = torch.Generator().manual_seed(seed)
    return [Draft.drawn(start, longest, top_k, generator) for start in starts]


@torch.no_grad()
def _reference(model: PreTrainedModel, draft: Draft) -> list[int]:
    """One text at a time, everything read again for every token, drawn by `torch.multinomial`."""
    ids = list(draft.start.ids)
    for noise in draft.noise:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[list(BANNED)] = -torch.inf
        best = logits.topk(len(noise))
        token = int(best.indices[(best.values.softmax(-1) / noise).argmax()])
        if token in ENDS:
            break
        ids.append(token)
    return ids[draft.start.hidden :]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_batch_equals_each_text_alone_without_cache(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    starts = [Start((0, 50 + number, *([60] * (number % 3))), hidden=1) for number in range(9)]
    drafts = _drafts(starts, 12)
    texts = sampled(model, drafts, banned=BANNED, ends=ENDS, batch=4)
    assert texts == [_reference(model, draft) for draft in drafts]
    assert len({len(text) for text in texts}) > 2  # some ended early


def test_the_size_of_a_batch_does_not_change_the_texts(llama: PreTrainedModel) -> None:
    drafts = _drafts([Start((0,))] * 7, 6)
    one_by_one = [sampled(llama, [draft])[0] for draft in drafts]
    assert sampled(llama, drafts, batch=3) == one_by_one == sampled(llama, drafts)


def test_noise_draws_as_multinomial_does() -> None:
    chances = torch.rand(40).softmax(-1)
    drawn, generator = [], torch.Generator().manual_seed(5)
    for _ in range(50):
        noise = Draft.drawn(Start(()), 1, 40, generator).noise[0]
        drawn.append(int((chances / noise).argmax()))
    generator.manual_seed(5)
    assert drawn == [int(torch.multinomial(chances, 1, generator=generator)) for _ in range(50)]


def test_banned_ids_are_never_drawn_and_ends_are_no_part_of_a_text(llama: PreTrainedModel) -> None:
    drafts = _drafts([Start((0,))] * 40, 20, top_k=200)
    free = sampled(llama, drafts)
    assert {token for text in free for token in text} & {*BANNED, *ENDS}
    held = sampled(llama, drafts, banned=BANNED, ends=ENDS)
    assert not {token for text in held for token in text} & {*BANNED, *ENDS}
    assert min(map(len, held)) < 20


def test_the_first_token_is_confined_and_hidden_tokens_are_left_out(llama: PreTrainedModel) -> None:
    texts = sampled(llama, _drafts([Start((0, 8), hidden=2, first=(30, 31, 32))] * 12, 4))
    assert {text[0] for text in texts} <= {30, 31, 32}
    assert len({text[0] for text in texts}) > 1
    assert {len(text) for text in texts} == {4}


def test_a_token_that_follows_the_first_end_is_inserted_and_the_text_continues(llama: PreTrainedModel) -> None:
    ends = range(100, 400)  # soon one of them is drawn
    drafts = _drafts([Start((0,), hidden=1, then=(5, 6, 7))] * 20, 12, top_k=500)
    texts = [text for text in sampled(llama, drafts, banned=(5, 6, 7), ends=ends) if 5 in text]
    places = [text.index(5) for text in texts]
    assert len(texts) > 15
    assert all(
        tuple(text[place : place + 3]) == (5, 6, 7) for text, place in zip(texts, places, strict=True) if place < 10
    )
    assert any(len(text) > place + 3 for text, place in zip(texts, places, strict=True))
    assert all(len(text) <= 12 and text.count(5) == 1 for text in texts)


def test_no_global_random_state_is_read_and_the_model_stays_as_it_was(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = torch.get_rng_state()
    with unchanged(Base.of(llama, tokenizer)):
        first = sampled(llama, _drafts([Start((0,))] * 3, 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert sampled(llama, _drafts([Start((0,))] * 3, 5)) == first
    torch.set_rng_state(before)
