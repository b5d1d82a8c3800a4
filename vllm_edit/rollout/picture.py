"""Comparisons as a picture: for each metric, treatment minus control over time, with its interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vllm_edit.errors import EditError
from vllm_edit.pictures import check_drawable
from vllm_edit.rollout.rollout_report import RolloutReport

_POINTS = 2000  # more than a picture is wide


def draw(found: RolloutReport, path: Path) -> None:
    """Write the picture as PNG or SVG, by the path's suffix. The output is deterministic."""
    check_drawable(path)
    if not found.comparisons:
        raise EditError(f"rollout {found.rollout.name!r} has no metrics to draw")
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no global state, no window

    rows = len(found.comparisons)
    with matplotlib.rc_context({"svg.hashsalt": "vllm-edit", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(6.4, 0.6 + 2.0 * rows), layout="constrained")
        for place, result in enumerate(found.comparisons):
            axes = figure.add_subplot(rows, 1, place + 1)
            estimate, lower, upper = result.path
            n = len(estimate)
            shown = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).astype(int)) if n else np.arange(0)
            axes.fill_between(shown + 1, lower[shown], upper[shown], alpha=0.25, linewidth=0)
            axes.plot(shown + 1, estimate[shown])
            axes.axhline(0.0, color="black", linewidth=0.6)
            if not n:
                axes.set(xticks=[], yticks=[])
            if result.decided_at is not None:
                axes.axvline(result.decided_at, color="black", linewidth=0.6, linestyle=":")
            axes.set_ylabel(result.metric.name)
            axes.set_title(f"{result.metric.name}: {result.verdict} ({result.metric.better} is better)")
        axes.set_xlabel("users of both arms")
        figure.suptitle(f"{found.rollout.name}: treatment minus control, intervals valid at every look")
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)
