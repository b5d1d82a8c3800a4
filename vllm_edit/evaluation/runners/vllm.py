"""VLLMRunner: evaluation through vLLM, many adapters and base in one batch, as in serving."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import least_rank
from vllm_edit.engine import plugins, request_values
from vllm_edit.engine.arguments import engine_arguments, engine_environment
from vllm_edit.engine.compat import version
from vllm_edit.engine.compat.offline_engine import OfflineEngine
from vllm_edit.engine.model_folder import model_folder
from vllm_edit.errors import Incompatible
from vllm_edit.evaluation.runners.runner import Reading, Request, Scored, answer_text, check_lengths, pieces_of
from vllm_edit.models.penalties import Penalties
from vllm_edit.text.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from vllm_edit.engine.request_values import LoRARequest, RequestOutput, SamplingParams


class VLLMRunner:
    """A `vllm.LLM` with LoRA around exactly `modules`. Use as a context manager: its end stops the engine.

    Args:
        model: folder or hub id. modules: names of the wrapped modules. rank: the largest rank to come.
        slots: distinct adapters in one batch. options: more arguments of `vllm.LLM` (dtype, max_model_len, …).

    Raises:
        Incompatible: the maximum length makes vLLM read texts with other position factors than the editing methods do.
    """

    def __init__(
        self, model: str | Path, modules: Sequence[str], rank: int, *, slots: int = 16, **options: Any
    ) -> None:
        # vLLM's workers load the general plugin too, which fixes the CPU defect: a base request would otherwise be
        # answered with the last slot's patch.
        os.environ.update(engine_environment(os.environ))
        plugins.load()
        self._rank = least_rank(rank)
        defaults = engine_arguments(modules, self._rank, slots)
        self._engine = OfflineEngine(model=str(model), **{**asdict(defaults), **options})
        if problem := self._engine.length_problem:
            self._engine.close()
            raise Incompatible(problem)
        self._llm = self._engine.llm
        self._device = "cpu" if version.is_cpu() else "cuda"
        self.tokenizer = self._engine.tokenizer
        self._files = tempfile.TemporaryDirectory(prefix="vllm-edit-eval-")
        self._adapters: dict[str, LoRARequest] = {}

    def __enter__(self) -> VLLMRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._engine.close()
        self._files.cleanup()

    @property
    def name(self) -> str:
        return f"vllm {str(self._llm.model_config.dtype).removeprefix('torch.')} {self._device}"

    @property
    def context(self) -> int:
        return int(self._llm.model_config.max_model_len)

    @property
    def folder(self) -> Path:
        """The local folder of the model's files."""
        return model_folder(self._llm.model_config.model)

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        """With the penalties of the model's generation_config, as its server answers."""
        prompts = [prompt_ids(self.tokenizer, request.prompt, request.chat) for request in requests]
        check_lengths(self.context, requests, [len(ids) + max_tokens - 1 for ids in prompts])
        penalties = asdict(Penalties.of(self._llm.get_default_sampling_params()))
        outputs = self._run(prompts, requests, request_values.greedy(max_tokens, **penalties))
        found = (output.outputs[0] for output in outputs)
        return [answer_text(self.tokenizer, one.token_ids, request_values.ends_of(one)) for one in found]

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        """Through `prompt_logprobs`: the answer is a part of the prompt, and the one token generated is ignored."""
        prompts, lengths = [], []
        for request, answer in requests:
            target = answer_ids(self.tokenizer, request.prompt, answer, request.chat)
            prompts.append(prompt_ids(self.tokenizer, request.prompt, request.chat) + target)
            lengths.append(len(target))
        check_lengths(self.context, [request for request, _ in requests], [len(ids) for ids in prompts])
        settings = request_values.greedy(1, prompt_logprobs=0)
        scored = []
        for output, length in zip(
            self._run(prompts, [request for request, _ in requests], settings), lengths, strict=True
        ):
            found = request_values.read_tokens(output)[-length:]
            nll = -sum(token.logprob for token in found) / length
            scored.append(Scored(nll, all(token.rank == 1 for token in found)))
        return scored

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Through `prompt_logprobs`; a piece leaves one token of the context, which must be generated."""
        cut = [pieces_of(self.tokenizer, request, self.context - 1) for request in requests]
        owners = [(row, piece) for row, own in enumerate(cut) for piece in own]
        settings = request_values.greedy(1, prompt_logprobs=0)
        nll = [0.0] * len(requests)
        outputs = self._run([piece for _, piece in owners], [requests[row] for row, _ in owners], settings)
        for (row, _), output in zip(owners, outputs, strict=True):
            nll[row] -= sum(token.logprob for token in request_values.read_tokens(output))
        counts = [sum(len(piece) - 1 for piece in own) for own in cut]
        return [Reading(loss, count) for loss, count in zip(nll, counts, strict=True)]

    def _run(
        self, prompts: Sequence[list[int]], requests: Sequence[Request], settings: SamplingParams
    ) -> list[RequestOutput]:
        if not prompts:
            return []
        adapters = [self._adapter(request.patch) if request.patch else None for request in requests]
        given = [request_values.token_prompt(ids) for ids in prompts]
        return self._engine.generate(given, settings, adapters, use_tqdm=False)

    def _adapter(self, patch: CompiledPatch) -> LoRARequest:
        """The patch's LoRARequest; its files are written on first use and stay as long as the runner."""
        name = patch.name
        if name not in self._adapters:
            if patch.manifest.rank > self._rank:
                raise Incompatible(f"{name} has rank {patch.manifest.rank}, this engine was started for {self._rank}")
            folder = patch.delta.save_peft(Path(self._files.name) / name, base_name=self._llm.model_config.model)
            self._adapters[name] = request_values.adapter(name, len(self._adapters) + 1, folder)
        return self._adapters[name]
