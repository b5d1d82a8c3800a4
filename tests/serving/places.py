"""A store with strong random patches over a tiny llama, made through the store's own contracts, for serving tests."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import save_tiny
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.ike.template import demonstration, query
from vllm_edit.patch import Edit
from vllm_edit.store.artefacts import demonstrations_digest
from vllm_edit.store.compiled import CompiledPatch, Demonstration
from vllm_edit.store.digest import digest_tensors
from vllm_edit.store.manifest import Manifest
from vllm_edit.store.site import Context, Fingerprint, Site
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


def add_patch(store: Store, patch: str, seed: int) -> str:
    """Save a random rank-1 patch and return its full name."""
    return store.save(random_patch(store.site(), patch, seed))


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


def _demonstrations(edit: Edit) -> tuple[Demonstration, ...]:
    fact = f"{edit.prompt} {edit.target_new}"
    own = Demonstration(kind="copy", fact=fact, prompt=edit.prompt, answer=edit.target_new, tokens=20, edit=0)
    last = Demonstration(kind="fact", fact=fact, prompt="", answer="", tokens=10, edit=0)
    bank = Demonstration(
        kind="retain", fact="The capital of Japan is Tokyo", prompt="Who wrote Hamlet?", answer="Shakespeare", tokens=20
    )
    assert demonstration(own.fact, own.prompt, own.answer).startswith(query(fact, ""))
    return bank, own, last
