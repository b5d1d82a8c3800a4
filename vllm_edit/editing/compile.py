"""`compile_patch`: a declared patch becomes an immutable, content-addressed artefact. The base stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_edit.editing import finetune, lora, rome, rome_each
from vllm_edit.editing.base import Base, unchanged
from vllm_edit.editing.method import Method, MethodResult, Settings
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Patch
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.digest import digest_tensors
from vllm_edit.store.manifest import Manifest
from vllm_edit.store.site import Site

if TYPE_CHECKING:
    from vllm_edit.store.store import Store

METHODS: Mapping[str, Method[Any]] = MappingProxyType(
    {
        "rome": Method(RomeSettings, rome.compile_edits, rome_each.compile_each),
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
    moment: SecondMoment | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompiledPatch:
    """Compile `patch` for `model` at the site of `store` (or at `site` with `moment`), and save it in the store.

    The model is bit-identical afterwards, also after an exception (asserted).

    Raises:
        UnsafeEdit: an edit missed its target or breaks a health limit; names it.
        Incompatible: the site is another base's.
        EditError: no such method, no site, too high a rank, or settings that are not valid.
    """
    chosen = method_of(method)
    values = settings_of(chosen, settings)
    base = model if isinstance(model, Base) else Base.load(model)
    site, moment = _site_and_moment(store, site, moment)
    check_base(base, site)
    if patch.base not in (None, base.name, site.model, Path(site.model).name):
        raise Incompatible(f"patch {patch.name} was written for base {patch.base!r}; this store's is {site.model!r}")
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
    if site.base != base.fingerprint:
        raise Incompatible(
            f"the site was made for base {site.base.digest} ({site.model}), the model {base.name} is "
            f"{base.fingerprint.digest}: use that model, or make a store for this one (vllm-edit store init)"
        )


def _site_and_moment(store: Store | None, site: Site | None, moment: SecondMoment | None) -> tuple[Site, SecondMoment]:
    """The site to compile at and its second moment, from the store where they are not given."""
    if store is not None:
        site = site or store.site()
        moment = moment or SecondMoment.from_tensors(store.moment())
    if site is None or moment is None:
        raise EditError("compile_patch needs a store, or a site together with its second moment")
    if moment.digest != site.second_moment:
        raise EditError(f"the second moment has digest {moment.digest}, the site was made with {site.second_moment}")
    return site, moment


def compiled_of(patch: Patch, method: str, base: Base, site: Site, result: MethodResult) -> CompiledPatch:
    """A method's result with the manifest that identifies it."""
    manifest = Manifest(
        patch=patch.name,
        method=method,
        base=base.fingerprint.digest,
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
