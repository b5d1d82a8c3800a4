"""MEND (arXiv 2110.11309): the gradient of an edit, transformed by a trained network, is the edit's delta.

An edit costs one forward, one short backward and the network; nothing is optimised. Edits of one patch are taken each
on its own and added up (their ranks add), as in the paper's batched edits; a rank above the site's is truncated by QR
and SVD, and the report says what energy that drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_edit.composition.closed_form import as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.editing.base import Base
from vllm_edit.editing.hooks import find_module, frozen
from vllm_edit.editing.hypernetwork.gradients import token_gradients
from vllm_edit.editing.hypernetwork.network import Hypernetwork
from vllm_edit.editing.hypernetwork.settings import MendSettings
from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.models import linear_shape
from vllm_edit.editing.one_example import example_rows, recheck
from vllm_edit.editing.rows import Row, leads
from vllm_edit.editing.settings import Progress
from vllm_edit.errors import Incompatible
from vllm_edit.patch import Edit, Patch
from vllm_edit.store.site import Site


def edit_deltas(base: Base, network: Hypernetwork, rows: Sequence[Row], tokens: int) -> list[Delta]:
    """Each row's delta as if it were alone: rank = tokens that its loss depends on. The base is left as it was.

    rows: prompts with answers (`one_example.example_rows`).  tokens: most tokens in one forward pass.
    """
    gradients = token_gradients(base.model, network.modules_edited, rows, tokens)
    with torch.no_grad():
        factors = network(gradients)
    deltas = []
    for index in range(len(rows)):
        parts = {}
        for name, (A, B) in factors.items():
            counted = gradients[name].counted[index]
            parts[name] = LowRank(B=B[index][:, counted].cpu(), A=A[index][counted].cpu())
        deltas.append(Delta(parts))
    return deltas


def compile_edits(
    base: Base,
    site: Site,
    network: Hypernetwork,
    edits: Sequence[Edit],
    settings: MendSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """The sum of the edits' deltas, truncated to the site's rank, re-checked as it will be saved.

    Raises:
        UnsafeEdit: an edit missed its target, by name.
        Incompatible: the network is for other matrices.
    """
    _prepare(base, network)
    rows = example_rows(edits, base.tokenizer)
    return _judged(base, site, network, edits, rows, edit_deltas(base, network, rows, settings.batch_tokens), settings)


def compile_each(
    base: Base,
    site: Site,
    network: Hypernetwork,
    patches: Sequence[Patch],
    settings: MendSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """Several patches, each as if it were alone; their gradients are taken in one batch."""
    _prepare(base, network)
    rows = example_rows([edit for patch in patches for edit in patch.edits], base.tokenizer)
    deltas = edit_deltas(base, network, rows, settings.batch_tokens)
    results, start = [], 0
    for patch in patches:
        own = slice(start, start + len(patch.edits))
        start = own.stop
        again = example_rows(patch.edits, base.tokenizer)
        results.append(_judged(base, site, network, patch.edits, again, deltas[own], settings))
        if progress:
            progress("re-checking", len(results), len(patches))
    return results


def _judged(
    base: Base,
    site: Site,
    network: Hypernetwork,
    edits: Sequence[Edit],
    rows: Sequence[Row],
    deltas: Sequence[Delta],
    settings: MendSettings,
) -> MethodResult:
    whole = Delta.concatenate(deltas)
    reduced, dropped = whole.truncate(site.max_rank)
    delta = Delta({name: as_saved(part) for name, part in reduced.parts.items()})
    with frozen(base.model), whole.apply(base.model):
        margins = leads(base.model, rows, settings.batch_tokens)
    report: dict[str, Any] = recheck(base, site, edits, rows, delta, margins, settings)
    return MethodResult(
        delta=delta,
        settings=settings.identity(network.digest),
        report={**report, "rank": whole.rank, "energy_kept": 1 - dropped},
    )


def _prepare(base: Base, network: Hypernetwork) -> None:
    """Refuse a network for other matrices, and move it, in place, to where the base is."""
    found = {name: linear_shape(find_module(base.model, name)) for name in network.shapes}
    if found != network.shapes:
        raise Incompatible(f"the network is for matrices {network.shapes}, {base.name} has {found}")
    network.to(base.device)
