"""A sheet: one patch's questions and the replies of each mode. Reports are computed from sheets.

Sheets can be stored as JSON, so that an evaluation of many edits can be interrupted and resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from vllm_edit.evaluation.questions import Question
from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.runners.runner import Scored
from vllm_edit.json_value import JSONObject, JSONValue


@dataclass(frozen=True)
class Reply:
    """One mode's reply to one question.

    Attributes:
        text: the freely generated answer; None if the edit was refused or a server would refuse the prompt.
        expected, rival: scores of the question's answers by teacher forcing.
        tokens_added: number of tokens that the mode adds to the prompt.
        reason: why a server would refuse the prompt.
    """

    text: str | None = None
    expected: Scored | None = None
    rival: Scored | None = None
    tokens_added: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Sheet:
    """One patch's questions and the replies of each mode, in the questions' order.

    Attributes:
        edits: (subject, relation) of each edit.
        refused: why the patch was not compiled.
        not_asked: metric → number of questions left out, since another edit of the patch changes their answer.
        method: the editing method of a compiled patch; empty for other patches.
    """

    patch: str
    edits: tuple[tuple[str, str], ...]
    questions: tuple[Question, ...]
    replies: Mapping[Mode, tuple[Reply, ...]]
    refused: str = ""
    not_asked: Mapping[str, int] = field(default_factory=dict)
    method: str = ""

    def as_record(self) -> JSONObject:
        """The sheet as JSON-able values."""
        questions = [asdict(question) for question in self.questions]
        return {
            "patch": self.patch,
            "edits": [list(edit) for edit in self.edits],
            "refused": self.refused,
            "not_asked": dict(self.not_asked),
            "method": self.method,
            "questions": questions,
            "replies": {mode: [asdict(reply) for reply in some] for mode, some in self.replies.items()},
        }

    @classmethod
    def of_record(cls, record: Mapping[str, JSONValue]) -> Sheet:
        """The inverse of `as_record`.

        Raises:
            ValueError: it is no sheet's record.
        """
        return _JSON.validate_python(record)


_JSON = TypeAdapter(Sheet)


def with_numbers(sheets: Sequence[Sheet]) -> list[tuple[Question, Mapping[Mode, Reply]]]:
    """All sheets' questions, each with its sheet's index as `patch`, and its replies by mode."""
    found: list[tuple[Question, Mapping[Mode, Reply]]] = []
    for number, sheet in enumerate(sheets):
        for row, question in enumerate(sheet.questions):
            replies = {mode: some[row] for mode, some in sheet.replies.items()}
            found.append((question.of_patch(number), replies))
    return found
