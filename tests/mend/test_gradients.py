"""Token pairs are the gradient: their outer products add up to what autograd gives for the weights."""

from __future__ import annotations

import pytest
import torch

from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.edited_matrices import last_matrices
from vllm_edit.editing.hypernetworks.gradients import token_gradients
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.rows import Batch, Row, answer_scores, run_batch

ROWS = 3


def rows_of(base: Base) -> list[Row]:
    return example_rows(tiny_edits()[:ROWS], base.tokenizer)


def autograd(base: Base, row: Row, name: str) -> torch.Tensor:
    """∇_W of one row's mean NLL, [d_out, d_in]."""
    weight = linear_weight(base.model.get_submodule(name))
    parameter = base.model.get_submodule(name).weight
    nll, _ = answer_scores(run_batch(base.model, batch := Batch.of([row], [0], base.device)), batch)
    (gradient,) = torch.autograd.grad(nll.sum(), [parameter])
    return gradient if parameter.shape == weight.shape and parameter is weight else gradient.mT


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt_neox", "opt", "gpt2"])
def test_outer_products_add_up_to_the_weights_gradient(family: str) -> None:
    base = tiny_base(family)
    modules = last_matrices(base, 2)
    with unchanged(base):
        found = token_gradients(base.model, modules, rows_of(base), tokens=4096)
    for name in modules:
        dense = found[name].dense()
        for number, row in enumerate(rows_of(base)):
            expected = autograd(base, row, name)
            assert expected.norm() > 0
            assert (dense[number] - expected).norm() < 1e-5 * expected.norm()


def test_batches_of_any_size_give_the_same_pairs_and_padding_counts_nothing() -> None:
    base = tiny_base()
    modules, rows = last_matrices(base, 1), rows_of(base)
    together, apart = (token_gradients(base.model, modules, rows, tokens=tokens) for tokens in (4096, 1))
    for name in modules:
        assert torch.allclose(together[name].inputs, apart[name].inputs, atol=1e-5)
        assert torch.allclose(together[name].outputs, apart[name].outputs, atol=1e-6)
        assert together[name].counted.tolist() == apart[name].counted.tolist()
        for number, row in enumerate(rows):
            assert not together[name].counted[number, row.length :].any()


def test_in_the_last_layer_only_the_tokens_that_predict_the_answer_count() -> None:
    base = tiny_base()
    rows = rows_of(base)
    found = token_gradients(base.model, [base.layout.down[-1]], rows, tokens=4096)[base.layout.down[-1]]
    for number, row in enumerate(rows):
        places = found.counted[number].nonzero().flatten().tolist()
        assert places == list(range(len(row.ids) - 1, row.length))


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("llama", ("gate_proj", "up_proj", "down_proj")),
        ("phi3", ("gate_up_proj", "down_proj")),
        ("gpt_neox", ("dense_h_to_4h", "dense_4h_to_h")),
        ("opt", ("fc1", "fc2")),
        ("gpt2", ("c_fc", "c_proj")),
    ],
)
def test_an_mlps_matrices_are_found_in_the_order_in_which_they_run(family: str, ends: tuple[str, ...]) -> None:
    base = tiny_base(family)
    for block, down in zip(base.layout.matrices, base.layout.down, strict=True):
        assert tuple(name.rpartition(".")[2] for name in block) == ends
        assert block[-1] == down
