"""`vllm-edit trace`: locate the layers and tokens at which the base recalls the facts that a patch changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, seed_of
from vllm_edit.cli.output import print_json, progress_bar, wide_console
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from vllm_edit.edit import Edit


def trace(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="PATCH.yaml, or DATASET.json or .jsonl (as `eval` takes them)."),
    ],
    model: Annotated[
        str | None, typer.Option(help="The model to trace; default: the patch's base, else atlas.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of edits.")] = None,
    seed: Annotated[int, typer.Option(parser=seed_of, metavar="N", help="Seed of the noise.")] = 0,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise, in standard deviations of the subjects' embeddings.")
    ] = 3.0,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples for each prompt.")] = 10,
    window: Annotated[
        int | None, typer.Option(min=1, help="Layers restored at once for MLP and attention; default: 10/48 of all.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens in one forward pass: the memory budget.")
    ] = 8192,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a heat map: *.png or *.svg.")] = None,
    json: JsonOption = False,
) -> None:
    """Find where the base model recalls the facts that a patch edits (causal tracing, ROME's first step).

    It traces the base's own answer, not the patch's target: the answer's probability on the clean prompt, with noise on
    the subject's tokens, and with clean states restored at one place at a time.
    """
    edits, named = _edits(file, limit)
    from vllm_edit.cli.model_inputs import SHIPPED, load_base
    from vllm_edit.pictures import check_drawable
    from vllm_edit.tracing.effects import AverageEffects
    from vllm_edit.tracing.effects_table import effects_table
    from vllm_edit.tracing.heat_map import draw_heat_map
    from vllm_edit.tracing.trace import TraceSettings
    from vllm_edit.tracing.trace import trace as traced

    if out is not None:
        check_drawable(out)
    settings = TraceSettings(noise=noise, samples=samples, window=window, seed=seed, batch_tokens=batch_tokens)
    base = load_base(model or named or SHIPPED)
    with progress_bar(file.name) as progress:
        found = AverageEffects(traced(base, edits, settings, progress))
    if out is not None:
        draw_heat_map(found, out)
    if json:
        print_json(found.as_record() | {"picture": str(out) if out else None})
    else:
        wide_console().print(effects_table(found))


def _edits(file: Path, limit: int | None) -> tuple[list[Edit], str | None]:
    """Return at most `limit` edits of a patch or data set, and the base that the patch names."""
    from vllm_edit.datasets import is_data_set, read_edits
    from vllm_edit.patch import Patch, is_patch_file

    if is_patch_file(file):
        patch = Patch.load(file)
        return list(patch.edits[:limit]), patch.base
    if is_data_set(file):
        return read_edits(file, limit)[:limit], None
    raise EditError(f"expected PATCH.yaml or DATASET.json to trace; got {file}")
