"""An edit survives a cast of its factors; merged into half-precision weights it mostly does not."""

from __future__ import annotations

import json

import pytest
import torch

from tests.deltas.random_deltas import random_part
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.deltas.fidelity import fidelity
from vllm_edit.errors import Incompatible

DOWN = "model.layers.1.mlp.down_proj"


def edit(size: float) -> tuple[Delta, torch.Tensor]:
    """A rank-1 update of `size` relative to its weight, as an edit is, and that weight [64, 96]."""
    part, weight = random_part(64, 96, 1), torch.randn(64, 96, generator=torch.Generator().manual_seed(5))
    scale = size * float(weight.norm()) / part.norm()
    return Delta({DOWN: LowRank(part.B * scale, part.A)}), weight


def test_unmerged_bfloat16_factors_keep_a_small_edit_that_merging_loses() -> None:
    delta, weight = edit(0.003)
    report = fidelity(delta, torch.bfloat16, {DOWN: weight})
    assert 1e-4 < report.factors < 0.01
    assert report.merged is not None
    assert report.merged > 0.2


def test_reported_errors_are_those_of_the_dense_matrices() -> None:
    delta, weight = edit(0.05)
    report, part = fidelity(delta, torch.float16, {DOWN: weight}), delta.parts[DOWN]
    B, A = part.cast(torch.float16)
    update = part.B.double() @ part.A.double()
    unmerged = (B.double() @ A.double() - update).norm() / update.norm()
    served = weight.half()
    kept = (served.double() + update).half().double() - served.double()
    assert report.modules[DOWN].factors == pytest.approx(float(unmerged), rel=1e-6)
    assert report.modules[DOWN].merged == pytest.approx(float((kept - update).norm() / update.norm()), rel=1e-6)


def test_float32_loses_nothing_that_matters_and_a_zero_update_loses_nothing() -> None:
    delta, _ = edit(0.01)
    assert fidelity(delta, torch.float32).factors < 1e-6
    assert fidelity(Delta({DOWN: LowRank(torch.zeros(3, 1), torch.zeros(1, 2))}), torch.bfloat16).factors == 0.0


def test_summary_is_json_with_the_worst_module_on_top() -> None:
    delta, weight = edit(0.003)
    both = Delta({**delta.parts, "other": random_part(8, 8, 2, seed=3)})
    summary = json.loads(json.dumps(fidelity(both, torch.bfloat16, {DOWN: weight}).summary()))
    assert summary["dtype"] == "bfloat16"
    assert summary["factors"] == max(module["factors"] for module in summary["modules"].values())
    assert summary["merged"] == summary["modules"][DOWN]["merged"]
    assert summary["modules"]["other"]["merged"] is None


def test_weight_of_another_shape_is_refused() -> None:
    delta, weight = edit(0.01)
    with pytest.raises(Incompatible, match=r"expected a weight .* \(64, 96\), got \(96, 64\)"):
        fidelity(delta, torch.bfloat16, {DOWN: weight.mT})
