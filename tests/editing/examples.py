"""Helpers of the closed-form editor's tests: a tiny base, a site in it, and edits that a random model can take.

A random model's keys change with every prefix, so these sites have the bare context only, and targets of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.tiny import SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.artefacts.site import Context, Site, Token
from vllm_edit.deltas.delta import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.rome.factors import RomeFactors, alone, damping_of, margin_of, offsets, passes_over, prepare
from vllm_edit.editing.rome.residuals import train_residuals
from vllm_edit.editing.rome.served import served_leads
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment, second_moments
from vllm_edit.models.base import Base
from vllm_edit.models.rows import Row
from vllm_edit.patch import Patch

FRANCE = Edit(prompt="The capital of France is", subject="France", relation="capital", target_new="people")
JAPAN = Edit(prompt="The currency of Japan is the", subject="Japan", relation="currency", target_new="Paris")
BRAZIL = Edit(prompt="The official language of Brazil is", subject="Brazil", relation="language", target_new="French")
LOOSE = RomeSettings(
    fast_products=False,
    whole_words=False,
    forms=("plain",),
    ending=False,
    opening=False,
    same_ending=0,
    most_norm=20.0,
    steps=60,
    margin=1.0,
)
"""A random model needs larger updates than one that knows facts."""


@dataclass(frozen=True)
class Bench:
    """A base with a site and the second moment of its module."""

    base: Base
    site: Site
    moment: SecondMoment


def bench(family: str = "llama", token: Token = "last", layer: int = 2, **changes: object) -> Bench:
    """A tiny base of `family` with a site at `token` of `layer`; `changes` replace fields of the site."""
    tokenizer = tiny_tokenizer()
    base = Base.of(tiny_model(family, tokenizer), tokenizer)
    module = base.layout.down[layer]
    (moment,) = second_moments(base, [module], SENTENCES, minimum_ratio=4, ridge=0.01)
    fields: dict[str, object] = {
        "base": base.fingerprint,
        "model": family,
        "modules": (module,),
        "layer": layer,
        "token": token,
        "d_in": 96,
        "d_out": 64,
        "contexts": (Context(),),
        "second_moment": moment.digest,
        "second_moment_count": moment.count,
        "ridge": moment.ridge,
        "damping": 0.0,
        "residual_scale": 2.0,
        "max_rank": 8,
        "slots": 4,
    }
    return Bench(base, Site.model_validate(fields | changes), moment)


def patch_of(*edits: Edit, name: str = "tested") -> Patch:
    return Patch(name=name, edits=edits)


def trained(setup: Bench, edits: Sequence[Edit], settings: RomeSettings) -> RomeFactors:
    """The edits' factors after one round of training on all rows, without a check; each group's A is its own alone."""
    prepared = prepare(setup.base, setup.site, setup.moment, edits, settings)
    A = alone(prepared, damping_of(setup.site, settings))
    passes, wanted = (
        passes_over(setup.base, setup.site, prepared, A, settings),
        dict.fromkeys(range(len(prepared.rows)), margin_of(setup.site, settings)),
    )
    fixed = offsets(setup.base, setup.site, prepared, settings)
    found = train_residuals(passes, wanted, setup.site.residual_scale, settings, fixed)
    return RomeFactors(prepared, found, A)


def leads_alone(setup: Bench, computed: RomeFactors, rows: Sequence[Row]) -> torch.Tensor:
    """The lead of every row's answer under its own group's update and no other, in full passes, [rows]."""
    updates = [
        LowRank(B=residual[:, None], A=row[None])
        for residual, row in zip(computed.factors.residuals, computed.A, strict=True)
    ]
    return served_leads(setup.base, setup.site, rows, updates, [row.group for row in rows], 8192)
