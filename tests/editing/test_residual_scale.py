"""The unit of a residual is that of the edited module's output."""

from __future__ import annotations

import pytest

from tests.tiny import SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.editing.site.sites import scale_on_texts
from vllm_edit.models.base import Base


def test_a_block_that_scales_its_mlps_output_has_a_larger_unit() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("granite", tokenizer)
    stream = scale_on_texts(Base.of(model, tokenizer), 0, SENTENCES)
    model.model.layers[0].residual_multiplier = 1.0
    unscaled = Base.of(model, tokenizer)
    assert unscaled.layout.gain[0] == 1.0
    model.model.layers[0].residual_multiplier = 0.22
    assert scale_on_texts(unscaled, 0, SENTENCES) / 0.22 == pytest.approx(stream)
