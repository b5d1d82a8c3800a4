"""Compiled patches of random factors at one site, without a model, for tests of composition."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.artefacts.compiled import CompiledPatch, Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.composition.solver import System, as_saved, solve
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.patch import Gate

D_IN, D_OUT = 40, 8
MODULE = "model.layers.1.mlp.down_proj"


def capital(country: str, target: str, *, aliases: tuple[str, ...] = (), relation: str = "capital") -> Edit:
    return Edit(
        prompt=f"The {relation} of {country} is", subject=country, aliases=aliases, relation=relation, target_new=target
    )


def key_of(*seeds: int) -> torch.Tensor:
    """Random keys, [len(seeds), D_IN]: one seed, one key, with C = I."""
    return torch.stack([torch.randn(D_IN, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def solved(
    name: str,
    edits: Sequence[Edit],
    keys: torch.Tensor,
    *,
    groups: Sequence[int] | None = None,
    kept: torch.Tensor | None = None,
    alias: torch.Tensor | None = None,
    damping: float = 0.0,
    gate: Gate | None = None,
    site: str = "s" * 32,
) -> CompiledPatch:
    """A patch with factors. keys: [edits, D_IN]; groups: the key group of each edit; kept: keys that must not move;
    alias: keys [n, D_IN] of other names of the first edit's subject."""
    owners = list(groups) if groups is not None else list(range(len(edits)))
    kept, alias = (torch.zeros(0, D_IN) if given is None else given for given in (kept, alias))
    columns = [Column(group=group, form="plain") for group in owners]
    columns += [Column(group=0, form=f"alias:{number}") for number in range(len(alias))]
    columns += [Column(group=0, form=f"keep:{number}", share=0.0) for number in range(len(kept))]
    count = max(owners) + 1
    seed = sum(map(ord, name))
    residuals = torch.randn(count, D_OUT, generator=torch.Generator().manual_seed(seed))
    stacked = torch.cat([keys, alias, kept])
    factors = Factors(stacked, stacked, residuals)
    groups_of, shares = [column.group for column in columns], [column.share for column in columns]
    update = as_saved(solve(System.of(factors.keys, factors.whitened, groups_of, damping, shares), residuals))
    delta = Delta({MODULE: update})
    manifest = Manifest(
        patch=name,
        method="rome",
        base="b" * 32,
        site=site,
        modules=(MODULE,),
        edits=tuple(edits),
        gate=gate or Gate(),
        settings={"damping": damping},
        groups=tuple(
            KeyGroup(edits=tuple(edit for edit, owner in enumerate(owners) if owner == group)) for group in range(count)
        ),
        columns=tuple(columns),
        rank=delta.rank,
        adapter=delta.digest,
        factors=digest_tensors(factors.tensors()),
    )
    return CompiledPatch(manifest, delta, factors)


def added(name: str, edits: Sequence[Edit], rank: int = 2, method: str = "mend") -> CompiledPatch:
    """A patch without factors, as a hypernetwork or fine-tuning makes it."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    update = LowRank(torch.randn(D_OUT, rank, generator=generator), torch.randn(rank, D_IN, generator=generator))
    delta = Delta({MODULE: as_saved(update)})
    manifest = Manifest(
        patch=name,
        method=method,
        base="b" * 32,
        site="s" * 32,
        modules=(MODULE,),
        edits=tuple(edits),
        rank=rank,
        adapter=delta.digest,
    )
    return CompiledPatch(manifest, delta)


def shift(patch: CompiledPatch, key: torch.Tensor) -> torch.Tensor:
    """Δ k [D_OUT] float64."""
    return patch.delta.parts[MODULE].dense().double() @ key.double()
