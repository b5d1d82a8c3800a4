"""A patch with scope subject: its subjects' compiled patches side by side, and the composition of those that are named.

A *unit* is one subject's edits, with all the subject's names, compiled as a patch of its own. A text gets the units
whose names it mentions: none, one as it was compiled (its micro-adapter), or several solved jointly from their factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import KeyGroup, Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.compose import compose
from vllm_edit.composition.vouch import vouch
from vllm_edit.deltas.delta import Delta
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Edit, Patch
from vllm_edit.spelling import written
from vllm_edit.subjects import Subjects

Load = Callable[[str], CompiledPatch]
"""From a unit's name to the unit."""


@dataclass(frozen=True)
class Unit:
    """One subject's part of a patch: its edits' and key groups' numbers in that patch, and its own compiled patch.

    rank: of its adapter. One without key groups (MEND, fine-tuning, LoRA) counts as the highest of the patch's units,
    which the manifest tells: an upper bound.
    """

    subject: str
    edits: tuple[int, ...]
    groups: tuple[int, ...]
    member: str
    rank: int


@dataclass(frozen=True)
class ScopeIndex:
    """Everything that choosing units needs, without their tensors. name: of the patch; patch: its first part."""

    name: str
    patch: str
    units: tuple[Unit, ...]
    subjects: Subjects

    @classmethod
    def of(cls, manifest: Manifest) -> ScopeIndex:
        """The index of a patch with scope subject.

        Raises:
            Incompatible: it was compiled when names were compared otherwise.
        """
        edits, group_of = manifest.edits, dict[int, int]()
        places = by_subject(edits)
        if len(places) != len(manifest.members):
            raise Incompatible(
                f"{manifest.name} was compiled with {len(manifest.members)} subjects where this version tells "
                f"{len(places)} apart; compile it again"
            )
        for number, group in enumerate(manifest.groups):
            group_of |= dict.fromkeys(group.edits, number)
        units = []
        for own, member in zip(places, manifest.members, strict=True):
            groups = tuple(dict.fromkeys(group_of[edit] for edit in own if edit in group_of))
            units.append(Unit(edits[own[0]].subject, own, groups, member, len(groups) or manifest.rank))
        names = [{name for edit in unit.edits for name in names_of(edits[edit])} for unit in units]
        return cls(manifest.name, manifest.patch, tuple(units), Subjects(names))

    def mentioned(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Numbers of the units that the texts mention, ascending."""
        return self.subjects.mentioned(texts)

    def check(self, units: Sequence[int], max_rank: int) -> None:
        """Refuse more units than one adapter holds.

        They are never cut to fit: an edit that a conversation got must not leave it again.

        Raises:
            EditError: with the subjects' names.
        """
        chosen = [self.units[number] for number in units]
        rank = sum(unit.rank for unit in chosen)
        if rank > max_rank:
            named = ", ".join(unit.subject for unit in chosen)
            most = "" if all(unit.groups for unit in chosen) else "up to "
            raise EditError(
                f"the request mentions {len(units)} edited subjects of {self.patch} ({named}), which need rank "
                f"{most}{rank}; "
                f"one adapter holds {max_rank}: ask about fewer at once, in requests or conversations of their own"
            )

    def compiled(self, units: Sequence[int], load: Load, site: Site | None = None) -> CompiledPatch:
        """What answers a text that mentions these units (at least one).

        Raises:
            Incompatible: algebra does not vouch for the composition.
            EditError: there are more units than the site's rank allows.
        """
        if site is not None:
            self.check(units, site.max_rank)
        members = [load(self.units[number].member) for number in units]
        if len(members) == 1:
            return members[0]
        composition = compose(members, self.patch, site=site)
        if problems := vouch(composition):
            named = ", ".join(self.units[number].subject for number in units)
            raise Incompatible(
                f"{named}: these edits of {self.patch} were judged apart, and cannot be served together: "
                f"{'; '.join(problems)}; ask about one at a time, or compile them in one patch with scope all"
            )
        return composition


def names_of(edit: Edit) -> tuple[str, ...]:
    """The subject's names: as declared, and its aliases."""
    return (edit.subject, *edit.aliases)


def by_subject(edits: Sequence[Edit]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the edits of each subject, however it is spelled, in the order in which subjects first appear."""
    groups: dict[str, list[int]] = {}
    for number, edit in enumerate(edits):
        groups.setdefault(written(edit.subject).folded, []).append(number)
    return tuple(tuple(group) for group in groups.values())


def assemble(patch: Patch, units: Sequence[CompiledPatch]) -> CompiledPatch:
    """The compiled patch with scope subject whose units, in the order of `by_subject(patch.edits)`, are these.

    Subjects with a name in common do not disagree: no such patch can be declared.
    """
    places = by_subject(patch.edits)
    first = units[0].manifest
    groups = [
        KeyGroup(edits=tuple(own[edit] for edit in group.edits))
        for own, unit in zip(places, units, strict=True)
        for group in unit.manifest.groups
    ]
    manifest = Manifest(
        patch=patch.name,
        method=first.method,
        base=first.base,
        site=first.site,
        modules=first.modules,
        edits=patch.edits,
        gate=patch.gate,
        scope="subject",
        members=tuple(unit.name for unit in units),
        settings=first.settings,
        groups=tuple(groups),
        rank=max(unit.manifest.rank for unit in units),
        adapter=None,
    )
    return CompiledPatch(manifest, Delta({}), units=tuple(units), report=_report(places, units))


class Narrowing:
    """From a compiled patch and a text to what answers it, all in memory: for evaluation.

    site: given, its maximum rank is enforced as serving does.
    """

    def __init__(self, patch: CompiledPatch, site: Site | None = None) -> None:
        self._patch, self._site = patch, site
        self._index = ScopeIndex.of(patch.manifest) if patch.manifest.scope == "subject" else None
        self._members = {unit.name: unit for unit in patch.units}
        self._made: dict[tuple[int, ...], CompiledPatch | EditError | None] = {(): None}

    def edits(self, text: str) -> tuple[int, ...] | None:
        """Numbers of the edits whose subjects the text mentions; None if the patch's scope is all."""
        if self._index is None:
            return None
        return tuple(edit for number in self._index.mentioned([text]) for edit in self._index.units[number].edits)

    def of(self, text: str) -> CompiledPatch | None:
        """The patch itself if its scope is all; else the composition of what the text mentions, None for the base.

        Raises:
            EditError: the text mentions what cannot be served together; remembered.
        """
        if self._index is None:
            return self._patch
        units = self._index.mentioned([text])
        if units not in self._made:
            try:
                self._made[units] = self._index.compiled(units, self._members.__getitem__, self._site)
            except EditError as error:
                self._made[units] = error
        found = self._made[units]
        if isinstance(found, EditError):
            raise found
        return found


def _report(places: Sequence[Sequence[int]], units: Sequence[CompiledPatch]) -> dict[str, object]:
    """The units' reports as one, edits renumbered; norms and interference are the largest, since each serves alone."""
    edits = [
        {**record, "edit": own[record["edit"]]}
        for own, unit in zip(places, units, strict=True)
        for record in unit.report.get("edits", ())
    ]
    largest = {
        key: max(float(unit.report[key]) for unit in units)
        for key in ("norm", "interference")
        if all(key in unit.report for unit in units)
    }
    missed = sorted(
        own[edit] for own, unit in zip(places, units, strict=True) for edit in unit.report.get("missed", ())
    )
    return {"edits": sorted(edits, key=lambda record: int(record["edit"])), "missed": missed, **largest}
