"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.patch import Split


@dataclass(frozen=True)
class Settings:
    """What an evaluation measures.

    split: the probes asked. max_tokens: of a generated answer; None: 16, and more where an accepted answer is longer
    (`models.lengths.read_of`). teacher_forced: also score by forcing. latency: so many answers are asked alone and
    timed. answers: keep the raw texts in the report.
    """

    split: Split | None = "gate"
    max_tokens: int | None = None
    teacher_forced: bool = True
    latency: int = 8
    answers: bool = False
