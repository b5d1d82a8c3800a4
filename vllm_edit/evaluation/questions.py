"""The questions of an evaluation: a patch's edits and their probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vllm_edit.edit import LOCALITY_KINDS, Edit, Probe, Split
from vllm_edit.text.matching import normalise
from vllm_edit.text.subjects import Subjects

RELIABILITY = "reliability"
RELIABILITY_CHAT = "reliability_chat"
CHANGING = (RELIABILITY, RELIABILITY_CHAT, "paraphrase", "reverse", "portability")
KEEPING: tuple[str, ...] = LOCALITY_KINDS
DEFAULT = "default"
"""Tag of probes that a gate adds to edits without keeping probes: facts that the base is known to give."""


@dataclass(frozen=True)
class Question:
    """One prompt of edit `edit` of patch `patch` (indices), counted under `metric`.

    Attributes:
        expected: the answer wanted after the edit; None where only "unchanged" can be judged.
        rival: for changing metrics the old answer; for keeping metrics the edit's new target, which must not leak.
        expected_aliases, rival_aliases: their other names. All names count in judging; teacher forcing uses the first.
        tag: the probe's label; its measures are also reported separately, as `<metric>:<tag>`.
    """

    patch: int
    edit: int
    metric: str
    prompt: str
    chat: bool
    expected: str | None
    rival: str | None
    tag: str = ""
    expected_aliases: tuple[str, ...] = ()
    rival_aliases: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """All names of the expected answer; empty without an expected answer."""
        return (self.expected, *self.expected_aliases) if self.expected else ()

    @property
    def rivals(self) -> tuple[str, ...]:
        """All names of the rival; empty without a rival."""
        return (self.rival, *self.rival_aliases) if self.rival else ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that count the question."""
        return (self.metric, f"{self.metric}:{self.tag}") if self.tag else (self.metric,)

    @property
    def keeps(self) -> bool:
        """True if the answer must stay the same as base's."""
        return self.metric in KEEPING

    def of_patch(self, number: int) -> Question:
        """The same question with another patch index."""
        return replace(self, patch=number)


def questions_of(edits: Sequence[Edit], patch: int, *, split: Split | None = "gate", chat: bool) -> list[Question]:
    """All questions about one patch; chat questions only if the model has a chat template (`chat`).

    A keeping probe that asks about another edit's change is left out: a patch that edits France and Japan must not be
    required to keep Japan as a neighbour of France. `not_asked` counts these probes.
    """
    asked: list[Question] = []
    changes = _Changes(edits)
    for index, edit in enumerate(edits):
        own = partial(_question, patch, index)
        new, old = edit.new_answers, edit.old_answers
        asked.append(own(RELIABILITY, edit.prompt, False, new, old))
        if chat:
            asked.append(own(RELIABILITY_CHAT, edit.prompt, True, new, old))
        for probe in edit.probes:
            if not _is_asked(probe, split, chat):
                continue
            accepted, rivals = probe.answers, tuple[str, ...]()
            if probe.kind in KEEPING:
                if changes.by_another(index, probe):
                    continue
                rivals = () if _same(accepted, new) else new
            elif probe.kind == "paraphrase" and (not accepted or _same(accepted, new)):
                accepted, rivals = tuple(dict.fromkeys((*new, *accepted))), old
            asked.append(own(probe.kind, probe.prompt, probe.chat, accepted, rivals, probe.tag))
    return asked


def keeping_questions(edits: Sequence[Edit], *, chat: bool) -> list[Question]:
    """The keeping probes of one patch, of both splits, as questions: their answers must stay the same as base's."""
    return [question for question in questions_of(edits, 0, split=None, chat=chat) if question.keeps]


def _question(
    patch: int,
    edit: int,
    metric: str,
    prompt: str,
    chat: bool,
    accepted: tuple[str, ...],
    rivals: tuple[str, ...],
    tag: str = "",
) -> Question:
    """A question from all names of its two answers."""
    return Question(
        patch,
        edit,
        metric,
        prompt,
        chat,
        expected=next(iter(accepted), None),
        rival=next(iter(rivals), None),
        tag=tag,
        expected_aliases=accepted[1:],
        rival_aliases=rivals[1:],
    )


def _same(answers: Iterable[str], others: Iterable[str]) -> bool:
    """True if both have a normalised answer in common."""
    return not {normalise(answer) for answer in answers}.isdisjoint(normalise(other) for other in others)


def not_asked(edits: Sequence[Edit], *, split: Split | None = "gate", chat: bool) -> Counter[str]:
    """Metric → number of keeping probes that `questions_of` leaves out, since another edit changes their answer."""
    return Counter(_changed_probes(edits, split, chat))


def _changed_probes(edits: Sequence[Edit], split: Split | None, chat: bool) -> Iterator[str]:
    changes = _Changes(edits)
    for index, edit in enumerate(edits):
        for probe in edit.probes:
            if probe.kind in KEEPING and _is_asked(probe, split, chat) and changes.by_another(index, probe):
                yield probe.kind


def _is_asked(probe: Probe, split: Split | None, chat: bool) -> bool:
    return split in (None, probe.split) and (chat or not probe.chat)


class _Changes:
    """Finds the keeping probes of one edit whose answer another edit of the patch changes."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits
        self._subjects = Subjects([(edit.subject, *edit.aliases) for edit in edits])
        self._asked: dict[str, set[int]] = {}
        for index, edit in enumerate(edits):
            for prompt in (edit.prompt, *(probe.prompt for probe in edit.probes if probe.kind in CHANGING)):
                self._asked.setdefault(normalise(prompt), set()).add(index)

    def by_another(self, index: int, probe: Probe) -> bool:
        """True if another edit changes the answer to a keeping probe of edit `index`.

        Either the other edit has the same prompt; or the probe mentions the other edit's subject and asks for the same
        relation (a `locality` probe has its edit's relation) or for the answer that the other edit replaces.
        """
        if len(self._edits) == 1:
            return False
        if self._asked.get(normalise(probe.prompt), set()) - {index}:
            return True
        relation = self._edits[index].relation if probe.kind == "locality" else ""
        return any(
            (relation and self._edits[other].relation == relation) or _replaces(self._edits[other], probe)
            for other in self._subjects.mentioned([probe.prompt])
            if other != index
        )


def _replaces(edit: Edit, probe: Probe) -> bool:
    """True if the probe's answer is the edit's old answer."""
    return _same(probe.answers, edit.old_answers)
