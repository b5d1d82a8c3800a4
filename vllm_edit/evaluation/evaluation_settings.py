"""Settings of an evaluation."""

from __future__ import annotations

from typing import ClassVar

from vllm_edit.edit import Split
from vllm_edit.settings import CountFromZero, PositiveCount, Settings


class EvaluationSettings(Settings):
    """Settings of an evaluation."""

    title: ClassVar[str] = "an evaluation"

    split: Split | None = "gate"
    """The probes to ask; None for all."""
    max_tokens: PositiveCount | None = None
    """Token limit of an answer; None: 16, or more if an accepted answer is longer (`models.lengths.read_of`)."""
    teacher_forced: bool = True
    """Also score by teacher forcing."""
    latency: CountFromZero = 8
    """Number of single requests to time."""
    answers: bool = False
    """Include the raw answers in the report."""
