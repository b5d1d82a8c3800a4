"""Many patches compiled in one batch, each as if it were alone: how hundreds of edits are compiled quickly."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.editing.base import Base, unchanged
from vllm_edit.editing.compile import compiled_of
from vllm_edit.editing.rome import compute_factors, judged
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Patch
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.site import Site
from vllm_edit.text import normalise


def compile_separately(
    patches: Sequence[Patch],
    base: Base,
    *,
    site: Site,
    moment: SecondMoment,
    settings: RomeSettings | None = None,
    progress: Progress | None = None,
) -> list[CompiledPatch]:
    """Compile every patch by r-ROME; all residuals are trained in one batch, each under its own key group's update.

    A key group is trained alone in `compile_patch` too, so the results are those of compiling one after the other.

    Raises:
        EditError: two patches edit one subject, so that their edits could fall into one key group.
        UnsafeEdit: an edit missed its target or breaks a health limit, by name.
    """
    settings = settings or RomeSettings()
    if site.base != base.fingerprint:
        raise Incompatible(f"the site was made for base {site.base.digest}, {base.name} is {base.fingerprint.digest}")
    owners: dict[str, Patch] = {}
    for patch in patches:
        for edit in patch.edits:
            if owners.setdefault(normalise(edit.subject), patch) is not patch:
                other = owners[normalise(edit.subject)].name
                raise EditError(
                    f"{other} and {patch.name} both edit {edit.subject!r}; compile them one after the other"
                )
    edits = [edit for patch in patches for edit in patch.edits]
    with unchanged(base):
        computed = compute_factors(base, site, moment, edits, settings, progress=progress)
        compiled, start = [], 0
        for patch in patches:
            own = range(start, start + len(patch.edits))
            start = own.stop
            result = judged(base, site, patch.edits, computed.only(own), settings)
            compiled.append(compiled_of(patch, "rome", base, site, result))
            if progress:
                progress("re-checking", len(compiled), len(patches))
    return compiled
