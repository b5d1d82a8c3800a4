"""Rows become batches that the model can read, or an error that names the edit."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from vllm_edit.errors import UnsafeEdit
from vllm_edit.models.lengths import positions_of
from vllm_edit.models.rows import Row, batches, leads


def row(edit: int, length: int, answer: int) -> Row:
    return Row(edit, edit, "plain", tuple(range(3, 3 + length)), length - 1, tuple(range(9, 9 + answer)))


def test_the_longest_rows_come_first_and_no_batch_is_over_its_tokens(llama: PreTrainedModel) -> None:
    rows = [row(0, 4, 1), row(1, 9, 3), row(2, 5, 1), row(3, 4, 2)]
    made = batches(llama, rows, range(4), 11)
    assert [batch.rows.tolist() for batch in made] == [[1], [2, 3], [0]]
    assert [tuple(batch.input_ids.shape) for batch in made] == [(1, 11), (2, 5), (1, 4)]
    assert batches(llama, rows, [], 11) == []


def test_a_full_batch_ends_where_rows_would_be_mostly_padding(llama: PreTrainedModel) -> None:
    rows = [row(0, 100, 1)] * 12 + [row(0, 75, 1)] * 2 + [row(0, 74, 1)] * 3 + [row(0, 20, 1)] * 2
    shapes = [tuple(batch.input_ids.shape) for batch in batches(llama, rows, range(len(rows)), 8192)]
    assert shapes == [(14, 100), (5, 74)]  # 370 tokens do not fill a batch: the short rows stay with the others
    assert [len(batch.rows) for batch in batches(llama, rows, range(len(rows)), 1000)] == [10, 9]


def test_a_row_of_all_positions_is_read_and_one_of_more_is_refused_with_its_edit(llama: PreTrainedModel) -> None:
    most = positions_of(llama)
    assert most == 256
    # The answer's last token is never read.
    assert leads(llama, [row(0, 4, 1), row(7, most - 2, 3)], 1000).isfinite().all()
    message = r"edit 7 \(plain\): a prompt with its context and answer has 257 tokens; the model reads at most 256"
    with pytest.raises(UnsafeEdit, match=message):
        leads(llama, [row(0, 4, 1), row(7, most - 1, 3)], 1000)
