"""`compile_patch`: a declared patch becomes an immutable, content-addressed artefact. The base stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.digest import digest_tensors
from vllm_edit.editing import finetune, lora, rome
from vllm_edit.editing.hypernetwork import mend
from vllm_edit.editing.hypernetwork.network import Hypernetwork
from vllm_edit.editing.hypernetwork.settings import MendSettings
from vllm_edit.editing.material import Material, material_of
from vllm_edit.editing.method import Method, MethodResult, Settings
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.lengths import check_edits
from vllm_edit.patch import Patch

if TYPE_CHECKING:
    from vllm_edit.store.store import Store

METHODS: Mapping[str, Method[Any]] = MappingProxyType(
    {
        "rome": Method(RomeSettings, rome.compile_edits, rome.compile_each, SecondMoment),
        "mend": Method(MendSettings, mend.compile_edits, mend.compile_each, Hypernetwork),
        "ft": Method(finetune.FinetuneSettings, finetune.compile_edits),
        "lora": Method(lora.LoraSettings, lora.compile_edits),
    }
)
"""Name → method. The one place where a method is added."""


def compile_patch(
    patch: Patch,
    model: Base | str | Path,
    method: str = "rome",
    *,
    store: Store | None = None,
    site: Site | None = None,
    moment: Material | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompiledPatch:
    """Compile `patch` for `model` at the site of `store` (or at `site` with `moment`), and save it in the store.

    moment: what belongs to the site: its second moment, or its hypernetwork.

    The model is bit-identical afterwards, also after an exception (asserted).

    Raises:
        UnsafeEdit: an edit is too long for the model, missed its target or breaks a health limit; names it.
        Incompatible: the site is another base's.
        EditError: no such method, no site, too high a rank, or settings that are not valid.
    """
    chosen = method_of(method)
    values = settings_of(chosen, settings)
    base = model if isinstance(model, Base) else Base.load(model)
    site, moment = _site_and_material(store, site, moment)
    check_base(base, site)
    check_material(method, moment)
    if patch.base not in (None, base.name, site.model, Path(site.model).name):
        raise Incompatible(f"patch {patch.name} was written for base {patch.base!r}; this store's is {site.model!r}")
    check_edits(base, patch.edits, site.contexts or ())
    if patch.scope == "subject":
        from vllm_edit.editing.scoped import compile_scoped  # it compiles many patches, each through this module

        compiled = compile_scoped(patch, base, method, site=site, moment=moment, settings=values, progress=progress)
    else:
        with unchanged(base):
            result = chosen.compile(base, site, moment, patch.edits, values, progress)
        compiled = compiled_of(patch, method, base, site, result)
    if store is not None:
        store.save(compiled)
    return compiled


def method_of(name: str) -> Method[Any]:
    """The method of that name. Raises EditError with all names."""
    if name not in METHODS:
        raise EditError(f"there is no method {name!r}; methods are {', '.join(sorted(METHODS))}")
    return METHODS[name]


def settings_of(method: Method[Any], settings: Settings | Mapping[str, Any] | None) -> Any:
    """The method's own settings: as they are, or of plain values, where missing ones have defaults."""
    if settings is None or isinstance(settings, Mapping):
        return method.settings.of(dict(settings or {}))
    if not isinstance(settings, method.settings):
        raise EditError(f"expected {method.settings.__name__} or a mapping, got {type(settings).__name__}")
    return settings


def check_base(base: Base, site: Site) -> None:
    """Raises Incompatible where the site is another base's."""
    if problems := site.base_problems(base.fingerprint):
        raise Incompatible(
            f"the site was made for base {site.base.digest} ({site.model}), the model {base.name} is another: its "
            f"{'; its '.join(problems)}: use that model, or make a store for this one (vllm-edit store init)"
        )


def check_material(method: str, material: Material) -> None:
    """Raises EditError where the site is another kind of method's."""
    needs = METHODS[method].needs
    if needs is not None and not isinstance(material, needs):
        fitting = [name for name, other in METHODS.items() if other.needs in (None, type(material))]
        raise EditError(
            f"method {method} cannot use this store's site; methods that can are {', '.join(sorted(fitting))}: name "
            f"one with --method, or make a store for {method} (vllm-edit store init)"
        )


def _site_and_material(store: Store | None, site: Site | None, material: Material | None) -> tuple[Site, Material]:
    """The site to compile at and what belongs to it, from the store where they are not given."""
    if store is not None:
        site = site or store.site()
        material = material or material_of(site, store.material())
    if site is None or material is None:
        raise EditError("compile_patch needs a store, or a site together with its second moment or network")
    if material.digest != site.material:
        what = "second moment" if isinstance(material, SecondMoment) else "network"
        raise EditError(f"the {what} has digest {material.digest}, the site was made with {site.material}")
    return site, material


def compiled_of(patch: Patch, method: str, base: Base, site: Site, result: MethodResult) -> CompiledPatch:
    """A method's result with the manifest that identifies it."""
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
