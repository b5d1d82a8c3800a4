"""Compiling declared patches into immutable, content-addressed artefacts, one or many. The base is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.scoped import assemble, by_subject
from vllm_edit.digest import digest_tensors
from vllm_edit.editing.baselines import finetune, lora
from vllm_edit.editing.hypernetworks import edits as hypernetworks
from vllm_edit.editing.knowledge_editor.editor_network import KnowledgeEditor
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorSettings
from vllm_edit.editing.memit import edits as memit
from vllm_edit.editing.memit.memit_settings import AlphaEditSettings, MemitSettings
from vllm_edit.editing.mend.mend_settings import MendSettings
from vllm_edit.editing.mend.network import MendNetwork
from vllm_edit.editing.method import Method, MethodResult, all_or_refused
from vllm_edit.editing.method_settings import MethodSettings
from vllm_edit.editing.rome import edits as rome
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site_tensors import SiteTensors, site_tensors_of
from vllm_edit.editing.ultraedit import edits as ultraedit
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics
from vllm_edit.editing.ultraedit.ultraedit_settings import UltraEditSettings
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.json_value import JSONValue
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.lengths import check_edits
from vllm_edit.patch import Patch, Scope
from vllm_edit.progress import Progress

if TYPE_CHECKING:
    from vllm_edit.store.store import Store

METHODS: Mapping[str, Method[Any]] = MappingProxyType(
    {
        "rome": Method(RomeSettings, rome.compile_edits, rome.compile_each, (SecondMoment,)),
        "memit": Method(MemitSettings, memit.compile_edits, memit.compile_each, (SecondMoment, SecondMoments)),
        "alphaedit": Method(
            AlphaEditSettings,
            memit.compile_in_null_space,
            memit.compile_each_in_null_space,
            (SecondMoment, SecondMoments),
        ),
        "mend": Method(MendSettings, hypernetworks.compile_edits, hypernetworks.compile_each, (MendNetwork,)),
        "ke": Method(
            KnowledgeEditorSettings, hypernetworks.compile_edits, hypernetworks.compile_each, (KnowledgeEditor,)
        ),
        "ultraedit": Method(UltraEditSettings, ultraedit.compile_edits, ultraedit.compile_each, (GradientStatistics,)),
        "ft": Method(finetune.FinetuneSettings, finetune.compile_edits),
        "lora": Method(lora.LoraSettings, lora.compile_edits),
    }
)
"""Name → method. A new method is registered here and nowhere else."""

AUTO = "auto"
"""In place of a method's name: the method that the store was made for."""

BATCH = 64
"""Subjects per batch: enough to fill forward passes; the cost of grouping grows with the square of this number."""


def compile_patch(
    patch: Patch,
    model: Base | str | Path,
    method: str = "rome",
    *,
    store: Store | None = None,
    site: Site | None = None,
    site_tensors: SiteTensors | None = None,
    settings: MethodSettings | Mapping[str, JSONValue] | None = None,
    progress: Progress | None = None,
) -> CompiledPatch:
    """Compile `patch` for `model` at the site of `store`, or at `site` with `site_tensors`. Nothing is saved.

    The result has no IKE demonstrations, which are part of a patch's name, and no verdict of a gate: `Pipeline.run`
    adds both and saves the patch. The model is bit-identical afterwards, even after an exception (asserted).

    Args:
        patch: the edits, declared.
        model: a loaded base, or the name of a model for `Base.load`.
        method: `rome` (closed form), `memit` or `alphaedit` (closed form over layers), `mend` or `ke` (hypernetwork),
            `ultraedit` (least squares on gradients), `ft` or `lora` (fine-tuning); `auto` for the method that the site
            was made for.
        store: the store whose site and site tensors are read, if they are not given.
        site: where the edits apply.
        site_tensors: the site's second moment, hypernetwork or gradient statistics.
        settings: the method's settings, or plain values for them.
        progress: called with (step, completed units, total units).

    Returns:
        The compiled patch: its delta ΔW = B·A with B [d_out, r] and A [r, d_in] for each edited module, and a report
        of every edit.

    Raises:
        UnsafeEdit: an edit, named in the message, is too long for the model, missed its target or exceeds a limit.
        Incompatible: the site or the patch belongs to another base.
        EditError: unknown method, missing site, invalid settings, or a rank above the site's maximum.

    Example:
        >>> compiled = compile_patch(Patch.load("patches/acme.yaml"), "atlas", store=Store.open())
        >>> compiled.delta.rank, compiled.report.norm
    """
    if method != AUTO:
        settings_of(method_of(method), settings, patch.scope)  # reports invalid settings before the model is loaded
    site, site_tensors = _site_and_tensors(store, site, site_tensors)
    method = method_at(method, site_tensors)
    chosen = method_of(method)
    values = settings_of(chosen, settings, patch.scope)
    base = model if isinstance(model, Base) else Base.load(model)
    check_base(base, site)
    check_site_tensors(method, site_tensors)
    if patch.base not in (None, base.name, site.model, Path(site.model).name):
        raise Incompatible(
            f"patch {patch.name} was written for base {patch.base!r}; this store's is {site.model!r}; use a store of "
            "that base, or change or remove the field `base`"
        )
    check_edits(base, patch.edits, site.contexts or ())
    if patch.scope == "subject":
        return _compile_scoped(
            patch, base, method, site=site, site_tensors=site_tensors, settings=values, progress=progress
        )
    with unchanged(base):
        result = chosen.compile(base, site, site_tensors, patch.edits, values, progress)
    return _compiled_of(patch, method, site, result)


def compile_separately(
    patches: Sequence[Patch],
    base: Base,
    method: str = "rome",
    *,
    site: Site,
    site_tensors: SiteTensors,
    settings: MethodSettings | Mapping[str, JSONValue] | None = None,
    progress: Progress | None = None,
) -> list[CompiledPatch]:
    """Compile the patches independently, in one batch if the method supports it (all but fine-tuning and LoRA).

    The model is bit-identical afterwards, even after an exception (asserted).

    Raises:
        UnsafeEdit: an edit, named in the message, is too long for the model, missed its target or exceeds a limit.
        Incompatible: the site belongs to another base.
        EditError: unknown method, invalid settings, or (closed-form methods) two patches that edit one subject.
    """
    chosen = method_of(method)
    values = settings_of(chosen, settings)
    check_base(base, site)
    check_site_tensors(method, site_tensors)
    for patch in patches:
        check_edits(base, patch.edits, site.contexts or ())
    with unchanged(base):
        if chosen.compile_each is not None:
            results = chosen.compile_each(base, site, site_tensors, patches, values, progress)
        else:
            makers = [partial(chosen.compile, base, site, site_tensors, patch.edits, values, None) for patch in patches]
            results = all_or_refused(makers, "compiling", progress)
    return [_compiled_of(patch, method, site, result) for patch, result in zip(patches, results, strict=True)]


def _compile_scoped(
    patch: Patch,
    base: Base,
    method: str,
    *,
    site: Site,
    site_tensors: SiteTensors,
    settings: Any = None,
    progress: Progress | None = None,
) -> CompiledPatch:
    """Compile each subject of `patch` separately, as it is served; the results are the units of one compiled patch.

    Raises:
        UnsafeEdit: edits missed their targets or exceed a health limit; the message names those of all batches.
    """
    subjects = [
        Patch(name=patch.name, gate=patch.gate, edits=tuple(patch.edits[number] for number in own))
        for own in by_subject(patch.edits)
    ]

    def batch(start: int) -> list[CompiledPatch]:
        if progress:
            progress("compiling subjects", start, len(subjects))
        some = subjects[start : start + BATCH]
        return compile_separately(some, base, method, site=site, site_tensors=site_tensors, settings=settings)

    units = all_or_refused([partial(batch, start) for start in range(0, len(subjects), BATCH)])
    return assemble(patch, list(chain.from_iterable(units)))


def method_of(name: str) -> Method[Any]:
    """The method with this name. Raises EditError, which lists all names, if there is none."""
    if name not in METHODS:
        raise EditError(f"there is no method {name!r}; methods are {', '.join(sorted(METHODS))}, and auto")
    return METHODS[name]


def method_at(name: str, tensors: SiteTensors) -> str:
    """`name`; for `auto`, the first method that is made for sites with such tensors."""
    if name != AUTO:
        return name
    return next(found for found, method in METHODS.items() if method.needs and isinstance(tensors, method.needs))


def settings_of(
    method: Method[Any], settings: MethodSettings | Mapping[str, JSONValue] | None, scope: Scope = "all"
) -> Any:
    """The method's settings: as given, or made from plain values and the scope's defaults for missing values."""
    if settings is None or isinstance(settings, Mapping):
        return method.settings.of(dict(settings or {}), scope)
    if not isinstance(settings, method.settings):
        raise EditError(f"expected {method.settings.__name__} or a mapping, got {type(settings).__name__}")
    return settings


def check_base(base: Base, site: Site) -> None:
    """Raise Incompatible if the site belongs to another base."""
    if problems := site.base_problems(base.fingerprint):
        raise Incompatible(
            f"the site was made for base {site.base.digest} ({site.model}), the model {base.name} is another: its "
            f"{'; its '.join(problems)}: use that model, or make a store for this one (vllm-edit store init)"
        )


def check_site_tensors(method: str, tensors: SiteTensors) -> None:
    """Raise EditError if the site's data do not fit the method."""
    needs = METHODS[method].needs
    if needs is not None and not isinstance(tensors, needs):
        fitting = [name for name, other in METHODS.items() if other.needs is None or isinstance(tensors, other.needs)]
        raise EditError(
            f"method {method} cannot use this store's site; methods that can are {', '.join(sorted(fitting))}: select "
            f"a method with --method, or make a store for {method} (vllm-edit store init)"
        )


def _site_and_tensors(store: Store | None, site: Site | None, tensors: SiteTensors | None) -> tuple[Site, SiteTensors]:
    """The site to compile at and its tensors, from the store if they are not given."""
    if store is not None:
        site = site or store.site()
        tensors = tensors or site_tensors_of(site, store.site_tensors())
    if site is None or tensors is None:
        raise EditError(
            "compile_patch needs a store, or a site together with its second moment, network or gradient statistics"
        )
    if tensors.digest != site.tensors_digest:
        raise EditError(
            f"expected the {site.tensor_kind} with digest {site.tensors_digest}, which the site names, got "
            f"{tensors.digest}"
        )
    return site, tensors


def _compiled_of(patch: Patch, method: str, site: Site, result: MethodResult) -> CompiledPatch:
    """Make a compiled patch from a method's result, with the manifest that identifies it."""
    manifest = Manifest(
        patch=patch.name,
        method=method,
        base=site.base.digest,
        site=site.digest,
        modules=tuple(result.delta.parts),
        edits=patch.edits,
        gate=patch.gate,
        settings=dict(result.settings),
        groups=result.groups,
        columns=result.columns,
        rank=result.delta.rank,
        adapter=result.delta.digest,
        factors=digest_tensors(result.factors.tensors()) if result.factors else None,
    )
    return CompiledPatch(manifest, result.delta, result.factors, report=result.report)
