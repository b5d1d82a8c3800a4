"""A gate on a pretrained model reads a long answer whole, and a rival late in it.

The model gives the answer by itself and the patch is empty: one small update hardly teaches so many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.real.conftest import MISSING, MODEL
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.edit import Edit
from vllm_edit.evaluation.evaluate import run_gate
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.text.prompts import answer_ids

pytestmark = pytest.mark.slow

PROMPT = "The months in which the Eiffel Tower is open are January,"
MONTHS = "February, March, April, May, June, July, August, September, October, November, December"
MODULE = "model.layers.5.mlp.down_proj"


class Asked(HFRunner):
    """Answers each question once: the patches of this file change nothing, so all answers are the base model's."""

    def __init__(self, base: Base) -> None:
        super().__init__(base.model, base.tokenizer)
        self.known: dict[tuple[str, bool, int], str] = {}

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        keys = [(request.prompt, request.chat, max_tokens) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        self.known |= zip(new, super().generate(list(new.values()), max_tokens), strict=True)
        return [self.known[key] for key in keys]


@pytest.fixture(scope="module")
def base() -> Base:
    if not MODEL.is_dir():
        pytest.skip(MISSING)
    return Base.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def runner(base: Base) -> Asked:
    return Asked(base)


def empty(base: Base, edit: Edit) -> CompiledPatch:
    """A patch that declares the edit and changes nothing."""
    d_out, d_in = find_module(base.model, MODULE).weight.shape
    delta = Delta({MODULE: LowRank(torch.zeros(d_out, 1), torch.zeros(1, d_in))})
    manifest = Manifest(
        patch="months",
        method="rome",
        base="b",
        site="s",
        modules=(MODULE,),
        edits=(edit,),
        rank=1,
        adapter=delta.digest,
    )
    return CompiledPatch(manifest, delta)


@pytest.mark.parametrize(
    ("new", "old", "failing"),
    [
        (MONTHS, "Monday", False),
        (MONTHS.replace("December", "Decembre"), "Monday", True),
        ("December", "Monday", False),
        ("December", "October", True),
    ],
)
def test_a_gate_reads_a_long_answer_whole_and_a_rival_late_in_it(
    base: Base, runner: Asked, new: str, old: str, failing: bool
) -> None:
    edit = Edit(
        prompt=PROMPT,
        subject="Eiffel Tower",
        target_new=new,
        target_new_aliases=(f"{MONTHS} alone",),  # so that as much is read for a short one
        target_true=old,
    )
    assert len(answer_ids(base.tokenizer, PROMPT, MONTHS)) > 20
    assert len(answer_ids(base.tokenizer, PROMPT, MONTHS.split(" October")[0])) >= 12
    _, verdict = run_gate(empty(base, edit), runner)
    assert any(line.startswith("reliability:") for line in verdict.failures) is failing, verdict.failures
