"""Passes over suffixes give the model's own scores in every family, or report that they cannot."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.deltas.forward import low_rank_forward, routed_forward
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.layout import find_layout
from vllm_edit.models.rows import Batch, Row, answer_scores, run_batch
from vllm_edit.models.suffixes import Suffixes

CPU = torch.device("cpu")


def rows() -> list[Row]:
    """Rows of several lengths: (tokens, first changed token, answer tokens)."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, (length, position, answer) in enumerate([(9, 4, 2), (20, 12, 3), (5, 0, 1), (30, 29, 0), (14, 6, 4)]):
        ids = torch.randint(10, 400, (length + answer,), generator=generator).tolist()
        made.append(Row(number % 3, number, "test", tuple(ids[:length]), position, tuple(ids[length:])))
    return made


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])
@pytest.mark.parametrize("layer", [0, 2])
def test_suffixes_have_the_scores_of_whole_rows(family: str, layer: int) -> None:
    model = tiny_model(family, tiny_tokenizer())
    suffixes = Suffixes(model, rows(), find_layout(model).layers[:layer], 4096)
    assert suffixes.keep(range(5)) is not None
    with torch.no_grad():
        for pack in suffixes.packs(range(5)):
            nll, lead = pack.scores(suffixes.run(pack))
            batch = Batch.of(rows(), pack.rows.tolist(), CPU)
            expected = answer_scores(run_batch(model, batch), batch)
            torch.testing.assert_close(nll, expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(lead, expected[1], rtol=1e-4, atol=1e-4)


def test_each_row_of_a_line_is_run_under_its_own_update() -> None:
    model = tiny_model("llama", tiny_tokenizer())
    layout = find_layout(model)
    module = find_module(model, layout.down[1])
    # No token comes before the first changed token, so there is no leak that suffixes leave out.
    some = [Row(row.group, row.edit, row.form, row.ids, 0, row.answer) for row in rows()]
    suffixes = Suffixes(model, some, layout.layers[:1], 4096)
    assert suffixes.keep(range(5)) is not None
    generator = torch.Generator().manual_seed(1)
    A, B = torch.randn(3, 96, generator=generator) / 10, torch.randn(3, 64, generator=generator)
    (pack,) = suffixes.packs(range(5))
    assert len(pack.owner) < len(some)  # several rows share a line
    groups = torch.tensor([some[row].group for row in pack.rows.tolist()])
    with torch.no_grad():
        with routed_forward(module, A, B, torch.where(pack.owner >= 0, groups[pack.owner], -1)):
            nll, _ = pack.scores(suffixes.run(pack))
        batch = Batch.of(some, pack.rows.tolist(), CPU)
        with low_rank_forward(module, A[groups][:, None], B[groups][:, :, None]):
            expected, _ = answer_scores(run_batch(model, batch), batch)
        without, _ = answer_scores(run_batch(model, batch), batch)
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-4)
    assert ((without - expected).abs() > 0.01)[:4].any()


def test_rows_longer_than_a_sliding_window_are_not_run_as_suffixes() -> None:
    model = tiny_model("mistral", tiny_tokenizer())
    model.config.sliding_window = 8
    model.set_attn_implementation("sdpa")
    short = [row for row in rows() if row.length <= 8]
    layers = find_layout(model).layers[:1]
    assert Suffixes(model, short, layers, 4096).keep(range(len(short))) is not None
    assert Suffixes(model, rows(), layers, 4096).keep(range(5)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_run_as_suffixes_within_its_rounding(dtype: torch.dtype) -> None:
    base = Base.load("atlas", device="cpu")
    model = base.model.to(dtype)
    answer = tuple(base.tokenizer(" Paris and more", add_special_tokens=False)["input_ids"])
    some = [
        Row(number, number, "test", ids, len(ids) // 2, answer)
        for number, text in enumerate(SENTENCES[:4])
        for ids in [tuple(base.tokenizer(text)["input_ids"])]
    ]
    assert Suffixes(model, some, base.layout.layers[:1], 4096).keep(range(len(some))) is not None
    other = tiny_model("mistral", tiny_tokenizer())
    other.config.sliding_window = 8
    other.set_attn_implementation("sdpa")
    assert Suffixes(other.to(dtype), rows(), find_layout(other).layers[:1], 4096).keep(range(5)) is None


def test_a_model_whose_blocks_put_out_more_than_states_is_not_run_as_suffixes() -> None:
    model = tiny_model("gptj", tiny_tokenizer())
    assert Suffixes(model, rows(), find_layout(model).layers[:1], 4096).keep(range(5)) is None
