"""Forced tokens: what a model gives to texts that are put before it, where only the tokens that are asked for reach the
head.

At a large vocabulary the logits of all positions would be a good part of the work and most of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm_edit.models.greedy import padded
from vllm_edit.models.shared_prefix import read_once


@dataclass(frozen=True)
class Forced:
    """A text's ids, and the tokens asked for: `tokens[i]` is to follow the ids up to and with `places[i]`.

    Several answers to one prompt may share a text: the ones whose tokens the longest of them reads anyway.
    """

    ids: Sequence[int]
    places: Sequence[int]
    tokens: Sequence[int]


@torch.no_grad()
def token_scores(
    model: Any, pad: int, texts: Sequence[Forced], shared: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each text: (negative log-likelihood [m] float32, is it the most likely token [m] bool) of its m tokens.

    One forward pass over all texts, padded on the right, where causal attention does not see it. What the model does to
    its logits (capping, scaling) is done here too. shared: so many first tokens are the same in all texts, and nothing
    is asked for before the last of them; they are read once.
    """
    ids, mask = padded([text.ids[shared:] for text in texts], pad, left=False)  # [rows, tokens]
    past: dict[str, Any] = {"use_cache": False}
    if shared:
        past = {"use_cache": True, "past_key_values": read_once(model, texts[0].ids[:shared], len(texts))}
        mask = torch.cat([torch.ones(len(texts), shared, dtype=mask.dtype), mask], dim=1)
    device = model.device
    counts = [len(text.places) for text in texts]
    lines = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(counts)).to(device)  # [all m]
    places = torch.tensor([place - shared for text in texts for place in text.places], device=device)  # [all m]
    wanted = torch.tensor([token for text in texts for token in text.tokens], device=device)  # [all m]

    def select(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0][lines, places][None],)  # [rows, tokens, d] → [1, all m, d]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        out = model(input_ids=ids.to(device), attention_mask=mask.to(device), **past)
    finally:
        handle.remove()
    logits = out.logits[0].float()  # [all m, vocabulary]
    nll = logits.logsumexp(-1) - logits.gather(1, wanted[:, None])[:, 0]
    likeliest = logits.argmax(-1) == wanted
    return list(zip(nll.cpu().split(counts), likeliest.cpu().split(counts), strict=True))


def shared_texts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], owners: Sequence[object]
) -> tuple[list[Forced], list[tuple[int, slice]]]:
    """As few texts as hold every answer after its prompt, and where each answer is: (text, its tokens in there).

    Of answers to one prompt under one owner (compared by identity), one whose read tokens begin a longer one's rides
    along with it: an answer of one token reads nothing but the prompt.

    Raises:
        ValueError: an answer without tokens.
    """
    texts: list[tuple[tuple[int, ...], list[int], list[int]]] = []  # ids, places, tokens
    places: dict[int, tuple[int, slice]] = {}
    by_prompt: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, prompt in enumerate(prompts):
        if not answers[number]:
            raise ValueError(f"answer {number} has no tokens; expected at least one")
        by_prompt.setdefault((id(owners[number]), tuple(prompt)), []).append(number)
    for (_, prompt), numbers in by_prompt.items():
        made: list[int] = []
        for number in sorted(numbers, key=lambda number: -len(answers[number])):
            answer = tuple(answers[number])
            read = (*prompt, *answer[:-1])
            text = next((one for one in made if texts[one][0][: len(read)] == read), len(texts))
            if text == len(texts):
                texts.append((read, [], []))
                made.append(text)
            _, positions, tokens = texts[text]
            start = len(tokens)
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            tokens += answer
            places[number] = (text, slice(start, start + len(answer)))
    return [Forced(*one) for one in texts], [places[number] for number in range(len(prompts))]
