"""A MEND adapter in stock vLLM: gate, up and down projections of two layers, packed and fused, answer as here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.deltas.agreement import MEND, adapted, answer
from tests.deltas.random_deltas import logits, merged
from tests.made_once import MadeOnce

pytestmark = pytest.mark.slow


@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's LoRA kernels refuse float32 on CUDA")
def test_stock_vllm_answers_as_the_model_with_changed_weights(made_once: MadeOnce, tmp_path: Path) -> None:
    answered = made_once("stock-vllm", answer)
    for name, case in MEND.items():
        made = adapted(case, tmp_path / name)
        model, found = made.model(), load_file(answered / name / made.logprobs.name)
        changed = merged(model, made.delta)
        for index, ids in enumerate(made.prompts):
            before, after = (logits(asked, ids)[:-1].log_softmax(-1) for asked in (model, changed))
            assert (after - before).abs().max() > 0.05
            assert (found[f"base.{index}"] - before).abs().max() < 1e-4
            assert (found[f"adapter.{index}"] - after).abs().max() < 1e-4
