"""Rows of the table: ways of having the same edits. Each gives, portion by portion, what is asked."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from benchmarks.common.variants import VARIANTS, Variant
from benchmarks.public.compiled import Singles, Spent, Stopwatch
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.compose import compose
from vllm_edit.composition.scoped import assemble
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.network_methods import NETWORK_METHODS
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.requests import One
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import build_demonstrations
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress

ROME = "r-ROME"
METHODS: Mapping[str, Variant] = {ROME if name == "ROME" else name: variant for name, variant in VARIANTS.items()}
"""Row of single edits → its method."""
IKE, BASE = "IKE", "base"
WAYS: Mapping[str, str] = {
    "sum": "the single edits' adapters added",
    "composed": "the single edits solved together, as `vllm-edit compose` does",
    "joint": "compiled in one patch",
    "scoped": "one patch with scope subject",
}
"""Ways of having many edits at once, of r-ROME's edits."""
ADDED = ("MEND", "KE")
"""Methods whose edits at once are the single edits' adapters added; all others compile them in one patch."""
SLOW = ("FT-M", "FT-M limited", "LoRA", IKE)
"""Rows of few edits: they are trained one after the other, or asked behind a thousand tokens."""
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "no openings": {"opening": False},
    "no same endings": {"same_ending": 0},
    "neither of both": {"opening": False, "same_ending": 0},
    "words may go on": {"whole_words": False},
    "no rows to keep": {"kl_factor": 0.0},
    "plain form only": {"forms": ("plain",)},
    "text rows at first": {"first_rows": "text"},
    "all rows at first": {"first_rows": "all"},
    "all rows with longer steps": {"first_rows": "all", "learning_rate": 0.2, "norm_penalty": 0.001},
    "longer steps": {"learning_rate": 0.2},
    "longer steps with shortening": {"learning_rate": 0.2, "shortening": 3},
    "all rows with longer steps and shortening": {
        "first_rows": "all",
        "learning_rate": 0.2,
        "norm_penalty": 0.001,
        "shortening": 3,
    },
    "whole rows": {"whole_rows": True},
    "float32 products": {"fast_products": False},
    "λ = 0": {"damping": 0.0},
    "margin 1.5": {"margin": 1.5},
    "margin 5": {"margin": 5.0},
}
"""Row of single edits by r-ROME → what differs from the defaults."""
SUBJECT_ABLATION: Mapping[str, Mapping[str, Any]] = {
    "subject with the defaults of scope all": {
        "margin": None,
        "context_margin": 1.0,
        "learning_rate": 0.1,
        "norm_penalty": 0.01,
        "first_rows": "bare",
        "same_ending": 8,
    },
    "subject with margin 6": {"margin": 6.0, "context_margin": 4.0},
    "subject with margin 6 and longer steps": {"margin": 6.0, "context_margin": 4.0, "learning_rate": 0.4},
    "subject with shortening": {"shortening": 3},
}
"""Row of single edits by r-ROME with scope subject → what differs from that scope's defaults."""
ABLATIONS: Mapping[str, Mapping[str, Any]] = {**ABLATION, **SUBJECT_ABLATION}
"""The rows of both, in the order of the table."""
SUBJECT = "-subject"
SINGLE = (BASE, *METHODS, *(f"{title}{SUBJECT}" for title in METHODS), IKE)


@dataclass(frozen=True)
class Portion:
    """What is asked together.

    declared: edits, each in a patch of its own. made: those patches as a row has them, or one patch of all the edits.
    spent: what making them took.
    """

    declared: tuple[Patch, ...]
    made: tuple[One, ...]
    spent: Spent

    def owner(self, number: int) -> int:
        """The place in `made` of declared edit `number`."""
        return number if len(self.made) == len(self.declared) else 0


class Row(Protocol):
    """A way of having a set's edits. mode: in which they are asked. at_once: how many edits are a portion."""

    @property
    def mode(self) -> Mode: ...
    @property
    def at_once(self) -> int: ...
    def made(self, declared: Sequence[Patch], progress: Progress) -> Portion:
        """The declared edits, each in a patch of its own, as this row has them."""


@dataclass(frozen=True)
class Unedited:
    """The base."""

    mode: Mode = "base"
    at_once: int = 64

    def made(self, declared: Sequence[Patch], progress: Progress) -> Portion:
        return Portion(tuple(declared), tuple(declared), Spent())


@dataclass(frozen=True)
class Alone:
    """Each edit alone. subject: it is served to prompts that mention its subject only."""

    singles: Singles
    subject: bool = False
    mode: Mode = "weights"
    at_once: int = 32

    def made(self, declared: Sequence[Patch], progress: Progress) -> Portion:
        compiled, spent = self.singles.of(declared, progress)
        if self.subject:
            scoped = [patch.model_copy(update={"scope": "subject"}) for patch in declared]
            compiled = [assemble(patch, [unit]) for patch, unit in zip(scoped, compiled, strict=True)]
        return Portion(tuple(declared), tuple(compiled), spent)


@dataclass(frozen=True)
class InContext:
    """Each edit in front of the prompt, with demonstrations of the bank's facts (IKE); no weights are touched."""

    bank: Bank
    base: Base
    mode: Mode = "ike"
    at_once: int = 32

    def made(self, declared: Sequence[Patch], progress: Progress) -> Portion:
        watch, made = Stopwatch(), list[One]()
        for number, patch in enumerate(declared):
            progress("demonstrations", number, len(declared))
            demonstrations = build_demonstrations(patch, self.bank, self.base.tokenizer)
            made.append(Refused(patch, "asked in mode ike only", demonstrations))
        return Portion(tuple(declared), tuple(made), watch.spent())


@dataclass(frozen=True)
class Many:
    """`size` edits at once, one of `WAYS`. joint: with these settings a joint patch is compiled."""

    way: str
    size: int
    singles: Singles
    joint: Mapping[str, Any]
    mode: Mode = "weights"

    @property
    def at_once(self) -> int:
        return self.size

    def made(self, declared: Sequence[Patch], progress: Progress) -> Portion:
        name = f"{self.way}-{declared[0].name}"
        edits = tuple(edit for patch in declared for edit in patch.edits)
        if self.way == "joint":
            joint, spent = self.singles.together(Patch(name=name, edits=edits), self.joint, progress)
            return Portion(tuple(declared), (joint,), spent)
        units, spent = self.singles.of(declared, progress)
        watch = Stopwatch()
        whole = self._of_units(name, edits, units)
        return Portion(tuple(declared), (whole,), spent + watch.spent())

    def _of_units(self, name: str, edits: tuple[Any, ...], units: Sequence[CompiledPatch]) -> CompiledPatch:
        if self.way == "scoped":
            return assemble(Patch(name=name, scope="subject", edits=edits), units)
        composed = compose(units, name)
        if self.way == "composed" or composed.factors is None:
            return composed
        delta = Delta.concatenate([unit.delta for unit in units])
        manifest = composed.manifest.model_copy(update={"adapter": delta.digest})
        return replace(composed, manifest=manifest, delta=delta)


@dataclass(frozen=True)
class Title:
    """What a row's name says.

    entry: row of `METHODS` whose edits it has; None for base and IKE. way, size: how many edits at once, and how.
    """

    entry: str | None
    subject: bool = False
    way: str | None = None
    size: int = 1

    @classmethod
    def of(cls, text: str) -> Title:
        if text in (BASE, IKE):
            return cls(None)
        if text in ABLATIONS:
            return cls(ROME, text in SUBJECT_ABLATION)
        name, _, size = text.rpartition("-")
        if size.isdigit():
            if name in WAYS:
                return cls(ROME, name == "scoped", name, int(size))
            return cls(name, False, "sum" if name in ADDED else "joint", int(size))
        return cls(text.removesuffix(SUBJECT), text.endswith(SUBJECT))


def portions(row: Row, patches: Sequence[Patch]) -> Iterator[Sequence[Patch]]:
    """The set's patches in the parts that are made and asked together."""
    for start in range(0, len(patches), row.at_once):
        yield patches[start : start + row.at_once]


def titles(sizes: Sequence[int]) -> tuple[str, ...]:
    """Names of all rows, in the order of the table."""
    at_once = (*WAYS, *(title for title in METHODS if title != ROME))
    return (*SINGLE, *(f"{way}-{size}" for size in sizes for way in at_once))


def has_place(title: str, networks: Container[str]) -> bool:
    """False for a row of a method with a network that is not among these."""
    entry = Title.of(title).entry
    return entry is None or (method := METHODS[entry].method) not in NETWORK_METHODS or method in networks
