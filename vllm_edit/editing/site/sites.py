"""Making a site: what is measured once per base model, layer and token, and then fixed for a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.artefacts.site import LEGAL_RANKS, Context, Site, Token
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.editing.rome.keys import measure_outputs
from vllm_edit.editing.settings import Progress
from vllm_edit.editing.site.contexts import generate_contexts
from vllm_edit.editing.statistics import SecondMoment, second_moments
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row
from vllm_edit.thinking import thinking_of

PUBLISHED_DEPTH = 5 / 32
"""Layer 5 of 32: where the published ROME configurations edit Llama-2-7B, Llama-3-8B and Mistral-7B."""
DAMPING = 0.05
"""λ of a site that no sweep chose; MEMIT's and EMMET's published values are of this order at these scales."""
MAX_RANK = 16
_SCALE_TOKENS = 4096


@dataclass(frozen=True)
class MadeSite:
    """A site with the second moment that belongs to it: what `Store.create` needs."""

    site: Site
    moment: SecondMoment


def fixed_site(
    base: Base,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    token: Token = "subject_last",
    contexts: Sequence[Context] | None = None,
    damping: float = DAMPING,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    moment: SecondMoment | None = None,
    residual_scale: float | None = None,
    cache: Path | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> MadeSite:
    """The site at a given layer and token, without a sweep.

    texts: what C is measured on (text of the kind that the base was trained on).  layer: default the published fraction
    of the depth.  contexts: default `generate_contexts`.  max_rank: default 16, which a
    wrapped module hardly notices and a patch of ten edits needs.  moment, residual_scale: measured already.
    residual_scale defaults to the median over the texts' tokens.
    """
    layer = round(PUBLISHED_DEPTH * len(base.layout.layers)) if layer is None else layer
    module = module_at(base, layer)
    max_rank = MAX_RANK if max_rank is None else max_rank
    if max_rank not in LEGAL_RANKS:
        raise EditError(f"max_rank must be one of {', '.join(map(str, LEGAL_RANKS))} (vLLM's); got {max_rank}")
    d_out, d_in = linear_shape(find_module(base.model, module))
    if moment is None:
        (moment,) = second_moments(base, [module], texts, cache=cache, max_tokens=max_tokens, progress=progress)
    if residual_scale is None:
        residual_scale = scale_on_texts(base, layer, texts)
    site = Site(
        base=base.fingerprint,
        model=base.name,
        modules=(module,),
        layer=layer,
        token=token,
        d_in=d_in,
        d_out=d_out,
        contexts=tuple(generate_contexts(base, seed=seed) if contexts is None else contexts),
        second_moment=moment.digest,
        second_moment_count=moment.count,
        ridge=moment.ridge,
        damping=damping,
        residual_scale=residual_scale,
        thinking=thinking_of(base.tokenizer),
        max_rank=max_rank,
        slots=slots,
        seed=seed,
    )
    return MadeSite(site, moment)


def module_at(base: Base, layer: int) -> str:
    """The name of the module that is edited at a layer.

    Raises:
        EditError: the model has no such layer.
    """
    depth = len(base.layout.layers)
    if not 0 <= layer < depth:
        raise EditError(f"layer {layer} does not exist; {base.name} has layers 0 to {depth - 1}")
    return base.layout.down[layer]


def residual_scale(base: Base, layer: int, rows: Sequence[Row], tokens: int = 8192) -> float:
    """The unit of a residual at `layer`: the median over rows of an RMS at each row's position.

    It is that of the residual stream after the block, or of the down projection's output where the block normalises
    what its MLP adds.
    """
    layout = base.layout
    measured = layout.down[layer] if layout.renormed[layer] else layout.layers[layer]
    return float(measure_outputs(base.model, measured, rows, tokens).square().mean(1).sqrt().median())


def scale_on_texts(base: Base, layer: int, texts: Iterable[str]) -> float:
    """`residual_scale` at the last token of texts, each cut to a different length (the first tokens are outliers)."""
    rows: list[Row] = []
    read = 0
    for text in texts:
        ids = base.tokenizer(text)["input_ids"][: 8 + len(rows) % 57]
        if ids:
            rows.append(Row(0, 0, "text", tuple(ids), len(ids) - 1))
            read += len(ids)
        if read >= _SCALE_TOKENS:
            break
    if not rows:
        raise EditError("no text was given; expected some that the base was trained on, or like it")
    return residual_scale(base, layer, rows)
