"""r-ROME for many patches in one batch, each as if it were alone: how hundreds of edits are compiled quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.rome import check_rank, compile_edits, judged
from vllm_edit.editing.rome_factors import RomeFactors, compute_factors, prepare
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.store.site import Site
from vllm_edit.text import normalise


def compile_each(
    base: Base,
    site: Site,
    moment: SecondMoment,
    patches: Sequence[Patch],
    settings: RomeSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """All residuals are trained in one batch, each under its own key group's update; then every patch is solved alone.

    A key group is trained alone in `compile_patch` too, so the results are those of compiling one after the other; a
    patch of several groups that misses in its joint solve is compiled by itself, with all of `settings.rounds`.

    Raises:
        EditError: two patches edit one subject, so that their edits could fall into one key group; or one needs a
            higher rank than the site has, which is told before anything is trained.
        UnsafeEdit: edits missed their targets or break a health limit, all of them by name.
    """
    owners: dict[str, Patch] = {}
    for patch in patches:
        for edit in patch.edits:
            if owners.setdefault(normalise(edit.subject), patch) is not patch:
                other = owners[normalise(edit.subject)].name
                raise EditError(
                    f"{other} and {patch.name} both edit {edit.subject!r}; compile them one after the other"
                )
    edits = [edit for patch in patches for edit in patch.edits]
    ends = list(accumulate(len(patch.edits) for patch in patches))
    ranges = [range(end - len(patch.edits), end) for patch, end in zip(patches, ends, strict=True)]
    prepared = prepare(base, site, moment, edits, settings)
    for own in ranges:  # a key group is of one subject, hence of one patch
        check_rank([group for group in prepared.columns.groups if group.edits[0] in own], site)
    computed = compute_factors(base, site, moment, edits, settings, prepared=prepared, progress=progress)
    results: list[MethodResult] = []
    problems: list[str] = []
    for patch, own in zip(patches, ranges, strict=True):
        try:
            results.append(_judged_alone(base, site, moment, patch, computed.only(own), settings))
        except UnsafeEdit as error:
            problems += str(error).splitlines()
        if progress:
            progress("re-checking", len(results), len(patches))
    if problems:
        raise UnsafeEdit("\n".join(problems))
    return results


def _judged_alone(
    base: Base, site: Site, moment: SecondMoment, patch: Patch, computed: RomeFactors, settings: RomeSettings
) -> MethodResult:
    if len(computed.prepared.columns.groups) == 1:
        return judged(base, site, patch.edits, computed, settings)
    try:
        return judged(base, site, patch.edits, computed, replace(settings, on_missed="error"))
    except UnsafeEdit:
        return compile_edits(base, site, moment, patch.edits, settings)
