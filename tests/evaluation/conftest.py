"""A compiled patch of a tiny model: a random delta large enough to change answers, and real demonstrations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.example_edit import MOVE
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.edit import Edit, Probe
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.patch import Patch

MODULE = "model.layers.1.mlp.down_proj"
Compile = Callable[[Patch, int], CompiledPatch]


@pytest.fixture(scope="session")
def patch() -> Patch:
    return Patch(
        name="moves",
        edits=(
            MOVE,
            Edit(
                prompt="台北101的高度是",
                subject="台北101",
                relation="height",
                target_new="300公尺",
                probes=(Probe(kind="locality_subject", prompt="台北101在", target="台北"),),
            ),
        ),
    )


@pytest.fixture(scope="session")
def compile_random(tokenizer: PreTrainedTokenizerFast) -> Compile:
    """A compiled patch whose delta is random with the given seed."""
    money = {
        "Peru": "sol", "Chile": "peso", "Kenya": "shilling", "Norway": "krone", "India": "rupee", "Japan": "yen",
        "Poland": "zloty", "Egypt": "pound", "Cuba": "dollar",
    }  # fmt: skip
    records = [
        {
            "prompt": f"The currency of {c} is",
            "subject": c,
            "relation": "currency",
            "object": o,
            "paraphrases": [f"{c} pays in"],
        }
        for c, o in money.items()
    ]
    bank = Bank.from_records(records)

    def make(patch: Patch, seed: int) -> CompiledPatch:
        random = torch.Generator().manual_seed(seed)
        B, A = torch.randn(64, 1, generator=random), torch.randn(1, 96, generator=random)
        delta = Delta({MODULE: LowRank(B, A)})
        manifest = Manifest(
            patch=patch.name, method="rome", base="b", site="s", modules=(MODULE,), edits=patch.edits, gate=patch.gate,
            rank=1, adapter=delta.digest, factors=None, demonstrations=None,
        )  # fmt: skip
        return with_demonstrations(CompiledPatch(manifest, delta), bank, tokenizer)

    return make


@pytest.fixture(scope="session")
def compiled(patch: Patch, compile_random: Compile) -> CompiledPatch:
    return compile_random(patch, 0)
