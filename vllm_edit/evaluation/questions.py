"""What an evaluation asks about a patch's edits: the edits themselves and their probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_edit.patch import LOCALITY_KINDS, Edit, Split

RELIABILITY = "reliability"
RELIABILITY_CHAT = "reliability_chat"
CHANGING = (RELIABILITY, RELIABILITY_CHAT, "paraphrase", "reverse", "portability")
KEEPING: tuple[str, ...] = LOCALITY_KINDS


@dataclass(frozen=True)
class Question:
    """One prompt of edit `edit` of patch `patch` (indices), counted under `metric`.

    expected: the answer wanted after the edit; None where only "unchanged" can be judged.
    rival: for the changing metrics the old answer; for the keeping ones the edit's new target, which must not leak.
    tag: the probe's label; its numbers are also reported apart, as `<metric>:<tag>`.
    """

    patch: int
    edit: int
    metric: str
    prompt: str
    chat: bool
    expected: str | None
    rival: str | None
    tag: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names it is counted under."""
        return (self.metric, f"{self.metric}:{self.tag}") if self.tag else (self.metric,)

    @property
    def keeps(self) -> bool:
        """True if the answer must stay what base says."""
        return self.metric in KEEPING


def questions_of(edits: Sequence[Edit], patch: int, *, split: Split | None = "gate", chat: bool) -> list[Question]:
    """All questions about one patch; `chat` says whether the model has a chat template, otherwise chat is left out."""
    asked: list[Question] = []
    for index, edit in enumerate(edits):
        new, old = edit.target_new, edit.target_true
        asked.append(Question(patch, index, RELIABILITY, edit.prompt, False, new, old))
        if chat:
            asked.append(Question(patch, index, RELIABILITY_CHAT, edit.prompt, True, new, old))
        for probe in edit.probes:
            if split not in (None, probe.split) or (probe.chat and not chat):
                continue
            expected: str | None = probe.target
            rival: str | None = None
            if probe.kind in KEEPING:
                rival = new if probe.target != new else None
            elif probe.kind == "paraphrase" and not probe.target:
                expected, rival = new, old
            asked.append(Question(patch, index, probe.kind, probe.prompt, probe.chat, expected, rival, probe.tag))
    return asked
