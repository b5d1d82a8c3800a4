"""The table and the picture of RESULTS.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lifelong.answers import METRICS, Share
from benchmarks.lifelong.run import Published

_DRIFT, _NORM = "perplexity drift", "‖ΔW‖ / ‖W‖"
_PANELS = (*METRICS, _DRIFT, _NORM)


def section(data: Mapping[str, Any], found: Mapping[str, Sequence[Published]]) -> str:
    """The section. found: title → what was measured after each batch."""
    columns = (
        "protocol",
        "batches",
        "edits",
        *(f"at edit: {metric}" for metric in METRICS),
        *(f"so far: {metric}" for metric in METRICS),
        "drift",
        "‖ΔW‖/‖W‖",
        "beyond a limit",
    )
    lines = [
        f"Up to {data['batches']} batches of {data['size']} edits of {data['model']}: a seeded draw of CounterFact's "
        "facts, one of each subject. composed: every batch is compiled from the clean base, and all batches so far are "
        "solved together. sequential: AlphaEdit's protocol; every batch is compiled on the model that the earlier ones "
        "edited, and their keys are preserved. All have the same few rows: the prompt as text, bare and after "
        f"{data['prefixed']} contexts. AlphaEdit's `null_space` is {data['null_space']:g}. Sites: {data['sites']}. "
        f"Free greedy answers of at most {data['tokens']} tokens through {data['engine']}.",
        "",
        "At edit: the batches since the line above, each asked when it was published. So far: a seeded sample of at "
        f"most {data['sample']} of all edits. One paraphrase and one neighbour an edit; locality: the answer is what "
        f"base says. Drift: relative change of the perplexity of {data['passages']} passages. Beyond a limit: edits "
        "that the product would refuse, in the batches since the line above. A protocol whose run was stopped has "
        f"fewer lines. {data['machine']}",
        "",
        "![lifelong editing](results/lifelong.svg)",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for title, published in found.items():
        for since, last in spans(published):
            edits = last.edits - (published[since[0].batches - 2].edits if since[0].batches > 1 else 0)
            so_far = last.so_far or {}
            cells = [
                *(f"{at_edit(since, metric).value:.3f}" for metric in METRICS),
                *(f"{so_far[metric].value:.3f}" for metric in METRICS),
                f"{last.drift:+.1%}",
                f"{last.norm:.3f}",
                f"{sum(one.missed for one in since)} of {edits}",
            ]
            lines.append(f"| {title} | {last.batches} | {last.edits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spans(published: Sequence[Published]) -> list[tuple[list[Published], Published]]:
    """For each milestone the batches since the one before, and the last of them."""
    found: list[tuple[list[Published], Published]] = []
    since: list[Published] = []
    for one in published:
        since.append(one)
        if one.so_far is not None:
            found.append((since, one))
            since = []
    return found


def at_edit(published: Sequence[Published], metric: str) -> Share:
    """The batches' shares at edit, together."""
    return sum((one.at_edit[metric] for one in published), Share())


def _value(one: Published, panel: str) -> float:
    """What a panel shows of a milestone."""
    if panel in METRICS:
        return one.so_far[panel].value if one.so_far else math.nan
    return {_DRIFT: one.drift, _NORM: one.norm}[panel] or 0.0


def plot(found: Mapping[str, Sequence[Published]], path: Path) -> None:
    """A panel for each metric, drift and norm over the number of batches; dashed: at edit."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "vllm-edit", "font.size": 8}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        for place, name in enumerate(_PANELS):
            axes = figure.add_subplot(2, 3, place + 1)
            for number, (title, published) in enumerate(found.items()):
                marks = spans(published)
                batches = [last.batches for _, last in marks]
                axes.plot(
                    batches, [_value(last, name) for _, last in marks], marker=".", color=f"C{number}", label=title
                )
                if name in METRICS:
                    shares = [at_edit(since, name).value for since, _ in marks]
                    axes.plot(batches, shares, linestyle="--", color=f"C{number}", alpha=0.6)
            axes.set_title(name)
            axes.set_xscale("log")
            if name in METRICS:
                axes.set_ylim(-0.03, 1.03)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="lower right", bbox_to_anchor=(0.98, 0.15))
        figure.supxlabel("batches published (dashed: at edit)")
        figure.savefig(path, metadata={"Date": None})
