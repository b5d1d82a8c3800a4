"""IKE for a patch with scope subject: the prefix is built from the edits that the text names, and from no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vllm_edit.ike.prefix import Edited, subjects_of
from vllm_edit.subjects import Subjects

if TYPE_CHECKING:  # the class lives beside tensors; only its attributes are read here
    from vllm_edit.artefacts.compiled import Demonstration
    from vllm_edit.patch import Edit


@dataclass(frozen=True)
class Part:
    """Some of a patch's edits, as `ike.prefix.build_prefix` takes them."""

    patch: str
    edits: tuple[Edit, ...]


class Shelf:
    """A patch's demonstrations, so ordered that those of a few of a thousand edits are taken without a search."""

    def __init__(self, edited: Edited, demonstrations: Sequence[Demonstration]) -> None:
        self.edited, self.demonstrations = edited, demonstrations
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
        """The edits with these numbers as a patch of their own, and its demonstrations."""
        part = Part(self.edited.patch, tuple(self.edited.edits[number] for number in edits))
        own = [
            item.model_copy(update={"edit": place})
            for place, number in enumerate(edits)
            for item in self._own.get(number, ())
        ]
        return part, [*self._bank, *own]
