"""A site, a compiled patch and a store of small random tensors, for tests of the store."""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration, Factors
from vllm_edit.artefacts.folder import demonstrations_digest, factors_digest
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.artefacts.reports import CompileReport
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.registry import migrations
from vllm_edit.store.store import Store

D_IN, D_OUT = 12, 8
MODULE = "model.layers.1.mlp.down_proj"


def moment() -> dict[str, torch.Tensor]:
    """The names are those of `SecondMoment.tensors`."""
    vectors = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(7))
    ridge = torch.tensor([0.01], dtype=torch.float64)
    return {"matrix": vectors.T @ vectors / 64, "count": torch.tensor([64]), "ridge": ridge}


def site(layer: int = 1) -> Site:
    return Site(
        base=Fingerprint(config="c" * 32, weights="w" * 32, tokenizer="t" * 32, chat_template="h" * 32),
        model="tiny",
        modules=(f"model.layers.{layer}.mlp.down_proj",),
        layer=layer,
        token="subject_last",
        d_in=D_IN,
        d_out=D_OUT,
        contexts=(Context(), Context(prefix="Indeed. ", chat=True)),
        second_moment=digest_tensors(moment()),
        second_moment_count=64,
        ridge=0.01,
        damping=0.1,
        residual_scale=1.0,
        max_rank=8,
        slots=16,
    )


def new_store(folder: Path) -> Store:
    return Store.create(folder, site(), moment())


def compiled(patch: str = "capital", seed: int = 0, target: str = "Lyon") -> CompiledPatch:
    random = torch.Generator().manual_seed(seed)
    keys, whitened = torch.randn(2, 1, D_IN, generator=random)
    residual = torch.randn(1, D_OUT, generator=random)
    delta = Delta({MODULE: LowRank(B=residual.T, A=whitened)})
    factors = Factors(keys=keys, whitened=whitened, residuals=residual)
    fact = "The capital of France is"
    demonstrations = (
        Demonstration(kind="copy", fact=f"{fact} {target}", prompt=fact, answer=target, tokens=17, edit=0),
        Demonstration(kind="retain", fact="全世界最帥的人是誰", prompt="誰是美國總統", answer="拜登", tokens=9),
    )
    manifest = Manifest(
        patch=patch,
        method="rome",
        base=site().base.digest,
        site=site().digest,
        modules=(MODULE,),
        edits=(Edit(prompt=fact, subject="France", relation="capital", target_new=target),),
        settings={"seed": seed},
        groups=(KeyGroup(edits=(0,)),),
        columns=(Column(group=0, form="plain"),),
        rank=1,
        adapter=delta.digest,
        factors=factors_digest(factors),
        demonstrations=demonstrations_digest(demonstrations),
    )
    report = CompileReport(norm=0.01, seconds=0.25)
    return CompiledPatch(manifest, delta, factors, demonstrations, report)


def newest_schema() -> str:
    """The number of the newest migration."""
    return max(path.stem[1:5] for path in (Path(migrations.__file__).parent / "versions").glob("v*.py"))
