"""Compiling edits with a trained network, which makes an edit's delta from its gradient (MEND, KnowledgeEditor).

An edit costs one forward pass, one short backward pass, one run of the network, and some forward passes for the line
search of the update's length; nothing is trained. The deltas of a patch's edits are computed separately and summed
(their ranks add), as in the paper's batched edits. A rank above the site's maximum is truncated by QR and SVD; the
report contains the share of energy that remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import RecheckSettings, example_rows, form_rows, recheck
from vllm_edit.editing.hypernetworks.compile_settings import NetworkEditSettings
from vllm_edit.editing.hypernetworks.hypernetwork import Hypernetwork
from vllm_edit.editing.hypernetworks.line_search import least_scales
from vllm_edit.editing.method import MethodResult, all_or_refused
from vllm_edit.errors import Incompatible
from vllm_edit.json_value import JSONObject
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import leads
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress


@dataclass(frozen=True)
class EditDelta:
    """The delta of a single edit, and the scale by which the network's own update was multiplied."""

    delta: Delta
    scale: float


def edit_deltas(
    base: Base,
    network: Hypernetwork[Any],
    edits: Sequence[Edit],
    settings: NetworkEditSettings,
    progress: Progress | None = None,
) -> list[EditDelta]:
    """Each edit's delta. Its rank is the number of components that are no padding.

    The gradient is taken on the prompt as plain text; the `line_search` of the length uses plain text and a
    chat turn. The base is not changed.
    """
    rows = example_rows(edits, base.tokenizer)
    inputs = network.inputs(base, edits, rows, settings.batch_tokens)
    with torch.no_grad():
        factors = network(inputs)
        scales = torch.ones(len(rows))
        if settings.margin is not None:
            asked = form_rows(edits, base.tokenizer)
            scales = least_scales(base, factors, asked, settings.margin, settings.batch_tokens, progress=progress)
    made = []
    for index, scale in enumerate(scales.tolist()):
        parts = {}
        for name, (A, B) in factors.items():
            used = (A[index] != 0).any(1)
            parts[name] = LowRank(B=scale * B[index][:, used].cpu(), A=A[index][used].cpu())
        made.append(EditDelta(Delta(parts), scale))
    return made


def compile_edits(
    base: Base,
    site: Site,
    network: Hypernetwork[Any],
    edits: Sequence[Edit],
    settings: NetworkEditSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """The sum of the edits' deltas, truncated to the site's rank and checked as saved.

    Raises:
        UnsafeEdit: an edit missed its target; the message names the edit.
        Incompatible: the network was trained for other matrices.
    """
    (result,) = _separate(base, site, network, [edits], settings, progress)
    return result


def compile_each(
    base: Base,
    site: Site,
    network: Hypernetwork[Any],
    patches: Sequence[Patch],
    settings: NetworkEditSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """Compile several patches independently; their gradients are computed in one batch.

    Raises:
        UnsafeEdit: edits missed their targets; the message names those of all patches.
        Incompatible: the network was trained for other matrices.
    """
    return _separate(base, site, network, [patch.edits for patch in patches], settings, progress)


def parts_of(patches: Sequence[Sequence[Edit]]) -> list[slice]:
    """Where the edits of each patch are in the list of all edits."""
    ends = list(accumulate(map(len, patches)))
    return [slice(end - len(edits), end) for edits, end in zip(patches, ends, strict=True)]


def checked(
    base: Base,
    site: Site,
    edits: Sequence[Edit],
    whole: Delta,
    scales: Sequence[float],
    settings: RecheckSettings,
    identity: JSONObject,
) -> MethodResult:
    """A delta truncated to the site's rank and checked as saved.

    Args:
        whole: the delta of all edits, not truncated.
        scales: for each edit, the factor of its update by the line search.
        settings: the limits of the check.
        identity: the settings that identify the compiled patch.

    Raises:
        UnsafeEdit: an edit missed its target; the message names the edit.
    """
    rows = example_rows(edits, base.tokenizer)
    reduced, dropped = whole.truncate(site.max_rank)
    delta = Delta({name: as_saved(part) for name, part in reduced.parts.items()})
    with frozen(base.model), whole.apply(base.model):
        margins = leads(base.model, rows, settings.batch_tokens)
    report = recheck(base, site, edits, rows, delta, margins, settings)
    measured = {"scales": tuple(scales), "rank": whole.rank, "energy_kept": 1 - dropped}
    return MethodResult(delta, settings=identity, report=report.model_copy(update=measured))


def _separate(
    base: Base,
    site: Site,
    network: Hypernetwork[Any],
    patches: Sequence[Sequence[Edit]],
    settings: NetworkEditSettings,
    progress: Progress | None,
) -> list[MethodResult]:
    """A result for the edits of each patch."""
    _prepare(base, network)
    made = edit_deltas(base, network, [edit for edits in patches for edit in edits], settings, progress)
    identity = settings.identity(network.digest)

    def result(edits: Sequence[Edit], own: Sequence[EditDelta]) -> MethodResult:
        whole, scales = Delta.concatenate([edit.delta for edit in own]), [edit.scale for edit in own]
        return checked(base, site, edits, whole, scales, settings, identity)

    makers = [partial(result, edits, made[part]) for edits, part in zip(patches, parts_of(patches), strict=True)]
    return all_or_refused(makers, "re-checking", progress)


def _prepare(base: Base, network: Hypernetwork[Any]) -> None:
    """Check that the network is for the base's matrices, and move it to the base's device, in place."""
    found = {name: linear_shape(find_module(base.model, name)) for name in network.shapes}
    if found != network.shapes:
        raise Incompatible(f"the network is for matrices {network.shapes}, {base.name} has {found}")
    network.to(base.device)
