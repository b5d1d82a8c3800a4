"""Compiling edits with UltraEdit: one backward pass, one solve for each matrix, no training (arXiv 2505.14679).

The length of each edit's values is found with the edit alone. Then all tokens of all edits of a patch are solved
together. A rank above the site's maximum is truncated by QR and SVD; the report has the share of energy that remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_shape, linear_weight
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import form_rows
from vllm_edit.editing.hypernetworks.edits import checked, parts_of
from vllm_edit.editing.hypernetworks.line_search import least_scales
from vllm_edit.editing.method import MethodResult, all_or_refused
from vllm_edit.editing.ultraedit.answer_gradients import answer_gradients
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics
from vllm_edit.editing.ultraedit.least_squares import solved, values_of
from vllm_edit.editing.ultraedit.ultraedit_settings import UltraEditSettings
from vllm_edit.errors import Incompatible
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress

SCALES = tuple(2 ** (step / 2) for step in range(-6, 7))
"""Scales from an eighth of the given length to eight times that length; gradients of edits differ more than the updates
of a network that was trained to equal them out."""


@dataclass(frozen=True)
class MatrixTokens:
    """The tokens of n edits at one matrix.

    inputs: H [n, T, d_in]. values: V [n, T, d_out], scaled. counted: [n, T]. ridge: λ.
    """

    inputs: torch.Tensor
    values: torch.Tensor
    counted: torch.Tensor
    ridge: float

    def update(self, edits: slice) -> LowRank:
        """The update that solves all counted tokens of some edits together, on the CPU."""
        counted = self.counted[edits]
        H, V = self.inputs[edits][counted], self.values[edits][counted]  # [N, d_in], [N, d_out]
        return LowRank(B=solved(H, V, self.ridge).cpu(), A=H.double().cpu())


def compile_edits(
    base: Base,
    site: Site,
    statistics: GradientStatistics,
    edits: Sequence[Edit],
    settings: UltraEditSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """All edits solved together, truncated to the site's rank and checked as saved.

    Raises:
        UnsafeEdit: an edit missed its target; the message names the edit.
        Incompatible: the statistics are of other matrices.
    """
    (result,) = _separate(base, site, statistics, [edits], settings, progress)
    return result


def compile_each(
    base: Base,
    site: Site,
    statistics: GradientStatistics,
    patches: Sequence[Patch],
    settings: UltraEditSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """Compile several patches independently; their gradients and lengths are computed in one batch.

    Raises:
        UnsafeEdit: edits missed their targets; the message names those of all patches.
        Incompatible: the statistics are of other matrices.
    """
    return _separate(base, site, statistics, [patch.edits for patch in patches], settings, progress)


def _separate(
    base: Base,
    site: Site,
    statistics: GradientStatistics,
    patches: Sequence[Sequence[Edit]],
    settings: UltraEditSettings,
    progress: Progress | None,
) -> list[MethodResult]:
    """A result for the edits of each patch."""
    shapes = {name: own.shape for name, own in statistics.by_module.items()}
    if (found := {name: linear_shape(find_module(base.model, name)) for name in shapes}) != shapes:
        raise Incompatible(f"the statistics are of matrices {shapes}, {base.name} has {found}")
    statistics.to(base.device)
    tokens, scales = tokens_of(base, statistics, [edit for edits in patches for edit in edits], settings, progress)
    identity = settings.identity(statistics.digest)

    def result(edits: Sequence[Edit], own: slice) -> MethodResult:
        delta = Delta({name: part.update(own) for name, part in tokens.items()})
        return checked(base, site, edits, delta, scales[own], settings, identity)

    makers = [partial(result, edits, own) for edits, own in zip(patches, parts_of(patches), strict=True)]
    return all_or_refused(makers, "re-checking", progress)


def tokens_of(
    base: Base,
    statistics: GradientStatistics,
    edits: Sequence[Edit],
    settings: UltraEditSettings,
    progress: Progress | None = None,
) -> tuple[Mapping[str, MatrixTokens], list[float]]:
    """Module → the tokens of n edits, their values scaled to the edits' lengths; and the scale of each edit."""
    gradients = answer_gradients(base, tuple(statistics.by_module), edits, settings.batch_tokens)
    weights = {name: linear_weight(find_module(base.model, name)) for name in gradients}
    tokens = {
        name: MatrixTokens(
            inputs=gradients[name].inputs,
            values=values_of(own, gradients[name], weights[name], settings.length, settings.centred),
            counted=gradients[name].counted,
            ridge=settings.ridge * own.input_energy,
        )
        for name, own in statistics.by_module.items()
    }
    if settings.margin is None:
        return tokens, [1.0] * len(edits)
    alone = {name: (own.inputs, solved(own.inputs, own.values, own.ridge).float()) for name, own in tokens.items()}
    rows = form_rows(edits, base.tokenizer)
    scales = least_scales(base, alone, rows, settings.margin, settings.batch_tokens, SCALES, progress)
    factors = scales.to(base.device, torch.float32)[:, None, None]
    scaled = {
        name: MatrixTokens(own.inputs, factors * own.values, own.counted, own.ridge) for name, own in tokens.items()
    }
    return scaled, scales.tolist()
