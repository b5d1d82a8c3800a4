"""Tiny models with an adapter each, and stock vLLM's answers to them.

One process of vLLM answers for all tests that compare with it: it takes longer to import than to answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.deltas.random_deltas import random_delta
from tests.mend.test_mend import network_for
from tests.mend.tiny_training import tiny_edits
from tests.tiny import save_tiny
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.hypernetworks.edits import edit_deltas
from vllm_edit.editing.mend.mend_settings import MendSettings
from vllm_edit.engine.compat import wrapped
from vllm_edit.models.base import Base

ROOT = Path(__file__).parents[2]
PROMPTS = ("The capital of France is Paris. Who wrote Hamlet?", "誰是全世界最帥的人？")
MLP = "model.layers.1.mlp"
RANK = 8  # of the program's engines


@dataclass(frozen=True)
class Case:
    """A family, a delta for its tiny model, and the names that vLLM gives the delta's modules."""

    family: str
    delta: Callable[[Path], Delta]
    runtime: list[str]


def at(family: str, ranks: dict[str, int], runtime: list[str] | None = None) -> Case:
    """A random delta with a rank per module."""

    def delta(folder: Path) -> Delta:
        return random_delta(AutoModelForCausalLM.from_pretrained(folder), ranks)

    return Case(family, delta, runtime or [*ranks])


def mend_delta(folder: Path) -> Delta:
    """An edit by an untrained network: gate, up and down projections of two layers."""
    base = Base.load(folder)
    (made,) = edit_deltas(base, network_for(base), tiny_edits()[:1], MendSettings(margin=None))
    delta, _ = made.delta.truncate(RANK)
    return delta


def of_mend(family: str, *projections: str) -> Case:
    modules = [f"model.layers.{layer}.mlp.{name}" for layer in (1, 2) for name in projections]
    return Case(family, mend_delta, wrapped.candidates(modules))


CASES = {
    "llama": at("llama", {f"{MLP}.down_proj": 3}),
    "qwen2": at("qwen2", {f"{MLP}.down_proj": 3}),
    "qwen3": at("qwen3", {f"{MLP}.down_proj": 3}),
    "gemma": at("gemma", {f"{MLP}.down_proj": 3}),
    "phi3": at("phi3", {f"{MLP}.down_proj": 3}),
    "opt": at("opt", {"model.decoder.layers.1.fc2": 3}),
    # Ranks that differ by module, two of them packed into one by vLLM: rank_pattern and alpha_pattern must be read.
    "llama, three ranks": at(
        "llama",
        {f"{MLP}.gate_proj": 2, f"{MLP}.up_proj": 5, f"{MLP}.down_proj": 3},
        [f"{MLP}.gate_up_proj", f"{MLP}.down_proj"],
    ),
}
MEND = {
    "llama, MEND": of_mend("llama", "gate_proj", "up_proj", "down_proj"),
    "phi3, MEND": of_mend("phi3", "gate_up_proj", "down_proj"),
}
ENGINES = (
    ("llama",),
    ("qwen2",),
    ("qwen3",),
    ("gemma",),
    ("opt",),
    ("phi3", "phi3, MEND"),
    ("llama, three ranks", "llama, MEND"),
)
"""Cases of one model whose adapters share an engine, wrapped at the modules of all of them."""


@dataclass(frozen=True)
class Adapted:
    """A model and its adapter on disk, the delta, the prompts' ids, and the file of vLLM's answers."""

    folder: Path
    adapter: Path
    delta: Delta
    prompts: list[list[int]]
    logprobs: Path

    def model(self) -> nn.Module:
        loaded: nn.Module = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return loaded.eval()


def adapted(case: Case, root: Path) -> Adapted:
    """The case's model and adapter in the folder `root`."""
    folder = save_tiny(case.family, root / "model")
    delta = case.delta(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    adapter = delta.save_peft(root / "adapter", base_name=case.family)
    return Adapted(folder, adapter, delta, prompts, root / "logprobs.safetensors")


def answer(root: Path) -> None:
    """Let stock vLLM, without our plugin, answer all cases of `CASES` and `MEND`: folders of those names in `root`."""
    jobs = []
    for names in ENGINES:
        cases = [(CASES | MEND)[name] for name in names]
        for name in names:
            (root / name).mkdir()
        made = [adapted(case, root / name) for case, name in zip(cases, names, strict=True)]
        jobs.append(
            {
                "folder": str(made[0].folder),
                "modules": list(dict.fromkeys(module for case in cases for module in case.runtime)),
                "prompts": made[0].prompts,
                "adapters": [{"adapter": str(one.adapter), "out": str(one.logprobs)} for one in made],
            }
        )
    file = root / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    stock = {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-m", "tests.deltas.vllm_logprobs", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | stock, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
