"""HFRunner: evaluation with a Hugging Face model in this process. Deltas are applied in a scope and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax

from vllm_edit.evaluation.runners.runner import Reading, Request, Scored, answer_text, pieces_of
from vllm_edit.models.greedy import batches, continuations, pad_id, padded
from vllm_edit.models.lengths import check_length
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.text import quoted

_IGNORED = -100


class HFRunner:
    """Requests of one patch are answered together, in left-padded batches of similar length of at most `batch` rows.

    read_batch: rows of long texts at once, for each of whose tokens all logits are kept.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 64, read_batch: int = 8) -> None:
        self.model, self.tokenizer, self.batch, self.read_batch = model, tokenizer, batch, read_batch

    @property
    def name(self) -> str:
        return f"hf {str(self.model.dtype).removeprefix('torch.')} {self.model.device.type}"

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        ids = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request in requests]
        self._check_lengths(requests, [len(row) for row in ids])
        answers = [""] * len(requests)
        for rows in _batches(requests, [len(row) for row in ids], self.batch):
            with self._patched(requests[rows[0]]):
                found = continuations(self.model, self.tokenizer, [ids[row] for row in rows], max_tokens)
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer_text(self.tokenizer, answer)
        return answers

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        prompts = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request, _ in requests]
        targets = [answer_ids(self.tokenizer, request.prompt, answer, request.chat) for request, answer in requests]
        lengths = [len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True)]
        self._check_lengths([request for request, _ in requests], [length - 1 for length in lengths])
        scored: dict[int, Scored] = {}
        for rows in _batches([request for request, _ in requests], lengths, self.batch):
            with self._patched(requests[rows[0]][0]):
                results = self._force([prompts[row] for row in rows], [targets[row] for row in rows])
                scored.update(zip(rows, results, strict=True))
        return [scored[row] for row in range(len(requests))]

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        cut = [pieces_of(self.tokenizer, request, self.context) for request in requests]
        pieces = [(row, piece) for row, own in enumerate(cut) for piece in own]
        nll = [0.0] * len(requests)
        owners = [requests[row] for row, _ in pieces]
        for places in _batches(owners, [len(piece) for _, piece in pieces], self.read_batch):
            with self._patched(owners[places[0]]):
                found = self._losses([pieces[place][1] for place in places])
            for place, loss in zip(places, found, strict=True):
                nll[pieces[place][0]] += loss
        counts = [sum(len(piece) - 1 for piece in own) for own in cut]
        return [Reading(loss, count) for loss, count in zip(nll, counts, strict=True)]

    def _check_lengths(self, requests: Sequence[Request], lengths: Sequence[int]) -> None:
        """Raises UnsafeEdit for what the model would read beyond its positions; an engine refuses it too."""
        for request, length in zip(requests, lengths, strict=True):
            check_length(self.model, length, f"the question {quoted(request.prompt)}")

    def _patched(self, request: Request) -> Any:
        return request.patch.delta.apply(self.model) if request.patch else nullcontext()

    @torch.no_grad()
    def _losses(self, pieces: Sequence[Sequence[int]]) -> list[float]:
        """Sum of the negative log-likelihood of each piece's tokens but the first."""
        # Padding is on the right, where causal attention does not see it and no token is predicted.
        ids, mask = padded(pieces, pad_id(self.model, self.tokenizer), left=False)  # [rows, tokens]
        device = self.model.device
        wanted = ids.masked_fill(mask == 0, _IGNORED)[:, 1:].to(device)
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1]
        losses = cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED, reduction="none"
        ).view(wanted.shape)  # [rows, tokens]
        return [float(loss) for loss in losses.sum(dim=1)]

    @torch.no_grad()
    def _force(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        whole = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
        ids, mask = padded(whole, pad_id(self.model, self.tokenizer), left=False)
        device = self.model.device
        logits = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        ).logits  # [rows, tokens, vocabulary]
        results = []
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            wanted = torch.tensor(target, device=logits.device)  # [answer]
            found = logits[row, len(prompt) - 1 : len(prompt) - 1 + len(target)].float()  # [answer, vocabulary]
            nll = -log_softmax(found, dim=-1).gather(1, wanted[:, None]).mean()
            results.append(Scored(float(nll), bool((found.argmax(dim=-1) == wanted).all())))
        return results


def _batches(requests: Sequence[Request], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `size` rows of one patch each, short rows first."""
    by_patch: dict[int, list[int]] = {}
    for row, request in enumerate(requests):
        by_patch.setdefault(id(request.patch), []).append(row)
    for group in by_patch.values():
        for rows in batches([lengths[row] for row in group], size):
            yield [group[row] for row in rows]
