"""Average effects as tables for the CLI: a summary, then one map per kind of state."""

from __future__ import annotations

from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from vllm_edit.text.printable import printable
from vllm_edit.tracing.corruption import KINDS
from vllm_edit.tracing.effects import KIND_LABELS, ROLES, AverageEffects, Mean, Peak


def effects_table(found: AverageEffects) -> Group:
    """The effect of the corruption, each role's strongest layer, and the averages of all layers."""
    trace = found.trace
    traced, samples = _counted(len(trace.prompts), "prompt"), _counted(trace.settings.samples, "noise sample")
    head = (
        f"{trace.base}: {traced}, {samples} of "
        f"{trace.settings.noise:g} σ (σ = {trace.deviation:.3g}); MLP and attention over windows of {trace.window} of "
        f"{trace.depth} layers"
    )
    lines: list[ConsoleRenderable] = [
        Text(printable(head), style="bold"),
        Text(
            f"P(own answer): clean {shown(found.clean)}, corrupted {shown(found.corrupted)}, "
            f"total effect {shown(found.total)}"
        ),
        _peaks(found),
        *(_map(found, place) for place in range(len(KINDS))),
        Text("\n".join(verdicts(found))),
    ]
    return Group(*lines)


def verdicts(found: AverageEffects) -> list[str]:
    """Lines with the outstanding roles, the handover to the last token, and the site with the strongest MLP effect.

    Hidden states have no outstanding role: the last token at the last layer has the whole effect by construction.
    """
    lines = []
    for kind in KINDS[1:]:
        peak = found.outstanding(kind)
        if peak:
            lines.append(f"{KIND_LABELS[kind]}: {_where(peak)} stands out ({shown(peak.mean)})")
        else:
            lines.append(f"{KIND_LABELS[kind]}: no token role stands out from all others")
    handover = found.handover()
    if handover is not None:
        lines.append(f"hidden state: from layer {handover} on the last token carries more than the subject's")
    layer, token = found.suggested_site()
    lines.append(f"strongest MLP effect at a token that a site can have: layer {layer}, token {token}")
    return lines


def shown(mean: Mean) -> str:
    """The mean with its interval, as in 0.123 [0.10, 0.15]."""
    return f"{mean.value:.3f}" + ("" if mean.low is None else f" [{mean.low:.2f}, {mean.high:.2f}]")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _where(peak: Peak) -> str:
    return f"the {ROLES[peak.role]} at layer {peak.layer}"


def _peaks(found: AverageEffects) -> Table:
    made = Table(title="strongest average indirect effect, with its layer", title_justify="left", title_style="dim")
    made.add_column("token")
    for kind in KINDS:
        made.add_column(KIND_LABELS[kind], justify="right")
    columns = [{peak.role: peak for peak in found.peaks(kind)} for kind in KINDS]
    for role, label in ROLES.items():
        if role in columns[0]:
            made.add_row(label, *(Text(f"{shown(c[role].mean)} at {c[role].layer}") for c in columns))
    return made


def _map(found: AverageEffects, place: int) -> Table:
    kind = KINDS[place]
    roles = found.by_kind[kind]
    made = Table(title=f"average indirect effect: {KIND_LABELS[kind]}", title_justify="left", title_style="dim")
    made.add_column("layer", justify="right")
    for role in roles:
        made.add_column(ROLES[role], justify="right")
    most = max(mean.value for means in roles.values() for mean in means)
    for layer in range(found.trace.depth):
        values = [means[layer].value for means in roles.values()]
        made.add_row(str(layer), *(Text(f"{value:.3f}", style=_style(value, most)) for value in values))
    return made


def _style(value: float, most: float) -> str:
    """Bold for at least half of the map's largest effect, dim for less than a tenth of it."""
    return "bold" if value >= most / 2 > 0 else "dim" if value < most / 10 else ""
