"""What an edit does to other text: the entropy of what the model writes, and the likelihood of what it reads."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from vllm_edit.deltas.by_row import applied_by_row
from vllm_edit.evaluation.runners.batching import together
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Reading, Request
from vllm_edit.models.greedy import end_ids, pad_id
from vllm_edit.models.padding import padded
from vllm_edit.text.prompts import prompt_ids

TOKENS, TOP_K = 100, 5
"""Of what is written to measure fluency, as in ROME's code."""
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Written:
    """What an edited model and the base wrote after a prompt, as entropies. adapter: digest of the one that it was
    written under, None for the base and for IKE."""

    prompt: str
    adapter: str | None
    entropy: float
    entropy_base: float


@dataclass(frozen=True)
class Read:
    """Summed losses of ordinary text read by an edited model and by the base."""

    nll: float
    nll_base: float
    tokens: int

    @classmethod
    def of(cls, after: Sequence[Reading], before: Sequence[Reading]) -> Read:
        tokens = sum(reading.tokens for reading in before)
        return cls(sum(reading.nll for reading in after), sum(reading.nll for reading in before), tokens)


def ngram_entropy(text: str) -> float:
    """GE of arXiv 2202.05262: H₂/3 + 2·H₃/3, the mean of 2/3 · H₂ and 4/3 · H₃ (its code: eval_utils_counterfact.py).

    H_n is the entropy in bits of the text's n-grams of words: runs of letters and digits, and single marks. Tables of
    papers show it times 100. Departure: the prompt is no part of the text.
    """
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of the n-grams."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def entropies(runner: HFRunner, questions: Mapping[str, str], requests: Sequence[Request]) -> list[float]:
    """`ngram_entropy` of what is written after each request's prompt. questions: as in `written`."""
    return [ngram_entropy(text) for text in written(runner, requests, questions=questions)]


def written(
    runner: HFRunner,
    requests: Sequence[Request],
    tokens: int = TOKENS,
    top_k: int = TOP_K,
    questions: Mapping[str, str] | None = None,
) -> list[str]:
    """`tokens` sampled tokens after each request's prompt, one of the `top_k` likeliest each time.

    The random numbers are the question's own, whatever stands beside it in a batch: base, edited model and IKE draw
    with the same ones. No text ends before its last token, so that lengths do not differ.

    Args:
        questions: a request's prompt → its question, where something stands before the question (IKE's demonstrations).
    """
    own = questions or {}
    model, tokenizer = runner.model, runner.tokenizer
    ids = [prompt_ids(tokenizer, request.prompt, request.chat) for request in requests]
    owners = [request.patch for request in requests]
    texts = [""] * len(requests)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=pad_id(model, tokenizer))
    for batch in together(ids, owners, runner.batch):
        rows = batch.rows
        given, mask = padded([ids[row] for row in rows], pad_id(model, tokenizer), left=True)
        asked = [requests[row].prompt for row in rows]
        seeds = [zlib.crc32(own.get(prompt, prompt).encode()) for prompt in asked]
        draw = _Draw(seeds, tokens, top_k, end_ids(model, tokenizer))
        patches = [owners[row] for row in rows]
        with applied_by_row(model, [patch.delta if patch else None for patch in patches]):
            out = model.generate(
                input_ids=given.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
            )
        for row, line in zip(rows, out[:, given.shape[1] :].tolist(), strict=True):
            texts[row] = str(tokenizer.decode(line, skip_special_tokens=True))
    return texts


class _Draw(LogitsProcessor):
    """Makes greedy decoding sample: of the k likeliest tokens the one of the greatest p / noise, exponential noise."""

    def __init__(self, seeds: Sequence[int], tokens: int, top_k: int, banned: Sequence[int]) -> None:
        self._noise = torch.stack([_noise(seed, tokens, top_k) for seed in seeds])  # [rows, tokens, k]
        self._banned, self._step = list(banned), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [rows, vocabulary]. Returns 0 for the token that is drawn, and the least number for every other."""
        scores = scores.float().clone()
        scores[:, self._banned] = -torch.inf
        best = scores.topk(self._noise.shape[-1])
        chances = best.values.cpu().softmax(-1) / self._noise[:, self._step]
        drawn = best.indices.gather(1, chances.argmax(-1, keepdim=True).to(scores.device))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def _noise(seed: int, tokens: int, top_k: int) -> torch.Tensor:
    """[tokens, k] exponential numbers."""
    return torch.empty(tokens, top_k).exponential_(generator=torch.Generator().manual_seed(seed))
