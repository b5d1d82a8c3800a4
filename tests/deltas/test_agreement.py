"""One delta, four ways to answer with it: merged weights, `Delta.apply`, PEFT, and stock vLLM. They must agree.

Log-probabilities of whole vocabularies are compared, the form in which vLLM gives its logits (`prompt_logprobs`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.deltas.agreement import CASES, Adapted, adapted, answer
from tests.deltas.random_deltas import logits, merged
from tests.made_once import MadeOnce

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapted]:
    """Every case's model, delta and adapter; vLLM has not answered."""
    return {name: adapted(case, tmp_path_factory.mktemp("agreement")) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def answered(made_once: MadeOnce) -> Path:
    """The folder of vLLM's answers to the same models and adapters."""
    return made_once("stock-vllm", answer)


def logprobs(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens - 1, vocabulary]: log p(· | tokens up to t), as prompt_logprobs has them."""
    return logits(model, ids)[:-1].log_softmax(-1)


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_merged_weights_applied_delta_and_peft_agree(name: str, cases: dict[str, Adapted]) -> None:
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
def test_stock_vllm_agrees_for_base_and_adapter_in_one_batch(
    name: str, cases: dict[str, Adapted], answered: Path
) -> None:
    case = cases[name]
    model, found = case.model(), load_file(answered / name / case.logprobs.name)
    changed = merged(model, case.delta)
    for index, ids in enumerate(case.prompts):
        base, expected = logprobs(model, ids), logprobs(changed, ids)
        assert difference(base, expected) > 0.1
        assert difference(found[f"base.{index}"], base) < TOLERANCE
        assert difference(found[f"adapter.{index}"], expected) < TOLERANCE
