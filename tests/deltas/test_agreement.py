"""One delta, four ways to answer with it: merged weights, `Delta.apply`, PEFT, and stock vLLM. They must agree.

Log-probabilities of whole vocabularies are compared, the form in which vLLM gives its logits (`prompt_logprobs`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.deltas.random_deltas import logits, merged, random_delta
from tests.tiny import save_tiny
from vllm_edit.deltas.delta import Delta

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
PROMPTS = ("The capital of France is Paris. Who wrote Hamlet?", "誰是全世界最帥的人？")
MLP = "model.layers.1.mlp"


@dataclass(frozen=True)
class Case:
    """A family, its delta's rank per module, and the names that vLLM gives those modules."""

    family: str
    ranks: dict[str, int]
    runtime: list[str]


def one_module(family: str, module: str) -> Case:
    return Case(family, {module: 3}, [module])


CASES = {
    "llama": one_module("llama", f"{MLP}.down_proj"),
    "qwen2": one_module("qwen2", f"{MLP}.down_proj"),
    "qwen3": one_module("qwen3", f"{MLP}.down_proj"),
    "gemma": one_module("gemma", f"{MLP}.down_proj"),
    "phi3": one_module("phi3", f"{MLP}.down_proj"),
    "opt": one_module("opt", "model.decoder.layers.1.fc2"),
    # Ranks that differ by module, two of them packed into one by vLLM: rank_pattern and alpha_pattern must be read.
    "llama, three ranks": Case(
        "llama",
        {f"{MLP}.gate_proj": 2, f"{MLP}.up_proj": 5, f"{MLP}.down_proj": 3},
        [f"{MLP}.gate_up_proj", f"{MLP}.down_proj"],
    ),
}


@dataclass(frozen=True)
class Served:
    """A model and its adapter on disk, the delta, the prompts' ids, and vLLM's answers."""

    folder: Path
    adapter: Path
    delta: Delta
    prompts: list[list[int]]
    logprobs: Path

    def model(self) -> nn.Module:
        loaded: nn.Module = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return loaded.eval()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Served]:
    """Every case's model, delta and adapter; vLLM has not answered yet."""
    root = tmp_path_factory.mktemp("agreement")
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    served = {}
    for index, (name, case) in enumerate(CASES.items()):
        folder = save_tiny(case.family, root / f"{index}")
        delta = random_delta(AutoModelForCausalLM.from_pretrained(folder), case.ranks)
        adapter = delta.save_peft(root / f"{index}-adapter", base_name=case.family)
        served[name] = Served(folder, adapter, delta, prompts, root / f"{index}.safetensors")
    return served


@pytest.fixture(scope="module")
def answered(cases: dict[str, Served], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """The cases after stock vLLM, our plugin not loaded, answered all of them in one process of its own."""
    jobs = [
        {
            "folder": str(served.folder),
            "adapter": str(served.adapter),
            "modules": CASES[name].runtime,
            "prompts": served.prompts,
            "out": str(served.logprobs),
        }
        for name, served in cases.items()
    ]
    file = tmp_path_factory.mktemp("jobs") / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    stock = {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-m", "tests.deltas.vllm_logprobs", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | stock, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return cases


def logprobs(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens - 1, vocabulary]: log p(· | tokens up to t), as prompt_logprobs has them."""
    return logits(model, ids)[:-1].log_softmax(-1)


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_merged_weights_applied_delta_and_peft_agree(name: str, cases: dict[str, Served]) -> None:
    case = cases[name]
    model = case.model()
    changed = merged(model, case.delta)
    expected = [logits(changed, ids) for ids in case.prompts]
    base = [logits(model, ids) for ids in case.prompts]
    with case.delta.apply(model):
        applied = [logits(model, ids) for ids in case.prompts]
    with_peft = PeftModel.from_pretrained(model, str(case.adapter))
    for index, ids in enumerate(case.prompts):
        assert difference(base[index], expected[index]) > 0.1
        assert difference(applied[index], expected[index]) < TOLERANCE
        assert difference(logits(with_peft, ids), expected[index]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's LoRA kernels refuse float32 on CUDA")
@pytest.mark.parametrize("name", CASES)
def test_stock_vllm_agrees_for_base_and_adapter_in_one_batch(name: str, answered: dict[str, Served]) -> None:
    case = answered[name]
    model, found = case.model(), load_file(case.logprobs)
    changed = merged(model, case.delta)
    for index, ids in enumerate(case.prompts):
        base, expected = logprobs(model, ids), logprobs(changed, ids)
        assert difference(base, expected) > 0.1
        assert difference(found[f"base.{index}"], base) < TOLERANCE
        assert difference(found[f"adapter.{index}"], expected) < TOLERANCE
