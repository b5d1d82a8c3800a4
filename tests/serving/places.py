"""A store with strong random patches over a tiny llama, made through the store's own contracts, for serving tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.tiny import save_tiny
from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration, Factors
from vllm_edit.artefacts.folder import demonstrations_digest
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.composition.scoped import assemble
from vllm_edit.composition.solver import System, as_saved, solve
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.ike.template import demonstration, query
from vllm_edit.patch import Patch
from vllm_edit.store.store import Store

MODULE = "model.layers.1.mlp.down_proj"
D_IN, D_OUT = 96, 64
MOMENT = {"moment": torch.eye(D_IN)}
STRENGTH = 3.0  # so strong that every patch gives other tokens than every other and than base


def make_model(folder: Path) -> Path:
    return save_tiny("llama", folder)


def make_site(model: Path, **changed: object) -> Site:
    settings = {
        "base": Fingerprint.of_folder(model),
        "model": str(model),
        "modules": (MODULE,),
        "layer": 1,
        "token": "subject_last",
        "d_in": D_IN,
        "d_out": D_OUT,
        "contexts": (Context(),),
        "second_moment": digest_tensors(MOMENT),
        "second_moment_count": 1,
        "ridge": 0.0,
        "damping": 0.1,
        "residual_scale": 1.0,
        "max_rank": 8,
        "slots": 16,
    }
    return Site.model_validate(settings | changed)


def make_store(folder: Path, site: Site) -> Store:
    return Store.create(folder, site, MOMENT)


def one_tenant(folder: Path, seed: int, *, published: bool) -> Path:
    """A store in `folder` with the patch `capital` and the tenant `acme`, to which it may be published."""
    store = make_store(folder / "store", make_site(make_model(folder / "model")))
    name = add_patch(store, "capital", seed)
    store.registry.create_tenant("acme")
    if published:
        store.registry.publish("acme", name)
    store.registry.close()
    return folder / "store"


def add_patch(store: Store, patch: str, seed: int) -> str:
    """Save a random rank-1 patch, as one that its gate accepted, and return its full name."""
    return save_accepted(store, random_patch(store.site(), patch, seed))


def save_accepted(store: Store, compiled: CompiledPatch) -> str:
    name = store.save(compiled)
    store.registry.set_status(name, "accepted")
    return name


def random_patch(site: Site, patch: str, seed: int) -> CompiledPatch:
    generator = torch.Generator().manual_seed(seed)
    B = STRENGTH * torch.randn(D_OUT, 1, generator=generator)
    A = STRENGTH * torch.randn(1, D_IN, generator=generator) / D_IN**0.5
    delta = Delta({MODULE: LowRank(B, A)})
    edit = Edit(prompt="The capital of France is", subject="France", target_new=f"City{seed}")
    bank = _demonstrations(edit)
    manifest = Manifest(
        patch=patch,
        method="rome",
        base=site.base.digest,
        site=site.digest,
        modules=site.modules,
        edits=(edit,),
        rank=1,
        adapter=delta.digest,
        demonstrations=demonstrations_digest(bank),
    )
    return CompiledPatch(manifest=manifest, delta=delta, demonstrations=bank)


def scoped_patch(
    site: Site, patch: str, subjects: Sequence[tuple[str, ...]], seed: int = 0, same_key: bool = False
) -> CompiledPatch:
    """A patch with scope subject and random factors: for each subject, given by its names, a unit of rank 1."""
    generator = torch.Generator().manual_seed(seed)
    units = []
    common = torch.randn(1, site.d_in, generator=generator)
    for name, *aliases in subjects:
        edit = Edit(prompt=f"The capital of {name} is", subject=name, target_new="City", aliases=tuple(aliases))
        key = common if same_key else torch.randn(1, site.d_in, generator=generator)
        residual = STRENGTH**2 * torch.randn(1, site.d_out, generator=generator)
        factors = Factors(keys=key, whitened=key.clone(), residuals=residual)
        system = System.of(key, key, [0], site.damping)
        delta = Delta({site.module: as_saved(solve(system, residual))})
        units.append(
            CompiledPatch(
                Manifest(
                    patch=patch,
                    method="rome",
                    base=site.base.digest,
                    site=site.digest,
                    modules=site.modules,
                    edits=(edit,),
                    settings={"damping": site.damping},
                    groups=(KeyGroup(edits=(0,)),),
                    columns=(Column(group=0, form="plain"),),
                    rank=1,
                    adapter=delta.digest,
                    factors=digest_tensors(factors.tensors()),
                ),
                delta,
                factors,
            )
        )
    declared = Patch(name=patch, scope="subject", edits=tuple(unit.manifest.edits[0] for unit in units))
    whole = assemble(declared, units)
    bank = tuple(
        item.model_copy(update={"edit": number})
        for number, edit in enumerate(declared.edits)
        for item in _demonstrations(edit)[1:]
    )
    manifest = whole.manifest.model_copy(update={"demonstrations": demonstrations_digest(bank)})
    return replace(whole, manifest=manifest, demonstrations=bank)


def _demonstrations(edit: Edit) -> tuple[Demonstration, ...]:
    fact = f"{edit.prompt} {edit.target_new}"
    own = Demonstration(kind="copy", fact=fact, prompt=edit.prompt, answer=edit.target_new, tokens=20, edit=0)
    last = Demonstration(kind="fact", fact=fact, prompt="", answer="", tokens=10, edit=0)
    bank = Demonstration(
        kind="retain", fact="The capital of Japan is Tokyo", prompt="Who wrote Hamlet?", answer="Shakespeare", tokens=20
    )
    assert demonstration(own.fact, own.prompt, own.answer).startswith(query(fact, ""))
    return bank, own, last
