"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.patch import Split


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    Attributes:
        split: the probes to ask; None for all.
        max_tokens: token limit of an answer; None: 16, or more if an accepted answer is longer
            (`models.lengths.read_of`).
        teacher_forced: also score by teacher forcing.
        latency: number of single requests to time.
        answers: include the raw answers in the report.
    """

    split: Split | None = "gate"
    max_tokens: int | None = None
    teacher_forced: bool = True
    latency: int = 8
    answers: bool = False
