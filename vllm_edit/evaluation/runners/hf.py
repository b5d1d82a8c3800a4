"""HFRunner: evaluation with a Hugging Face model in this process. Deltas are applied temporarily."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from vllm_edit.deltas.by_row import applied_by_row
from vllm_edit.evaluation.runners.batching import together
from vllm_edit.evaluation.runners.runner import Reading, Request, Scored, answer_text, check_lengths, pieces_of
from vllm_edit.models.causal_lm import causal_lm
from vllm_edit.models.forced import Forced, shared_texts, token_scores
from vllm_edit.models.greedy import continuations, end_ids, pad_id
from vllm_edit.models.lengths import positions_of
from vllm_edit.models.shared_prefix import shares
from vllm_edit.text.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_LOGITS = 2**27
"""Maximum number of logits of one batch: half a GiB in float32."""

_CONTEXT = 2048
"""The context of a model whose config has no limit."""


class HFRunner:
    """Answers the questions of `evaluate` with a Hugging Face model in this process.

    Requests of similar length are answered in one batch; each row has its own low-rank update. A common beginning of
    many requests of one patch (an IKE prefix) is read once.

    Example:
        >>> report = evaluate(compiled, HFRunner(base.model, base.tokenizer))
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int = 64) -> None:
        """A runner for a loaded model.

        Args:
            model: a causal language model of transformers, in eval mode.
            tokenizer: its fast tokenizer.
            batch: maximum number of rows in one forward pass.
        """
        self.model, self.tokenizer, self.batch = causal_lm(model), tokenizer, batch

    @property
    def name(self) -> str:
        """Engine, precision and device, for the report."""
        return f"hf {str(self.model.dtype).removeprefix('torch.')} {self.model.device.type}"

    @property
    def context(self) -> int:
        """The largest number of tokens of prompt and answer together."""
        most = positions_of(self.model)
        return _CONTEXT if most is None else most

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        """Greedy answers up to the end of the turn, without special tokens.

        Args:
            requests: the prompts, each with its patch.
            max_tokens: maximum number of tokens in an answer.

        Returns:
            One answer for each request, in their order.

        Raises:
            UnsafeEdit: a prompt with its answer is longer than the model's context.
        """
        ids = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request in requests]
        check_lengths(positions_of(self.model), requests, [len(row) + max_tokens - 1 for row in ids])
        answers, ends = [""] * len(requests), end_ids(self.model, self.tokenizer)
        owners = [request.patch for request in requests]
        own = self._own([len(row) - 1 for row in ids], max_tokens)
        for batch in together(ids, owners, self.batch, own=own):
            with self._patched(requests, batch.rows):
                prompts = [ids[row] for row in batch.rows]
                found = continuations(self.model, self.tokenizer, prompts, max_tokens, batch.shared)
            for row, answer in zip(batch.rows, found, strict=True):
                answers[row] = answer_text(self.tokenizer, answer, ends)
        return answers

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        """Teacher forcing: each answer is forced after its prompt.

        Args:
            requests: the prompts, each with its patch, and the answers.

        Returns:
            For each request the answer's mean NLL in nats per token, and whether every token is the most likely.

        Raises:
            UnsafeEdit: a prompt with its answer is longer than the model's context.
        """
        asked = [request for request, _ in requests]
        prompts = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request in asked]
        answers = [answer_ids(self.tokenizer, request.prompt, answer, request.chat) for request, answer in requests]
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, answers, strict=True)]
        check_lengths(positions_of(self.model), asked, lengths)
        texts, places = shared_texts(prompts, answers, [request.patch for request in asked])
        request_of = {text: request for request, (text, _) in zip(asked, places, strict=True)}
        found = self._token_scores(texts, [request_of[text] for text in range(len(texts))])
        scored = []
        for text, part in places:
            nll, likeliest = (scores[part] for scores in found[text])
            scored.append(Scored(float(nll.mean()), bool(likeliest.all())))
        return scored

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Read each prompt as ordinary text, in pieces where it is longer than the context.

        Args:
            requests: the texts, each with its patch.

        Returns:
            For each request the NLL in nats, summed over its predicted tokens, and their number.
        """
        cut = [pieces_of(self.tokenizer, request, self.context) for request in requests]
        pieces = [(row, piece) for row, own in enumerate(cut) for piece in own]
        # The last token is predicted and never read.
        texts = [Forced(piece[:-1], range(len(piece) - 1), piece[1:]) for _, piece in pieces]
        nll = [0.0] * len(requests)
        found = self._token_scores(texts, [requests[row] for row, _ in pieces])
        for (row, _), (losses, _) in zip(pieces, found, strict=True):
            nll[row] += float(losses.double().sum())
        counts = [sum(len(piece) - 1 for piece in own) for own in cut]
        return [Reading(loss, count) for loss, count in zip(nll, counts, strict=True)]

    def _token_scores(
        self, texts: Sequence[Forced], requests: Sequence[Request]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`token_scores` of each text, under the patch of its request."""
        ids, weights = [text.ids for text in texts], [len(text.tokens) for text in texts]
        own = self._own([text.places[0] for text in texts], max(map(len, ids), default=0))
        most = _LOGITS // self.model.get_output_embeddings().weight.shape[0]
        pad = pad_id(self.model, self.tokenizer)
        scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        owners = [request.patch for request in requests]
        for batch in together(ids, owners, self.batch, weights=weights, most=most, own=own):
            with self._patched(requests, batch.rows):
                chosen = [texts[row] for row in batch.rows]
                found = token_scores(self.model, pad, chosen, batch.shared)
            scores |= zip(batch.rows, found, strict=True)
        return [scores[row] for row in range(len(texts))]

    def _own(self, most: Sequence[int], further: int) -> Sequence[int] | None:
        """Number of first tokens of each text that may be shared; None if this model does not support sharing."""
        return most if shares(self.model, max(most, default=0) + 1 + further) else None

    def _patched(self, requests: Sequence[Request], rows: Sequence[int]) -> AbstractContextManager[None]:
        """The patch of each row's request, in the order of the rows."""
        patches = [requests[row].patch for row in rows]
        return applied_by_row(self.model, [patch.delta if patch else None for patch in patches])
