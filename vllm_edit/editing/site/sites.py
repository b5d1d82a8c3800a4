"""Making a site: the measurements for a base model, layer and token, which are fixed for a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.artefacts.site import Context, Site, Token, check_rank
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.editing.rome.keys import measure_outputs
from vllm_edit.editing.second_moment import SecondMoment, second_moments
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site.contexts import generate_contexts
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row
from vllm_edit.progress import Progress
from vllm_edit.text.thinking import thinking_of

PUBLISHED_DEPTH = 5 / 32
"""Layer 5 of 32, as in the published ROME configurations of Llama-2-7B, Llama-3-8B and Mistral-7B."""
DAMPING = 0.05
"""Default λ, for a site without a sweep; the published values of MEMIT and EMMET have this order of magnitude."""
MAX_RANK = 16
_SCALE_TOKENS = 4096


@dataclass(frozen=True)
class MadeSite:
    """A site with its second moment, as `Store.create` needs them."""

    site: Site
    moment: SecondMoment


@dataclass(frozen=True)
class LayeredSite:
    """A site over several layers with their second moments, as `Store.create` needs them."""

    site: Site
    moments: SecondMoments


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

    Args:
        texts: texts on which C is measured; they should resemble the base's training data.
        layer: default: the published fraction of the depth.
        contexts: default: `generate_contexts`.
        max_rank: default 16, which suffices for a patch of ten edits and costs little time in the engine.
        moment: a second moment that is measured already.
        residual_scale: a scale that is measured already; default: the median over tokens of the texts.

    Raises:
        EditError: the layer does not exist, vLLM does not support `max_rank`, or there is too little text.
    """
    layer = round(PUBLISHED_DEPTH * len(base.layout.layers)) if layer is None else layer
    module = module_at(base, layer)
    max_rank = MAX_RANK if max_rank is None else max_rank
    check_rank(max_rank)
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


def over_layers(
    base: Base,
    made: MadeSite,
    layers: Sequence[int],
    texts: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LayeredSite:
    """A site over `layers`, for MEMIT and AlphaEdit: token, contexts, scale and ranks are those of `made`.

    Args:
        made: the site at the last of the layers.
        layers: the layers, ascending.
        texts: the texts on which the second moment of `made` was measured; one pass over them measures all others.

    Raises:
        EditError: a layer does not exist, the layers do not end at the site's, or their modules differ in shape.
    """
    modules = [module_at(base, layer) for layer in layers]
    if list(layers) != sorted(set(layers)) or modules[-1:] != [made.site.module]:
        raise EditError(f"expected ascending layers that end at {made.site.layer}, got {', '.join(map(str, layers))}")
    shapes = {linear_shape(find_module(base.model, module)) for module in modules}
    if len(shapes) > 1:
        raise EditError(f"the layers of a site need modules of one shape, got [d_out, d_in] = {sorted(shapes)}")
    if len(modules) > 1 and any(base.layout.renormed[layer] for layer in layers):
        raise EditError(
            f"{base.name} normalises the output of its MLPs, so a residual cannot be spread over several layers; "
            f"give one layer (--layer {made.site.layer})"
        )
    moments = second_moments(base, modules[:-1], texts, ridge=made.moment.ridge, cache=cache, progress=progress)
    found = SecondMoments(dict(zip(modules, [*moments, made.moment], strict=True)))
    if len({moment.count for moment in found.by_module.values()}) > 1:
        raise EditError("the second moments of a site's layers must be measured on one text; give the site's own texts")
    changed = {"modules": tuple(modules), "layer": layers[0], "second_moment": found.digest}
    return LayeredSite(made.site.model_copy(update=changed), found)


def over_depth(
    base: Base,
    made: MadeSite,
    depth: int,
    texts: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LayeredSite:
    """The site over `depth` layers that end at the site's layer, or over all up to it if there are fewer.

    Raises:
        EditError: as `over_layers`.
    """
    last = made.site.layer
    return over_layers(base, made, range(max(0, last - depth + 1), last + 1), texts, cache=cache, progress=progress)


def module_at(base: Base, layer: int) -> str:
    """The name of the edited module at a layer.

    Raises:
        EditError: the model has no such layer.
    """
    depth = len(base.layout.layers)
    if not 0 <= layer < depth:
        raise EditError(f"layer {layer} does not exist; {base.name} has layers 0 to {depth - 1}")
    return base.layout.down[layer]


def residual_scale(base: Base, layer: int, rows: Sequence[Row], tokens: int = 8192) -> float:
    """The unit of a residual at `layer`: the median over rows of the RMS at each row's position.

    The RMS is that of the residual stream after the block, divided by the gain with which the block adds its MLP's
    output. If the block normalises its MLP's output, it is that of the down projection's output.
    """
    layout = base.layout
    measured = layout.down[layer] if layout.renormed[layer] else layout.layers[layer]
    size = float(measure_outputs(base.model, measured, rows, tokens).square().mean(1).sqrt().median())
    return size / layout.gain[layer]


def scale_on_texts(base: Base, layer: int, texts: Iterable[str]) -> float:
    """`residual_scale` at the last token of texts truncated to different lengths (the first tokens are outliers)."""
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
        raise EditError("no text was given; expected text that resembles the base's training data")
    return residual_scale(base, layer, rows)
