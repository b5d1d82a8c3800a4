"""Patches with scope subject: one compiled patch per subject, and the composition of the subjects that a text mentions.

A *unit* is one subject's edits, with all the subject's names, compiled as a separate patch. A text is answered with the
units whose names it mentions: none, one as compiled (its micro-adapter), or several solved jointly from their factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import KeyGroup, Manifest
from vllm_edit.artefacts.reports import CompileReport
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.checks import vouch
from vllm_edit.composition.compose import compose
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Patch
from vllm_edit.text.spelling import written
from vllm_edit.text.subjects import Subjects

Load = Callable[[str], CompiledPatch]
"""Loads a unit by its name."""


@dataclass(frozen=True)
class Unit:
    """One subject's part of a patch: the indices of its edits and key groups in the patch, and its compiled patch.

    `member` is the compiled patch's name, `rank` its adapter's rank. For a unit without key groups (MEND, fine-tuning,
    LoRA) the rank is an upper bound: the manifest's, which is the highest of all units.
    """

    subject: str
    edits: tuple[int, ...]
    groups: tuple[int, ...]
    member: str
    rank: int


@dataclass(frozen=True)
class ScopeIndex:
    """Data for choosing units, without their tensors. `name` is the compiled patch's, `patch` its part before "@"."""

    name: str
    patch: str
    units: tuple[Unit, ...]
    subjects: Subjects

    @classmethod
    def of(cls, manifest: Manifest) -> ScopeIndex:
        """The index of a patch with scope subject.

        Raises:
            Incompatible: the patch was compiled by a version that compared names differently.
        """
        edits, group_of = manifest.edits, dict[int, int]()
        places = by_subject(edits)
        if len(places) != len(manifest.members):
            raise Incompatible(
                f"{manifest.name} was compiled with {len(manifest.members)} subjects, this version finds "
                f"{len(places)}; compile it again"
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
        """Indices of the units that the texts mention, ascending."""
        return self.subjects.mentioned(texts)

    def check(self, units: Sequence[int], max_rank: int) -> None:
        """Refuse units whose ranks add up to more than `max_rank`.

        No unit is dropped to fit: an edit that is active in a conversation must stay active.

        Raises:
            EditError: the units need a higher rank; the message lists their subjects.
        """
        chosen = [self.units[number] for number in units]
        rank = sum(unit.rank for unit in chosen)
        if rank > max_rank:
            named = ", ".join(unit.subject for unit in chosen)
            most = "" if all(unit.groups for unit in chosen) else "up to "
            raise EditError(
                f"the request mentions {len(units)} edited subjects of {self.patch} ({named}), which need rank "
                f"{most}{rank}; "
                f"one adapter holds {max_rank}: ask about fewer at once, in separate requests or conversations"
            )

    def compiled(self, units: Sequence[int], load: Load, site: Site | None = None) -> CompiledPatch:
        """The compiled patch that answers a text that mentions these units (at least one).

        Raises:
            Incompatible: the composition is beyond the limits of `vouch`.
            EditError: the units need a higher rank than the site allows.
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
    """Indices of each subject's edits, all spellings together, in the order in which subjects first appear."""
    groups: dict[str, list[int]] = {}
    for number, edit in enumerate(edits):
        groups.setdefault(written(edit.subject).folded, []).append(number)
    return tuple(tuple(group) for group in groups.values())


def assemble(patch: Patch, units: Sequence[CompiledPatch]) -> CompiledPatch:
    """The compiled patch with scope subject that consists of `units`, in the order of `by_subject(patch.edits)`.

    Subjects that share a name cannot conflict: `Patch` refuses such a declaration.
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
    """Finds the part of a compiled patch that answers a text, in memory, for evaluation.

    If a site is given, its maximum rank is enforced as in serving.
    """

    def __init__(self, patch: CompiledPatch, site: Site | None = None) -> None:
        self._patch, self._site = patch, site
        self._index = ScopeIndex.of(patch.manifest) if patch.manifest.scope == "subject" else None
        self._members = {unit.name: unit for unit in patch.units}
        self._made: dict[tuple[int, ...], CompiledPatch | EditError | None] = {(): None}

    def edits(self, text: str) -> tuple[int, ...] | None:
        """Indices of the edits whose subjects the text mentions; None if the patch's scope is all."""
        if self._index is None:
            return None
        return tuple(edit for number in self._index.mentioned([text]) for edit in self._index.units[number].edits)

    def of(self, text: str) -> CompiledPatch | None:
        """The patch itself if its scope is all; else the composition of the mentioned units, or None for the base.

        Raises:
            EditError: the mentioned units cannot be served together. The error is cached.
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


def _report(places: Sequence[Sequence[int]], units: Sequence[CompiledPatch]) -> CompileReport:
    """Merge the units' reports, edits renumbered. Norm and interference are maxima, since each unit serves alone."""
    edits = [
        report.model_copy(update={"edit": own[report.edit]})
        for own, unit in zip(places, units, strict=True)
        for report in unit.report.edits
    ]
    return CompileReport(
        edits=tuple(sorted(edits, key=lambda report: report.edit)),
        norm=_greatest([unit.report.norm for unit in units]),
        interference=_greatest([unit.report.interference for unit in units]),
    )


def _greatest(measured: Sequence[float | None]) -> float | None:
    """The maximum; None if a value is missing."""
    known = [value for value in measured if value is not None]
    return max(known) if len(known) == len(measured) else None
