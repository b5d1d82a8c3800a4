"""The figures as a section of RESULTS.md: for each set what is forced, what is generated, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.public.rows import ABLATIONS, ADDED, SLOW, WAYS, Title, titles
from benchmarks.public.sets import MEANINGS
from vllm_edit.errors import EditError

FORCED = {
    "ES": "ES",
    "PS": "PS",
    "NS": "NS",
    "NS_shift": "NS − base",
    "S": "S",
    "EM": "EM",
    "PM": "PM",
    "NM": "NM",
    "NM_shift": "NM − base",
    "EM_p": "EM (probability)",
    "PM_p": "PM (probability)",
    "NM_p": "NM (probability)",
}
"""Figure → heading. Teacher forcing."""
GENERATED = {
    "reliability": "reliability",
    "reliability_chat": "… chat",
    "paraphrase": "paraphrase",
    "paraphrase_elicited": "… where base gives the old answer",
    "paraphrase_old": "… old answer",
    "portability:reasoning": "portability, reasoning",
    "portability:subject_aliasing": "… subject aliasing",
    "portability:logical_generalization": "… logical generalization",
    "locality": "neighbours unchanged",
    "locality_kept": "… known ones still right",
    "locality_subject:relation_specificity": "same subject unchanged, relation specificity",
    "locality_subject:forgetfulness": "… forgetfulness",
    "locality_subject_kept": "… known ones still right",
    "unrelated": "unrelated unchanged",
    "unrelated_kept": "… known ones still right",
}
COSTS = {
    "edits": "edits",
    "fluency": "fluency (entropy × 100)",
    "fluency_shift": "… − base",
    "drift": "perplexity drift",
    "seconds": "seconds an edit",
    "cpu": "CPU seconds an edit",
    "tokens": "prompt tokens added",
    "missed": "beyond a limit",
}
OVERVIEW_SET = "known"
OVERVIEW = {
    "edits": "edits",
    "ES": "ES",
    "PS": "PS",
    "NS": "NS",
    "NS_shift": "NS − base",
    "NM_shift": "NM − base, nats",
    "reliability": "reliability",
    "reliability_chat": "… chat",
    "paraphrase": "paraphrase",
    "locality": "neighbours unchanged",
    "drift": "drift",
}
"""Figure → heading of the overview."""
TIMES = ("seconds", "cpu")
_CONDITIONS = ("model", "site", "engine", "max_tokens", "writes", "text", "seed")
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Set → row → figure → value, low, high, n, edits."""


def section(data: Mapping[str, Any]) -> str:
    """The whole section."""
    results: Results = data["sets"]
    ways = "; ".join(f"{way}: {meaning}" for way, meaning in WAYS.items())
    ways += f"; a method's name: compiled in one patch by it, of {' and '.join(ADDED)} the single edits' adapters added"
    baselines = f" {', '.join(SLOW)} are slow, and have the first {data['baselines']} edits of a set only."
    lines = [
        f"{data['model']}, site {data['site']}, asked through {data['engine']}. {data['machine']}",
        "",
        "Edits are made one at a time, in rows with a number so many at once: " + ways + ". Intervals are 95 %, over "
        "edits: Wilson's for shares, by resampling for what is none. Edits that are served together are not "
        "independent of each other. A difference from base is paired, question by question." + baselines,
    ]
    for name, rows in results.items():
        count = max(int(figures["reliability"]["edits"]) for figures in rows.values())
        lines += ["", f"### {name}: {count} edits", "", f"{MEANINGS[name][:1].upper()}{MEANINGS[name][1:]}."]
        tables = (_table(rows, heads) for heads in (FORCED, GENERATED, COSTS))
        lines += [line for table in tables if table for line in ("", *table)]
    return "\n".join([*lines, "", *_notes(data)])


def overview(data: Mapping[str, Any]) -> str:
    """The table of docs/methods.md: a few figures of the set `known`, without intervals."""
    rows = data["sets"][OVERVIEW_SET]
    lines = ["| | " + " | ".join(OVERVIEW.values()) + " |", "|---|" + "---|" * len(OVERVIEW)]
    for title, figures in rows.items():
        cells = [_value(name, figures[name]["value"]) if name in figures else "–" for name in OVERVIEW]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{data['model']}: {MEANINGS[OVERVIEW_SET]}. -subject: with scope subject. Rows with a number: that "
            "many edits at once. Differences from base are paired: a row of fewer edits compares with base on its own "
            "edits. Drift: relative change of the perplexity of ordinary text. `make bench-public`; what the columns "
            "mean, intervals and all other columns in [RESULTS.md](../benchmarks/RESULTS.md).",
        ]
    )


def without_times(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without seconds, for a run beside other programs."""
    sets = {
        name: {
            title: {key: figure for key, figure in figures.items() if key not in TIMES}
            for title, figures in rows.items()
        }
        for name, rows in data["sets"].items()
    }
    return {**data, "sets": sets}


def with_earlier(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with an earlier run's other sets and rows. The rows are in the order of `titles`.

    Raises:
        EditError: the earlier rows were measured otherwise.
    """
    if different := [name for name in _CONDITIONS if earlier[name] != data[name]]:
        raise EditError(f"the section's rows were measured with other {', '.join(different)}: leave --add out")
    sets = dict(earlier["sets"])
    for name, rows in data["sets"].items():
        both = {**sets.get(name, {}), **rows}
        order = (*titles(sorted({Title.of(title).size for title in both})), *ABLATIONS)
        sets[name] = {title: both[title] for title in sorted(both, key=order.index)}
    return {**data, "sets": {name: sets[name] for name in MEANINGS if name in sets}}


def _notes(data: Mapping[str, Any]) -> list[str]:
    return [
        "Forced: s is the mean token NLL of an answer. ES and PS: share with s(new) < s(true); NS: s(true) < s(new) on "
        "neighbours; S their harmonic mean. EM and PM: mean of s(true) − s(new), NM of s(new) − s(true), in nats; "
        "“probability”: the same of e^{-s}, as CounterFact's paper has it.",
        "",
        f"Generated: the first line of {data['max_tokens']} greedy tokens. Old answer: a paraphrase gets the old one: "
        "base's row says how many of these wordings elicit it at all. Unchanged: the answer is what base says. "
        "Known ones still right: of what base answers rightly, the share that is.",
        "",
        f"Fluency: n-gram entropy of 100 tokens sampled from the five likeliest after each of at most {data['writes']} "
        "edits' prompts, the end of text suppressed, base with the same random numbers. Drift: relative change of the "
        f"perplexity of pieces of {data['text']}. {_SECONDS if _timed(data['sets']) else ''}"
        "Beyond a limit: edits that the product would refuse; they are counted as they are.",
    ]


_SECONDS = (
    "Seconds: compiling, in batches where the method can; a row without them was measured beside other programs. "
)


def _timed(results: Results) -> bool:
    return any(name in figures for rows in results.values() for figures in rows.values() for name in TIMES)


def _table(rows: Mapping[str, Mapping[str, Any]], heads: Mapping[str, str]) -> list[str]:
    """A table of the figures that any row has; nothing where there are none (a set without old answers forces none)."""
    shown = [name for name in heads if any(name in figures for figures in rows.values())]
    if not shown:
        return []
    lines = ["| | " + " | ".join(heads[name] for name in shown) + " |", "|---|" + "---|" * len(shown)]
    for title, figures in rows.items():
        cells = [_cell(name, figures[name]) if name in figures else "–" for name in shown]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _cell(name: str, figure: Mapping[str, Any]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    shown = _value(name, value)
    if low is None:
        return shown
    low, high = (f"{end:.2f}" if name not in _UNITS else _UNITS[name](end) for end in (low, high))
    return f"{shown} [{low}, {high}]"


def _value(name: str, value: float) -> str:
    return f"{value:.3f}" if name not in _UNITS else _UNITS[name](value)


_LARGE_DRIFT = 10.0
"""Growth of the perplexity from which on its factor is written instead of per cent."""
_UNITS: Mapping[str, Callable[[float], str]] = {
    **dict.fromkeys(("NS_shift", "EM", "PM", "NM", "NM_shift", "EM_p", "PM_p", "NM_p"), "{:+.2f}".format),
    "fluency": lambda value: f"{100 * value:.1f}",
    "fluency_shift": lambda value: f"{100 * value:+.1f}",
    "drift": lambda value: f"{value:+.2%}" if value < _LARGE_DRIFT else f"× {1 + value:,.0f}",
    **dict.fromkeys(("seconds", "cpu"), "{:.2f}".format),
    **dict.fromkeys(("edits", "tokens", "missed"), "{:.0f}".format),
}
"""Figure that is no share → how it is written."""
