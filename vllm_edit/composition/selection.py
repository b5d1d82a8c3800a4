"""The selection: the parts that a composition consists of, without losing edits, and with each fact once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.conflicts import Settlement
from vllm_edit.composition.parts import Block, Group, Keyed, Part, alike, coincide, parts_of, subjects_of
from vllm_edit.composition.solver import SAME_COSINE
from vllm_edit.edit import Edit, Fact
from vllm_edit.errors import EditError
from vllm_edit.names import short
from vllm_edit.text.matching import normalise
from vllm_edit.text.quoting import quoted

_PLAIN = "plain"
"""The form of a column whose key is that of an edit's prompt; several forms of one key are joined by "+"."""

Place = tuple[int, int]
"""(part, edit), both indices."""


def select(members: Sequence[CompiledPatch], settlement: Settlement, cosine: float) -> list[Part]:
    """The parts of a composition: those without a losing edit, and each fact once.

    A part that repeats facts of another member's part gives it its declarations and the columns that it lacks, but no
    residual. Two subjects that share an alias are two facts: both parts stay, without the later part's columns at the
    keys of the alias, which the earlier part edits to the same answer.
    Neither the order of the parts nor the choice among parts with the same fact depends on the members' order.

    Args:
        members: the compiled patches.
        settlement: the edits to leave out.
        cosine: keys whose whitened cosine exceeds this count as one.

    Raises:
        EditError: some but not all edits of a part are left out, or repeat facts of another part; or two declarations
            of a fact contradict each other.
    """
    staying: list[Part] = []
    for number, member in enumerate(members):
        for part, indices in parts_of(member):
            leaving = [index for index in indices if (number, index) in settlement.leaving]
            if leaving and len(leaving) < len(indices):
                conflict = settlement.leaving[number, leaving[0]]
                raise EditError(
                    f"{quoted(conflict.left_out.prompt)} loses to {short(conflict.winner)}, but {_bound(part)}; "
                    f"compile the edits of {short(member.name)} that stay in a patch of their own"
                )
            if not leaving:
                staying.append(part)
    chosen = _Chosen(cosine)
    for part in sorted(staying, key=_richness):
        chosen.add(part)
    return sorted(chosen.parts, key=_content)


class _Chosen:
    """Parts that state each fact once, collected one by one."""

    def __init__(self, cosine: float) -> None:
        self.parts: list[Part] = []
        self._cosine = cosine
        self._stated: dict[Fact, list[Place]] = {}

    def add(self, part: Part) -> None:
        sharing = [self._sharing(edit, part) for edit in part.edits]
        owners = [
            next((place for place in places if self._repeats(edit, part, place)), None)
            for edit, places in zip(part.edits, sharing, strict=True)
        ]
        found = [owner for owner in owners if owner is not None]
        if not found:
            for earlier in sorted({earlier for places in sharing for earlier, _ in places}):
                part = _without_keys_of(part, self.parts[earlier], self._cosine)
            found = [(len(self.parts), index) for index in range(len(part.edits))]
            self.parts.append(part)
        elif len(found) < len(owners):
            raise EditError(
                f"{short(self.parts[found[0][0]].member)} and {short(part.member)} share some facts of "
                f"{subjects_of(part.edits)} but not all, and {_bound(part)}; compile these edits in one patch"
            )
        else:
            for place, edit in zip(found, part.edits, strict=True):
                self._declare(place, edit)
            first = found[0][0]
            self.parts[first] = _with_keys_of(self.parts[first], part, self._cosine)
        for place, edit in zip(found, part.edits, strict=True):
            for way in edit.facts():
                self._stated.setdefault(way, []).append(place)

    def _sharing(self, edit: Edit, part: Part) -> list[Place]:
        """The places of other members' edits that share a way to write the edit's fact, in order."""
        places = {place for way in edit.facts() for place in self._stated.get(way, ())}
        return sorted(place for place in places if self.parts[place[0]].member != part.member)

    def _repeats(self, edit: Edit, part: Part, place: Place) -> bool:
        """True if both edits are of one subject, or have one prompt and one key under two names."""
        earlier = self.parts[place[0]]
        other = earlier.edits[place[1]]
        if edit.shares_subject_with(other):
            return True
        return normalise(edit.prompt) == normalise(other.prompt) and _same_key(part, earlier, self._cosine)

    def _declare(self, place: Place, edit: Edit) -> None:
        part = self.parts[place[0]]
        own = part.edits[place[1]]
        if own != edit:
            edits = (*part.edits[: place[1]], own.joined(edit), *part.edits[place[1] + 1 :])
            self.parts[place[0]] = replace(part, edits=edits)


def _same_key(first: Part, second: Part, cosine: float) -> bool:
    """True if the parts' keys coincide; parts without keys count as if they did."""
    return isinstance(first, Block) or isinstance(second, Block) or coincide(first.first, second.first, cosine)


def _with_keys_of(part: Part, other: Part, cosine: float) -> Part:
    """The part, with the columns of `other` whose keys it lacks; they get its residuals, which give the same answer."""
    if isinstance(part, Block) or isinstance(other, Block):
        return part
    held = [*part.columns, *part.taken]
    taken = [column for column in other.columns if not _holds(held, column, cosine)]
    return replace(part, taken=(*part.taken, *taken))


def _without_keys_of(part: Part, other: Part, cosine: float) -> Part:
    """The part, without edited columns whose keys `other` edits too; those of its plain prompts stay."""
    if isinstance(part, Block) or isinstance(other, Block):
        return part
    held = [*other.columns, *other.taken]
    own = [
        column
        for column in part.columns
        if not column[0].share or _PLAIN in column[0].form.split("+") or not _holds(held, column, cosine)
    ]
    return replace(part, columns=tuple(own))


def _holds(columns: Sequence[Keyed], wanted: Keyed, cosine: float) -> bool:
    """True if one of the columns coincides with `wanted`; preserved keys must be equal."""
    least = cosine if wanted[0].share else SAME_COSINE
    return any(alike(column, wanted) and coincide(column, wanted, least) for column in columns)


def _bound(part: Part) -> str:
    """Why a part cannot be split."""
    if isinstance(part, Group):
        return f"the edits of {subjects_of(part.edits)} in {short(part.member)} share one key group"
    return f"{short(part.member)} has no factors: its delta cannot be split"


def _richness(part: Part) -> tuple[int, int, tuple[int, list[str], str]]:
    """Sort key: larger parts first, so that only a smaller part can repeat facts of a larger one; then those with more
    names, whose residuals are trained for more of them."""
    return -len(part.edits), -sum(len(edit.names()) for edit in part.edits), _content(part)


def _content(part: Part) -> tuple[int, list[str], str]:
    """Sort key: larger parts first, then by their edits."""
    return -len(part.edits), sorted(edit.model_dump_json() for edit in part.edits), part.member
