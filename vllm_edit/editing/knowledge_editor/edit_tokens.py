"""The tokens of an edit as KnowledgeEditor reads them: prompt, new answer, old answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from vllm_edit.models.greedy import end_ids
from vllm_edit.models.positions import locate
from vllm_edit.models.rows import Row, greedy
from vllm_edit.text.prompts import answer_ids

if TYPE_CHECKING:
    from vllm_edit.edit import Edit
    from vllm_edit.models.base import Base


class Part(IntEnum):
    """The part of an edit to which a token belongs."""

    PROMPT = 0
    SUBJECT = 1
    NEW = 2
    OLD = 3


@dataclass(frozen=True)
class EditTokens:
    """The tokens of n edits, padded on the right. The first tokens are those of the gradient, in the same places.

    ids: [n, S]. parts: [n, S], a `Part` for each token. lengths: [n], tokens without padding, on the CPU.
    """

    ids: torch.Tensor
    parts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, base: Base, edits: Sequence[Edit], rows: Sequence[Row], tokens: int) -> EditTokens:
        """The tokens of these edits, on the base's device.

        Args:
            base: the model that is edited.
            edits: n edits.
            rows: their prompts with the new answers.
            tokens: maximum number of tokens in one forward pass, padding included.

        Raises:
            EditError: the tokenizer drops an edit's subject.
        """
        ids, parts = [], []
        for edit, row, old in zip(edits, rows, old_answers(base, edits, rows, tokens), strict=True):
            subject = locate(base.tokenizer, edit.prompt, edit.subject)
            prompt = [Part.PROMPT] * len(row.ids)
            for place in range(subject.subject_first, subject.subject_last + 1):
                prompt[place] = Part.SUBJECT
            ids.append(torch.tensor([*row.ids, *row.answer, *old]))
            parts.append(torch.tensor([*prompt, *([Part.NEW] * len(row.answer)), *([Part.OLD] * len(old))]))
        lengths = torch.tensor([len(own) for own in ids])
        padded, part_of = (pad_sequence(lines, batch_first=True).to(base.device) for lines in (ids, parts))
        return cls(padded, part_of, lengths)


def old_answers(base: Base, edits: Sequence[Edit], rows: Sequence[Row], tokens: int) -> list[tuple[int, ...]]:
    """The ids of each edit's old answer: `target_true`, else the base's own continuation of the prompt.

    The continuation is greedy and as long as the new answer, and stops before the end of a turn.
    """
    undeclared = [row for edit, row in zip(edits, rows, strict=True) if not edit.target_true]
    longest = max((len(row.answer) for row in undeclared), default=0)
    continued = iter(greedy(base.model, undeclared, longest, tokens))
    ends, answers = set(end_ids(base.model, base.tokenizer)), list[tuple[int, ...]]()
    for edit, row in zip(edits, rows, strict=True):
        if edit.target_true:
            answers.append(tuple(answer_ids(base.tokenizer, edit.prompt, edit.target_true)))
        else:
            own = next(continued).answer[: len(row.answer)]
            answers.append(own[: next((place for place, token in enumerate(own) if token in ends), len(own))])
    return answers
