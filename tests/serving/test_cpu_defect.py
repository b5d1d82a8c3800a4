"""Base answers a base request in one batch with patched requests: the CPU ops, before and after the cure."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vllm_edit.engine.compat.cpu_lora_mask import is_defective, masked

pytestmark = pytest.mark.slow

# In a process of its own: the cure changes vLLM's modules permanently, so what is measured without it comes first. Most
# of the process's time goes into importing vLLM. The wrapper is the one that the engine calls.
ENGINE_PATH = """
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm_edit.engine.compat import cpu_lora_mask
def results():
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=4, max_batches=4, device="cpu")
    found = []
    for prefill in (False, True):
        # Four requests: adapter 1, base, adapter 2, base; both adapter slots are taken.
        mapping = LoRAMapping(index_mapping=(1, 0, 2, 0), prompt_mapping=(1, 0, 2, 0), is_prefill=prefill)
        wrapper.update_metadata(mapping, [1, 2], 2, 100)
        y, x = torch.zeros(4, 3), torch.ones(4, 5)
        A, B = (torch.ones(2, 1, 2, 5),), (torch.ones(2, 1, 3, 2),)
        wrapper.add_lora_linear(y, x, A, B, 1.0, (3,))
        found.append(y[:, 0].tolist())
    return found


as_installed = results()
assert cpu_lora_mask.cure() and not cpu_lora_mask.cure()
print({"as installed": as_installed, "cured": results()})
"""


@pytest.fixture(scope="module")
def results() -> dict[str, list[list[float]]]:
    """The first number of each request's output, by state of vLLM, while decoding and in a prefill."""
    done = subprocess.run([sys.executable, "-c", ENGINE_PATH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[list[float]]] = eval(done.stdout.strip().splitlines()[-1])
    return found


def test_without_the_cure_base_tokens_get_the_last_slots_adapter(results: dict[str, list[list[float]]]) -> None:
    assert results["as installed"] == [[10.0] * 4] * 2, "upstream is fixed: delete compat/cpu_lora_mask.py"


def test_with_the_cure_only_tokens_with_an_adapter_change(results: dict[str, list[list[float]]]) -> None:
    assert results["cured"] == [[10.0, 0.0, 10.0, 0.0]] * 2


def defective(inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor) -> None:
    output += torch.einsum("bi,boi->bo", inputs, weights[indices].squeeze(1))


def test_probe_distinguishes_a_defective_op_from_a_masked_op() -> None:
    assert is_defective(defective)
    assert not is_defective(masked(defective))


def test_mask_leaves_tokens_with_an_adapter_exactly_alone() -> None:
    inputs, weights = torch.randn(4, 5), torch.randn(3, 1, 2, 5)
    indices = torch.tensor([2, -1, 0, 1])
    plain, cured = torch.zeros(4, 2), torch.zeros(4, 2)
    defective(inputs, weights, plain, indices)
    masked(defective)(inputs, weights, cured, indices)
    present = indices >= 0
    assert torch.equal(cured[present], plain[present])
    assert not cured[~present].any()
