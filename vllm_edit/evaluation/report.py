"""Report: what an evaluation found. JSON-able; compared with a gate; shown as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm_edit.datasets import LeftOut
from vllm_edit.patch import Gate

Mode = Literal["base", "weights", "ike"]
MODES: tuple[Mode, ...] = ("base", "weights", "ike")
Protocol = Literal["generation", "argmax", "nll"]
PROTOCOLS: dict[Protocol, str] = {
    "generation": "free greedy generation: the first line mentions the answer (locality: is what base says)",
    "argmax": "teacher forcing: every token of the answer is the most likely one",
    "nll": "teacher forcing: mean token NLL of new against true answer (CounterFact's ES, PS, NS, S; EM, PM, NM and "
    "shifts from base in nats)",
}


_NUMBERED = 8  # of many edits, how many are named


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measure(_Frozen):
    """One number with the protocol that it was measured by. Mean over a case's questions, then over edits.

    n: questions, of which `refused` fail because the edit was refused or a server would refuse the prompt; edits: edits
    they belong to. low, high: 95 % interval over edits (over the questions where only one edit was asked), by
    `interval`; None where a number has none.
    """

    mode: Mode
    metric: str
    protocol: Protocol
    value: float
    low: float | None = None
    high: float | None = None
    interval: Literal["wilson", "bootstrap"] | None = None
    n: int
    edits: int
    refused: int = 0


class Cost(_Frozen):
    """What a mode costs. tokens_added: mean per answer. seconds_per_answer: in the batches of this evaluation.
    latency_s: median of single answers asked alone, after a warm-up; `latency_n` of them."""

    mode: Mode
    answers: int
    tokens_added: float
    seconds_per_answer: float
    latency_s: float | None = None
    latency_n: int = 0


class Drift(_Frozen):
    """Perplexity of ordinary text in mode weights against base, by teacher forcing over the same `tokens`.

    value: relative change: 0.02 is 2 % worse, negative is better. unserved: of the `texts`, those that a server would
    refuse as a prompt, which are not counted; why: of the first of them.
    """

    texts: int
    tokens: int
    base: float
    edited: float
    value: float
    unserved: int = 0
    why: str = ""


class Answer(_Frozen):
    """One question with the raw answer of each mode, and whether it counted as right (locality: as unchanged).

    A refused edit has no answer in mode weights, nor has a prompt that a server would refuse.
    """

    patch: str
    edit: int
    subject: str
    relation: str
    metric: str
    tag: str
    prompt: str
    chat: bool
    expected: str | None
    expected_aliases: tuple[str, ...] = ()
    texts: dict[Mode, str]
    right: dict[Mode, bool]


class Report(_Frozen):
    """The result of `evaluate`. `measures` over everything, `relations` the generation measures by relation."""

    patches: tuple[str, ...]
    engine: str
    modes: tuple[Mode, ...]
    edits: int
    split: str | None = Field(description="which probes were asked: gate, tune, or None for both")
    max_tokens: int = Field(description="of an answer; by default at least so many: as a longer accepted answer needs")
    measures: tuple[Measure, ...]
    relations: dict[str, tuple[Measure, ...]] = Field(default_factory=dict)
    costs: tuple[Cost, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict, description="patch that was not compiled → why")
    unserved: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="patch → prompt that a server would refuse in mode weights → why: it fails"
    )
    not_asked: dict[str, int] = Field(
        default_factory=dict,
        description="keeping metric → probes left out, since another edit of the patch changes what they ask",
    )
    left_out: tuple[LeftOut, ...] = Field((), description="records of a data set that are no edit")
    unjudged: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="limit of the gate → edits (by number) that nothing was asked of for it"
    )
    drift: Drift | None = Field(None, description="None where no text was given, or mode weights was not asked")
    answers: tuple[Answer, ...] | None = None

    def find(self, metric: str, mode: Mode, protocol: Protocol = "generation") -> Measure | None:
        """The measure, or None if nothing was asked for it."""
        wanted = (metric, mode, protocol)
        return next((m for m in self.measures if (m.metric, m.mode, m.protocol) == wanted), None)

    @property
    def not_judged(self) -> str:
        """`unjudged` in a line; empty if there is nothing to say."""
        return "; ".join(
            metric if len(edits) == self.edits else f"{metric} of {_numbered(edits)}"
            for metric, edits in self.unjudged.items()
        )

    def gate(self, gate: Gate, mode: Mode = "weights") -> list[str]:
        """One line per metric that misses the gate; empty if it passes. Metrics without a probe are not judged, which
        `unjudged` says.

        Judged by free generation: reliability and the changing kinds by the wanted answer, the keeping kinds by being
        unchanged from base. A limit of perplexity's drift fails where the drift was not measured.
        """
        failures = []
        for metric, least in gate.shares().items():
            measure = self.find(metric, mode)
            if measure is not None and measure.value < least:
                refused = f" ({measure.refused} of them refused)" if measure.refused else ""
                failures.append(
                    f"{metric}: {measure.value:.3f} over {measure.n} prompts{refused}, the gate asks for {least:g}"
                )
        if mode == "weights" and gate.perplexity_drift is not None:
            failures += _beyond(gate.perplexity_drift, self.drift)
        return failures


def _numbered(edits: Sequence[int]) -> str:
    """ "edit 3", or "37 edits (0, 3, 7, …)"."""
    if len(edits) == 1:
        return f"edit {edits[0]}"
    some = [str(edit) for edit in edits[:_NUMBERED]] + ["…"] * (len(edits) > _NUMBERED)
    return f"{len(edits)} edits ({', '.join(some)})"


def _beyond(most: float, drift: Drift | None) -> list[str]:
    """Why the drift is not within its limit."""
    if drift is None:
        return [
            f"perplexity_drift: not measured for want of text, the gate allows {most:g}; "
            "keep passages in the store with `vllm-edit store passages`"
        ]
    failures = []
    if drift.unserved:
        failures.append(
            f"perplexity_drift: {drift.unserved} of {drift.texts} passages would be refused by a server: {drift.why}"
        )
    if not drift.value <= most:
        failures.append(
            f"perplexity_drift: {drift.value:.4f} over {drift.texts} passages ({drift.base:.3f} → {drift.edited:.3f}), "
            f"the gate allows {most:g}"
        )
    return failures
