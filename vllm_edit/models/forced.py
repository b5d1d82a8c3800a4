"""Scores of given (forced) tokens in texts. Only the positions of these tokens reach the head.

With a large vocabulary, the logits of all positions would take much of the time and most of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vllm_edit.models.padding import padded
from vllm_edit.models.shared_prefix import read_once

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Forced:
    """A text's ids, and the tokens to score: `tokens[i]` is the token after position `places[i]`.

    Several answers to one prompt may share a text, if the longest answer contains the input tokens of the others.
    """

    ids: Sequence[int]
    places: Sequence[int]
    tokens: Sequence[int]


@torch.no_grad()
def token_scores(
    model: CausalLM, pad: int, texts: Sequence[Forced], shared: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each text: (negative log-likelihood [m] float32, True for the most likely token [m] bool) of its m tokens.

    One forward pass runs all texts, padded on the right, where causal attention ignores it. The model's own processing
    of logits (capping, scaling) applies.

    Args:
        pad: id for padding.
        shared: number of first tokens that all texts have in common, which are read once. No place may precede the
            last of them.
    """
    ids, mask = padded([text.ids[shared:] for text in texts], pad, left=False)  # [rows, tokens]
    past = read_once(model, texts[0].ids[:shared], len(texts)) if shared else None
    if shared:
        mask = torch.cat([torch.ones(len(texts), shared, dtype=mask.dtype), mask], dim=1)
    device = model.device
    counts = [len(text.places) for text in texts]
    lines = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(counts)).to(device)  # [all m]
    places = torch.tensor([place - shared for text in texts for place in text.places], device=device)  # [all m]
    wanted = torch.tensor([token for text in texts for token in text.tokens], device=device)  # [all m]

    def select(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0][lines, places][None],)  # [rows, tokens, d] → [1, all m, d]

    with model.get_output_embeddings().register_forward_pre_hook(select):
        out = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), past_key_values=past, use_cache=bool(shared)
        )
    logits = out.logits[0].float()  # [all m, vocabulary]
    nll = logits.logsumexp(-1) - logits.gather(1, wanted[:, None])[:, 0]
    likeliest = logits.argmax(-1) == wanted
    return list(zip(torch.split(nll.cpu(), counts), torch.split(likeliest.cpu(), counts), strict=True))


def shared_texts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], owners: Sequence[object]
) -> tuple[list[Forced], list[tuple[int, slice]]]:
    """Texts that contain every answer after its prompt, and each answer's location: (text, slice of its tokens).

    Answers to one prompt with one owner (compared by identity) share a text if the input tokens of the shorter answer
    are a prefix of those of the longer. An answer of one token has no input tokens besides the prompt.

    Raises:
        ValueError: an answer has no tokens.
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
            text = next((index for index in made if texts[index][0][: len(read)] == read), len(texts))
            if text == len(texts):
                texts.append((read, [], []))
                made.append(text)
            _, positions, tokens = texts[text]
            start = len(tokens)
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            tokens += answer
            places[number] = (text, slice(start, start + len(answer)))
    return [Forced(*text) for text in texts], [places[number] for number in range(len(prompts))]
