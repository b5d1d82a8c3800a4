"""Average effects as an image: one heat map per kind of state, with token roles as rows and layers as columns."""

from __future__ import annotations

from pathlib import Path

from vllm_edit.pictures import check_drawable
from vllm_edit.tracing.corruption import KINDS
from vllm_edit.tracing.effects import KIND_LABELS, ROLES, AverageEffects

_COLOURS = ("Purples", "Greens", "Reds")  # the paper's: hidden state, MLP, attention


def draw_heat_map(found: AverageEffects, path: Path) -> None:
    """Write the image as PNG or SVG, depending on the path's suffix. The same effects give the same file."""
    check_drawable(path)
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no global state, no window

    depth = found.trace.depth
    with matplotlib.rc_context({"svg.hashsalt": "vllm-edit", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(min(6.4 + 0.2 * depth, 14.0), 2.6), layout="constrained")
        for place, (kind, colours) in enumerate(zip(KINDS, _COLOURS, strict=True)):
            roles = found.by_kind[kind]
            values = [[mean.value for mean in means] for means in roles.values()]  # [roles, layers]
            axes = figure.add_subplot(1, len(KINDS), place + 1)
            # Scales start at 0 (small negative effects are noise). Each map has its own scale, as kinds differ in size.
            image = axes.imshow(values, cmap=colours, vmin=0, aspect="auto")
            axes.set_title(f"{KIND_LABELS[kind]}" + ("" if kind == "hidden" else f", window {found.trace.window}"))
            axes.set_xlabel("layer")
            axes.set_xticks(range(0, depth, max(1, depth // 8)))
            axes.set_yticks(range(len(roles)), [ROLES[role] for role in roles] if place == 0 else [""] * len(roles))
            figure.colorbar(image, ax=axes)
        figure.suptitle(
            f"Average indirect effect on P(own answer): {found.trace.base}, {len(found.trace.prompts)} prompts"
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)
