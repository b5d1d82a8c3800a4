"""A MEND adapter in stock vLLM: gate, up and down projections of two layers, packed and fused, answer as here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.deltas.random_deltas import logits, merged
from tests.mend.test_mend import network_for
from tests.mend.tiny_training import tiny_edits
from tests.tiny import save_tiny
from vllm_edit.editing.hypernetworks.edits import edit_deltas
from vllm_edit.editing.mend.mend_settings import MendSettings
from vllm_edit.engine.compat import wrapped
from vllm_edit.models.base import Base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama", "phi3")
PROMPTS = ("The capital of France is Paris. Who wrote Hamlet?", "誰是全世界最帥的人？")
RANK = 8  # of the program's engine


@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's LoRA kernels refuse float32 on CUDA")
def test_stock_vllm_answers_as_the_model_with_changed_weights(tmp_path: Path) -> None:
    jobs, expected = [], {}
    for family in FAMILIES:
        folder = save_tiny(family, tmp_path / family)
        base = Base.load(folder)
        network = network_for(base)
        (made,) = edit_deltas(base, network, tiny_edits()[:1], MendSettings(margin=None))
        delta, _ = made.delta.truncate(RANK)
        prompts = [AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"] for prompt in PROMPTS]
        job = {
            "folder": str(folder),
            "adapter": str(delta.save_peft(tmp_path / f"{family}-adapter", base_name=family)),
            "modules": wrapped.candidates(network.modules_edited),
            "prompts": prompts,
            "out": str(tmp_path / f"{family}.safetensors"),
        }
        jobs.append(job)
        changed = merged(base.model, delta)
        for index, ids in enumerate(prompts):
            before, after = (logits(model, ids)[:-1].log_softmax(-1) for model in (base.model, changed))
            assert (after - before).abs().max() > 0.05
            expected[family, index] = before, after
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    stock = {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-m", "tests.deltas.vllm_logprobs", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | stock, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for family in FAMILIES:
        found = load_file(tmp_path / f"{family}.safetensors")
        for index in range(len(PROMPTS)):
            before, after = expected[family, index]
            assert (found[f"base.{index}"] - before).abs().max() < 1e-4
            assert (found[f"adapter.{index}"] - after).abs().max() < 1e-4
