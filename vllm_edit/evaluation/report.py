"""The report of an evaluation: JSON-able, compared with a gate, printed as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from vllm_edit.artefacts.recorded import Recorded
from vllm_edit.datasets import LeftOut
from vllm_edit.errors import EditError
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


_NUMBERED = 8  # maximum number of edit indices in a message


class Measure(Recorded):
    """One metric's value by one protocol: the mean over an edit's questions, then over edits.

    Attributes:
        low, high: 95 % interval over edits (over questions if there is only one edit), by the method `interval`. None
            for a difference, and for S, of one edit with one question.
        n: number of questions, including `refused`.
        edits: number of edits that the questions belong to.
        refused: questions that fail because the edit was refused or a server would refuse the prompt.
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


class Cost(Recorded):
    """The cost of a mode.

    Attributes:
        answers: number of answers. An answer of a mode that is base's own, to the same request, is taken from base.
        tokens_added: mean number of tokens that the mode adds to a prompt.
        seconds_per_answer: mean over the answers that the engine was `asked` for, in the batches of this evaluation.
        latency_s: median seconds of `latency_n` single requests, after a warm-up.
        asked: number of answers that were not taken from base. None in an older report, whose seconds are over all.
    """

    mode: Mode
    answers: int
    tokens_added: float
    seconds_per_answer: float
    latency_s: float | None = None
    latency_n: int = 0
    asked: int | None = None

    @property
    def timed(self) -> int:
        """Number of answers over which `seconds_per_answer` is the mean."""
        return self.answers if self.asked is None else self.asked


class Drift(Recorded):
    """Perplexity of ordinary text in mode weights against base, by teacher forcing over the same `tokens`.

    Attributes:
        value: relative change: 0.02 is 2 % worse, negative is better.
        unserved: number of the `texts` that a server would refuse as a prompt; they are not counted.
        why: the reason for the first unserved text.
    """

    texts: int
    tokens: int
    base: float
    edited: float
    value: float
    unserved: int = 0
    why: str = ""


class Answer(Recorded):
    """One question with the raw answer of each mode, and whether it counted as right (locality: as unchanged).

    A refused edit, or a prompt that a server would refuse, has no answer in mode weights.
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


class Report(Recorded):
    """The result of `evaluate`: shares and intervals of every metric in every mode.

    Attributes:
        patches: names of the measured patches.
        engine: engine, precision and device.
        modes: the measured modes.
        edits: number of edits.
        split: the probes that were asked: gate, tune, or None for both.
        max_tokens: token limit of an answer; by default more if an accepted answer is longer.
        measures: one value for each metric, mode and protocol, over all edits.
        relations: relation → its measures by generation.
        sizes: number of edits of a patch → measures by generation of the patches of this size; empty if all patches
            have the same size.
        methods: the editing methods of the compiled patches, each once.
        costs: added tokens and seconds of each mode.
        refused: patch that was not compiled → reason.
        unserved: patch → prompt that a server would refuse → reason; such a prompt fails in mode weights.
        not_asked: keeping metric → number of probes left out, since another edit of the patch changes their answer.
        left_out: records of a data set that are not edits.
        unjudged: metric of the gate → indices of the edits without a probe for it.
        drift: growth of the perplexity of ordinary text; None without text or without mode weights.
        answers: all questions with their answers; None unless the settings ask for them.

    Example:
        >>> measure = report.find("reliability", "weights")
        >>> measure.value, measure.low, measure.high
        (1.0, 0.95, 1.0)
    """

    patches: tuple[str, ...]
    engine: str
    modes: tuple[Mode, ...]
    edits: int
    split: str | None
    max_tokens: int
    measures: tuple[Measure, ...]
    relations: dict[str, tuple[Measure, ...]] = Field(default_factory=dict)
    sizes: dict[int, tuple[Measure, ...]] = Field(default_factory=dict)
    methods: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict)
    unserved: dict[str, dict[str, str]] = Field(default_factory=dict)
    not_asked: dict[str, int] = Field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    unjudged: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    drift: Drift | None = None
    answers: tuple[Answer, ...] | None = None

    def find(self, metric: str, mode: Mode, protocol: Protocol = "generation") -> Measure | None:
        """The measure of a metric.

        Args:
            metric: reliability, paraphrase, reverse, portability, locality, locality_subject, unrelated, or a score of
                teacher forcing.
            mode: base, weights or ike.
            protocol: generation, argmax (every token is the most likely) or nll (new against true answer).

        Returns:
            The measure; None if no question counts for it.
        """
        wanted = (metric, mode, protocol)
        return next((m for m in self.measures if (m.metric, m.mode, m.protocol) == wanted), None)

    @property
    def not_judged(self) -> str:
        """`unjudged` as one line; empty if everything was judged."""
        return "; ".join(
            metric if len(edits) == self.edits else f"{metric} of {_numbered(edits)}"
            for metric, edits in self.unjudged.items()
        )

    def gate(self, gate: Gate, mode: Mode = "weights") -> list[str]:
        """Compare the measures with a gate. `unjudged` lists metrics without a probe.

        Free generation decides: changing metrics need the wanted answer, keeping metrics the same answer as base. A
        limit on the perplexity drift fails if the drift was not measured.

        Args:
            gate: the conditions.
            mode: the mode to judge.

        Returns:
            One line for each metric that misses the gate; empty if the gate accepts.

        Raises:
            EditError: the mode was not measured.
        """
        if mode not in self.modes:
            raise EditError(
                f"expected a measured mode ({', '.join(self.modes)}), got {mode!r}: evaluate the patch in it"
            )
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


def in_order(modes: Sequence[str]) -> list[Mode]:
    """The modes in standard order, each once.

    Raises:
        EditError: no mode, or an unknown one.
    """
    if not modes or any(mode not in MODES for mode in modes):
        raise EditError(f"expected modes among {', '.join(MODES)}, got {', '.join(modes)!r}")
    return [mode for mode in MODES if mode in modes]


def _numbered(edits: Sequence[int]) -> str:
    """ "edit 3", or "37 edits (0, 3, 7, …)"."""
    if len(edits) == 1:
        return f"edit {edits[0]}"
    some = [str(edit) for edit in edits[:_NUMBERED]] + ["…"] * (len(edits) > _NUMBERED)
    return f"{len(edits)} edits ({', '.join(some)})"


def _beyond(most: float, drift: Drift | None) -> list[str]:
    """One line for each reason why the drift is not within its limit."""
    if drift is None:
        return [
            f"perplexity_drift: not measured, since there is no text; the gate allows {most:g}; "
            "add passages to the store with `vllm-edit store passages`"
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
