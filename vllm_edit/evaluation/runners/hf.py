"""HFRunner: evaluation with a Hugging Face model in this process. Deltas are applied in a scope and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import log_softmax

from vllm_edit.evaluation.runners.runner import Request, Scored, answer_text
from vllm_edit.greedy import batches, continuations, pad_id, padded
from vllm_edit.prompting import answer_ids, prompt_ids


class HFRunner:
    """Requests of one patch are answered together, in left-padded batches of similar length of at most `batch` rows."""

    def __init__(self, model: Any, tokenizer: Any, batch: int = 64) -> None:
        self.model, self.tokenizer, self.batch = model, tokenizer, batch

    @property
    def name(self) -> str:
        return f"hf {str(self.model.dtype).removeprefix('torch.')} {self.model.device.type}"

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        ids = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request in requests]
        answers = [""] * len(requests)
        for rows in self._batches(requests, [len(row) for row in ids]):
            with self._patched(requests[rows[0]]):
                found = continuations(self.model, self.tokenizer, [ids[row] for row in rows], max_tokens)
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer_text(self.tokenizer, answer)
        return answers

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        prompts = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request, _ in requests]
        targets = [answer_ids(self.tokenizer, request.prompt, answer, request.chat) for request, answer in requests]
        lengths = [len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True)]
        scored: dict[int, Scored] = {}
        for rows in self._batches([request for request, _ in requests], lengths):
            with self._patched(requests[rows[0]][0]):
                results = self._force([prompts[row] for row in rows], [targets[row] for row in rows])
                scored.update(zip(rows, results, strict=True))
        return [scored[row] for row in range(len(requests))]

    def _patched(self, request: Request) -> Any:
        return request.patch.delta.apply(self.model) if request.patch else nullcontext()

    def _batches(self, requests: Sequence[Request], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers in batches of one patch each, short rows first."""
        by_patch: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            by_patch.setdefault(id(request.patch), []).append(row)
        for group in by_patch.values():
            for rows in batches([lengths[row] for row in group], self.batch):
                yield [group[row] for row in rows]

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
