"""Compiling a patch with scope subject: every subject's edits alone, many in one batch."""

from __future__ import annotations

from typing import Any

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.scoped import assemble, by_subject
from vllm_edit.editing.material import Material
from vllm_edit.editing.separately import compile_separately
from vllm_edit.editing.settings import Progress
from vllm_edit.errors import UnsafeEdit
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch

BATCH = 64
"""Subjects compiled at once: enough to fill batches; the bookkeeping of a batch grows with its square."""


def compile_scoped(
    patch: Patch,
    base: Base,
    method: str,
    *,
    site: Site,
    moment: Material,
    settings: Any = None,
    progress: Progress | None = None,
) -> CompiledPatch:
    """Compile each subject of `patch` as it will be served alone; the results are the units of one compiled patch.

    Raises:
        UnsafeEdit: edits missed their targets or break a health limit, by name, of all batches together.
    """
    subjects = [
        Patch(name=patch.name, gate=patch.gate, edits=tuple(patch.edits[number] for number in own))
        for own in by_subject(patch.edits)
    ]
    units: list[CompiledPatch] = []
    problems: list[str] = []
    for start in range(0, len(subjects), BATCH):
        batch = subjects[start : start + BATCH]
        if progress:
            progress("compiling subjects", start, len(subjects))
        try:
            units += compile_separately(batch, base, method, site=site, moment=moment, settings=settings)
        except UnsafeEdit as error:
            problems += str(error).splitlines()
    if problems:
        raise UnsafeEdit("\n".join(problems))
    return assemble(patch, units)
