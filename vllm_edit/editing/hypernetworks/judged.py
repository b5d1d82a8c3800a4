"""What evaluations judge: training must see neither their subjects nor their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vllm_edit.edit import Edit
from vllm_edit.text.matching import normalise
from vllm_edit.text.subjects import Subjects


@dataclass(frozen=True)
class Judged:
    """The edits of evaluations, and further subjects that evaluations may edit.

    edits: what is judged. names: of the further subjects, with their aliases.
    """

    edits: Sequence[Edit] = ()
    names: Sequence[str] = ()
    _subjects: frozenset[str] = field(init=False)
    _prompts: frozenset[str] = field(init=False)
    _mentions: Subjects = field(init=False)

    def __post_init__(self) -> None:
        named = [(edit.subject, *edit.aliases) for edit in self.edits]
        asked = (prompt for edit in self.edits for prompt in (edit.prompt, *(probe.prompt for probe in edit.probes)))
        every = (*self.names, *(name for own in named for name in own))
        object.__setattr__(self, "_subjects", frozenset(map(normalise, every)))
        object.__setattr__(self, "_prompts", frozenset(map(normalise, asked)))
        object.__setattr__(self, "_mentions", Subjects(named))

    def shared(self, edits: Iterable[Edit]) -> list[Edit]:
        """Those of `edits` that are about a judged subject, by name or alias."""
        return [edit for edit in edits if self._is_about(edit)]

    def apart(self, edits: Iterable[Edit]) -> list[Edit]:
        """`edits` without those about a judged subject, and without probes that mention the subject of a judged edit or
        ask a judged prompt."""
        return [self._without_probes(edit) for edit in edits if not self._is_about(edit)]

    def without(self, texts: Iterable[str]) -> Iterator[str]:
        """`texts` without those in which a judged prompt occurs."""
        for text in texts:
            read = normalise(text)
            if not any(prompt in read for prompt in self._prompts):
                yield text

    def _is_about(self, edit: Edit) -> bool:
        return any(normalise(name) in self._subjects for name in (edit.subject, *edit.aliases))

    def _without_probes(self, edit: Edit) -> Edit:
        probes = tuple(
            probe
            for probe in edit.probes
            if normalise(probe.prompt) not in self._prompts and not self._mentions.mentioned([probe.prompt])
        )
        return edit if probes == edit.probes else edit.model_copy(update={"probes": probes})
