"""VLLMRunner on a real engine agrees with the Hugging Face runner: several adapters and base in one mixed batch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny

pytestmark = pytest.mark.slow

# vLLM starts its workers with spawn, so the engine lives in a script of its own.
SCRIPT = """
import multiprocessing
import sys
import threading
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.evaluation.runners.vllm import VLLMRunner
from vllm_edit.edit import Edit
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest

MODULE = "model.layers.1.mlp.down_proj"


def compiled(seed):
    random = torch.Generator().manual_seed(seed)
    delta = Delta({MODULE: LowRank(torch.randn(64, 1, generator=random), torch.randn(1, 96, generator=random))})
    edit = Edit(prompt="The capital of France is", subject="France", target_new="Rome")
    manifest = Manifest(patch=f"p{seed}", method="rome", base="b", site="s", modules=(MODULE,), edits=(edit,), rank=1,
                        adapter=delta.digest, factors=None, demonstrations=None)
    return CompiledPatch(manifest, delta)


def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = HFRunner(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer)
    patches = [None, *map(compiled, range(4))]
    prompts = ["The capital of France is", "誰是美國總統？", "x"]
    requests = [Request(prompt, chat, patch) for prompt in prompts for chat in (False, True) for patch in patches]
    scored = [(request, answer) for request in requests for answer in ("Rome", "李宏毅")]
    with VLLMRunner(folder, [MODULE], 1, slots=4, dtype="float32", enforce_eager=True, max_model_len=256) as runner:
        assert runner.context == 256 and runner.folder.samefile(folder)
        assert runner.generate(requests, 6) == reference.generate(requests, 6)
        assert len({tuple(runner.generate(requests[start::5], 6)) for start in range(5)}) == 5
        for found, expected in zip(runner.score(scored), reference.score(scored), strict=True):
            assert abs(found.nll - expected.nll) < 1e-3 and found.argmax == expected.argmax
        read = [Request(prompt, patch=patch) for prompt in (*prompts, "x " * 400) for patch in patches]
        for found, expected in zip(runner.read(read[:-5]), reference.read(read[:-5]), strict=True):
            assert abs(found.nll - expected.nll) < 1e-3 * expected.tokens and found.tokens == expected.tokens
        cut = runner.read(read[-5:])  # in pieces that leave room for the one token that vLLM must generate
        assert all(reading.tokens > runner.context and reading.nll > 0 for reading in cut)
    assert multiprocessing.active_children() == []
    # tqdm's, which transformers starts, may stay: it waits in Python, where a finalising interpreter can stop it
    assert {thread.name for thread in threading.enumerate() if thread.daemon} <= {"tqdm_monitor"}
    print("agreed")


if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's CUDA LoRA kernels refuse float32, which this compares in")
def test_vllm_and_hugging_face_answer_and_score_alike(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    config = folder / "generation_config.json"  # one rule for both: that of a server
    config.write_text(json.dumps(json.loads(config.read_text()) | {"repetition_penalty": 1.5, "num_beams": 2}))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    ran = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, f"exit code {ran.returncode}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    assert "agreed\n" in ran.stdout
