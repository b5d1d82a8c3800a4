"""What an answer says about an edit: it followed, stayed, missed or was damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from vllm_edit.evaluation.questions import KEEPING
from vllm_edit.evaluation.report import Answer, Mode
from vllm_edit.text.first_line import first_line

State = Literal["before", "followed", "stayed", "missed", "damaged"]
STATES: Mapping[State, str] = MappingProxyType(
    {
        "followed": "changed, as the edit asks",
        "stayed": "unchanged, as it should be",
        "missed": "not the answer that follows from the edit",
        "damaged": "changed, though the edit does not concern it",
    }
)


@dataclass(frozen=True)
class Cell:
    """An answer's first line, and what it means."""

    text: str
    state: State


def cell(answer: Answer, mode: Mode) -> Cell | None:
    """The answer of a mode; None if a server would refuse the prompt, or the edit was refused.

    The base's answer is the answer before the edit. Any other answer is right if the new fact follows; of a keeping
    question, if it is what base says.
    """
    if mode not in answer.texts:
        return None
    text = first_line(answer.texts[mode])
    if mode == "base":
        return Cell(text, "before")
    states: tuple[State, State] = ("stayed", "damaged") if answer.metric in KEEPING else ("followed", "missed")
    return Cell(text, states[not answer.right[mode]])
