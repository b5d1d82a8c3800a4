"""Many patches compiled at once by one method, each as if it were alone: for benchmarks and data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.editing.compile import check_base, check_material, compiled_of, method_of, settings_of
from vllm_edit.editing.material import Material
from vllm_edit.editing.method import MethodResult, Settings
from vllm_edit.editing.settings import Progress
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.lengths import check_edits
from vllm_edit.patch import Patch


def compile_separately(
    patches: Sequence[Patch],
    base: Base,
    method: str = "rome",
    *,
    site: Site,
    moment: Material,
    settings: Settings | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[CompiledPatch]:
    """Compile every patch by `method`, in one batch where the method can (r-ROME), else one after the other.

    The model is bit-identical afterwards, also after an exception (asserted).

    Raises:
        UnsafeEdit: an edit is too long for the model, missed its target or breaks a health limit, by name.
        Incompatible: the site is another base's.
        EditError: no such method, settings that are not valid, or (r-ROME) two patches that edit one subject.
    """
    chosen = method_of(method)
    values = settings_of(chosen, settings)
    check_base(base, site)
    check_material(method, moment)
    for patch in patches:
        check_edits(base, patch.edits, site.contexts or ())
    with unchanged(base):
        if chosen.compile_each is not None:
            results = chosen.compile_each(base, site, moment, patches, values, progress)
        else:
            results = list[MethodResult]()
            for patch in patches:
                results.append(chosen.compile(base, site, moment, patch.edits, values, None))
                if progress:
                    progress("compiling", len(results), len(patches))
    return [compiled_of(patch, method, base, site, result) for patch, result in zip(patches, results, strict=True)]
