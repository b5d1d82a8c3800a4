"""Gradient statistics: the mean and variance of counted tokens; they and their digest outlive a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.mend.tiny_training import tiny_base, tiny_edits
from tests.ultraedit.tiny_statistics import made_for
from vllm_edit.artefacts.site import Site
from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.site_tensors import site_tensors_of
from vllm_edit.editing.ultraedit.gradient_site import gradient_site
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store


def test_padding_is_not_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(6, 4, width, generator=generator) for width in (5, 3))
    inputs[:, 2:] = outputs[:, 2:] = 0
    own = GradientStatistics.of({"m": TokenGradients.of(inputs, outputs)}).by_module["m"]
    tokens = inputs[:, :2].reshape(-1, 5).double()
    assert (own.count, own.shape) == (12, (3, 5))
    torch.testing.assert_close(own.inputs.mean, tokens.mean(0))
    assert own.input_energy == pytest.approx(float(tokens.square().sum(1).mean()))


def test_a_store_gives_back_the_same_statistics_under_their_digest(tmp_path: Path) -> None:
    made = made_for(tiny_base())
    store = Store.create(tmp_path, made.site, made.statistics.tensors())
    again = Store.open(str(tmp_path))
    found = site_tensors_of(again.site(), again.site_tensors())
    assert isinstance(found, GradientStatistics)
    assert found.digest == made.statistics.digest == again.site().statistics == again.site().tensors_digest
    assert problems_of(store) == []
    assert (tmp_path / "statistics" / f"{found.digest}.safetensors").exists()
    with pytest.raises(EditError, match=r"expected a store with a second moment, .* are of kind 'gradient"):
        again.moment()


def test_statistics_of_other_edits_are_another_site() -> None:
    base = tiny_base()
    made, same, other = made_for(base), made_for(base), gradient_site(base, tiny_edits()[:10], max_rank=64)
    assert made.site.digest == same.site.digest
    assert made.site.digest != other.site.digest


def test_too_few_edits_foreign_tensors_and_a_site_of_two_kinds_are_refused_in_one_line(tmp_path: Path) -> None:
    base = tiny_base()
    made, other = made_for(base), gradient_site(base, tiny_edits()[:10])
    with pytest.raises(EditError, match="at least 8 edits, got 3: give --edits") as few:
        gradient_site(base, tiny_edits()[:3])
    with pytest.raises(EditError, match="expected the gradient statistics with digest") as wrong:
        Store.create(tmp_path / "s", made.site, other.statistics.tensors())
    with pytest.raises(Incompatible, match="expected gradient statistics of another") as missing:
        GradientStatistics.from_tensors(["another"], made.statistics.tensors())
    assert all("\n" not in str(caught.value) for caught in (few, wrong, missing))
    with pytest.raises(ValueError, match="a network or gradient statistics, not both"):
        Site.model_validate(made.site.model_dump() | {"network": "0" * 32})
