"""The tokens that KnowledgeEditor reads: prompt with its subject, new answer, and old answer."""

from __future__ import annotations

import torch

from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.knowledge_editor.edit_tokens import EditTokens, Part, old_answers
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.greedy import continuations, end_ids
from vllm_edit.text.prompts import answer_ids, prompt_ids


def tokens_of(base: Base, edits: list[Edit]) -> EditTokens:
    return EditTokens.of(base, edits, example_rows(edits, base.tokenizer), 4096)


def test_an_edit_is_its_prompt_new_answer_and_old_answer_and_each_token_has_its_part() -> None:
    base = tiny_base()
    edit = tiny_edits()[0].model_copy(update={"target_true": "people"})
    found = tokens_of(base, [edit, tiny_edits()[2]])
    prompt = prompt_ids(base.tokenizer, edit.prompt)
    new, old = (answer_ids(base.tokenizer, edit.prompt, answer) for answer in ("Paris", "people"))
    length = int(found.lengths[0])
    assert found.ids[0, :length].tolist() == [*prompt, *new, *old]
    parts = found.parts[0, :length].tolist()
    assert parts[len(prompt) :] == [Part.NEW] * len(new) + [Part.OLD] * len(old)
    subject = [token for token, part in zip(prompt, parts, strict=False) if part == Part.SUBJECT]
    assert base.tokenizer.decode(subject).strip() == "France"
    assert set(parts[: len(prompt)]) == {Part.PROMPT, Part.SUBJECT}


def test_an_undeclared_old_answer_is_what_the_base_says() -> None:
    base = tiny_base()
    edits = [tiny_edits()[0], tiny_edits()[4].model_copy(update={"target_true": "Rome"}), tiny_edits()[6]]
    rows = example_rows(edits, base.tokenizer)
    with unchanged(base):
        found = old_answers(base, edits, rows, 4096)
    ends = end_ids(base.model, base.tokenizer)
    for number in (0, 2):
        (said,) = continuations(base.model, base.tokenizer, [rows[number].ids], len(rows[number].answer))
        expected = [token for token in said if token not in ends]
        assert list(found[number]) == expected
        assert expected
    assert list(found[1]) == answer_ids(base.tokenizer, edits[1].prompt, "Rome")


def test_the_tokens_of_an_edit_do_not_depend_on_the_other_edits() -> None:
    base = tiny_base()
    together = tokens_of(base, tiny_edits()[:6])
    for number, edit in enumerate(tiny_edits()[:6]):
        alone = tokens_of(base, [edit])
        length = int(together.lengths[number])
        assert torch.equal(together.ids[number, :length], alone.ids[0])
        assert torch.equal(together.parts[number, :length], alone.parts[0])
