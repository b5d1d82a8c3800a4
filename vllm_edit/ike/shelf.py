"""IKE for a patch with scope subject: the prefix contains only edits whose subjects the text mentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vllm_edit.ike.prefix import Edited, subjects_of
from vllm_edit.ike.stored_words import StoredWords
from vllm_edit.text.subjects import Subjects

if TYPE_CHECKING:  # its module imports torch; only its attributes are read here
    from vllm_edit.artefacts.compiled import Demonstration
    from vllm_edit.edit import Edit


@dataclass(frozen=True)
class Part:
    """Some of a patch's edits, in the form that `ike.prefix.build_prefix` expects."""

    patch: str
    edits: tuple[Edit, ...]


class Shelf:
    """A patch's demonstrations, indexed by edit.

    Attributes:
        read: maps a stored text of the patch to its words, for `build_prefix`.
    """

    def __init__(self, edited: Edited, demonstrations: Sequence[Demonstration]) -> None:
        self.edited, self.demonstrations, self.read = edited, demonstrations, StoredWords().of
        self._bank = [item for item in demonstrations if item.edit is None]
        self._own: dict[int, list[Demonstration]] = {}
        for item in demonstrations:
            if item.edit is not None:
                self._own.setdefault(item.edit, []).append(item)

    @cached_property
    def subjects(self) -> Subjects:
        """The names of all edits, indexed once."""
        return subjects_of(self.edited.edits)

    def of(self, edits: Sequence[int]) -> tuple[Part, list[Demonstration]]:
        """The edits with these indices, and their demonstrations, renumbered to match."""
        part = Part(self.edited.patch, tuple(self.edited.edits[number] for number in edits))
        own = [
            item.model_copy(update={"edit": place})
            for place, number in enumerate(edits)
            for item in self._own.get(number, ())
        ]
        return part, [*self._bank, *own]
