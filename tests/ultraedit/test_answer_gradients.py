"""Gradients at the tokens that predict the answer, after the plain prompt and as a chat turn."""

from __future__ import annotations

import torch

from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.gradients import token_gradients
from vllm_edit.editing.ultraedit.answer_gradients import answer_gradients


def test_they_are_those_of_the_tokens_that_predict_the_answer_in_both_forms() -> None:
    base, edits = tiny_base(), tiny_edits()[:3]
    edits[1] = edits[1].model_copy(update={"target_new": "Paris people French"})
    modules = base.layout.down[-2:]
    found = answer_gradients(base, modules, edits, 4096)
    assert tuple(found) == tuple(modules)
    forms = [example_rows(edits, base.tokenizer, chat) for chat in (False, True)]
    longest = [max(len(row.answer) for row in rows) for rows in forms]
    assert longest[0] > 1
    for name in modules:
        start = 0
        for rows, width in zip(forms, longest, strict=True):
            whole = token_gradients(base.model, [name], rows, 4096)[name]
            for row in rows:
                first, last = len(row.ids) - 1, len(row.ids) - 1 + len(row.answer)
                own = slice(start, start + len(row.answer))
                torch.testing.assert_close(found[name].inputs[row.edit, own], whole.inputs[row.edit, first:last])
                torch.testing.assert_close(found[name].outputs[row.edit, own], whole.outputs[row.edit, first:last])
                assert found[name].counted[row.edit, own].all()
                assert not found[name].counted[row.edit, start + len(row.answer) : start + width].any()
            start += width
        assert found[name].inputs.shape[1] == start
