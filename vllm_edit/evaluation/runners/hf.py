"""HFRunner: evaluation with a Hugging Face model in this process. Deltas are applied in a scope and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import log_softmax
from transformers import GenerationConfig

from vllm_edit.evaluation.runners.runner import Request, Scored, answer_text
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
                for row, answer in zip(rows, self._continue([ids[row] for row in rows], max_tokens), strict=True):
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
            group.sort(key=lengths.__getitem__)
            yield from (group[start : start + self.batch] for start in range(0, len(group), self.batch))

    @torch.no_grad()
    def _continue(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy continuations. Padding is on the left; the mask gives every row the positions it has alone."""
        ids, mask = self._padded(prompts, left=True)
        settings = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=self._ends(), pad_token_id=self._pad()
        )
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        continued: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return continued

    @torch.no_grad()
    def _force(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        whole = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
        ids, mask = self._padded(whole, left=False)
        logits = self.model(input_ids=ids, attention_mask=mask).logits  # [rows, tokens, vocabulary]
        results = []
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            wanted = torch.tensor(target, device=logits.device)  # [answer]
            found = logits[row, len(prompt) - 1 : len(prompt) - 1 + len(target)].float()  # [answer, vocabulary]
            nll = -log_softmax(found, dim=-1).gather(1, wanted[:, None]).mean()
            results.append(Scored(float(nll), bool((found.argmax(dim=-1) == wanted).all())))
        return results

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask, [rows, longest] each, on the model's device."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad())
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[number, place] = torch.tensor(row)
            mask[number, place] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _ends(self) -> list[int]:
        """Ids that end a turn: what the model's generation config says, and the tokenizer's end of text."""
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return sorted({token for token in (*ends, self.tokenizer.eos_token_id) if token is not None})

    def _pad(self) -> int:
        """Any id does: it is masked, or cut with what follows the end of the turn."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else next(iter(self._ends()), 0))
