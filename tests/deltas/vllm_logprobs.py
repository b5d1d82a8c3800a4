"""Prompt log-probabilities of tiny models from real vLLM engines, with and without an adapter, as a program.

Run as `python -m tests.deltas.vllm_logprobs JOBS.json`: engines need a process of their own. Each job has `folder`,
`modules` (runtime names), `prompts` (token ids) and `adapters`. Each of those has `adapter`, its folder, and `out`, a
safetensors file that the program writes, with `base.<i>` and `adapter.<i>`, [tokens - 1, vocabulary]: row t is
log p(· | tokens up to t) of prompt i.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm import RequestOutput, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

from vllm_edit.engine.compat.offline_engine import OfflineEngine


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        for adapter, found in zip(job["adapters"], _logprobs(job), strict=True):
            save_file(found, adapter["out"])
        cleanup_dist_env_and_memory()  # the next engine sets up its own process group


def _logprobs(job: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """One engine, wrapped exactly at the modules; the requests of base and of all adapters share its batches."""
    adapters = [
        LoRARequest(f"edit{number}", number, one["adapter"]) for number, one in enumerate(job["adapters"], start=1)
    ]
    engine = OfflineEngine(
        model=job["folder"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_logprobs=-1,
        enable_prefix_caching=False,
        enable_lora=True,
        max_lora_rank=8,
        max_loras=len(adapters) + 1,  # the last slot stays empty: on the CPU a base request gets its adapter
        lora_target_modules=job["modules"],
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    outputs = engine.llm.generate(
        prompts * (1 + len(adapters)),
        SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, detokenize=False),
        lora_request=[asked for asked in (None, *adapters) for _ in prompts],
        use_tqdm=False,  # vLLM's bar divides by the time that went by, which is zero for prompts as short as these
    )
    engine.close()
    rows = [_dense(output) for output in outputs]
    base, *changed = (rows[start : start + len(prompts)] for start in range(0, len(rows), len(prompts)))
    return [_named("base", base) | _named("adapter", found) for found in changed]


def _named(kind: str, found: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{kind}.{index}": rows for index, rows in enumerate(found)}


def _dense(output: RequestOutput) -> torch.Tensor:
    """[tokens - 1, vocabulary] of a request's prompt log-probabilities; the first token has none."""
    rows = [row for row in output.prompt_logprobs or [] if row is not None]
    return torch.tensor([[row[token].logprob for token in range(len(row))] for row in rows])


if __name__ == "__main__":
    main()
