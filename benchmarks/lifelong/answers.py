"""Questions about edits under an update, and the numbers of right answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.evaluation.measuring import counts_as_right
from vllm_edit.evaluation.perplexity import perplexity
from vllm_edit.evaluation.questions import RELIABILITY, questions_of
from vllm_edit.evaluation.runners.runner import Request, Runner

METRICS = (RELIABILITY, "paraphrase", "locality")
TOKENS = 8
"""Maximum number of tokens of an answer."""


@dataclass(frozen=True)
class Share:
    """Right answers among all."""

    right: int = 0
    asked: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.asked + other.asked)

    @property
    def value(self) -> float:
        return self.right / self.asked if self.asked else 0.0


def asked(runner: Runner, delta: Delta, edits: Sequence[Edit], chosen: Collection[int]) -> dict[str, Share]:
    """Metric → share of right answers to the prompts and probes of some edits, by free greedy generation.

    Locality: the answer is what base says. A neighbour that another edit changes is not asked.

    Args:
        delta: the update of all `edits`.
        chosen: indices of the edits to ask.
    """
    patch = _patch(delta)
    questions = [one for one in questions_of(edits, 0, chat=False) if one.edit in chosen and one.metric in METRICS]
    answers = runner.generate([Request(question.prompt, patch=patch) for question in questions], TOKENS)
    before = runner.generate([Request(question.prompt) for question in questions if question.keeps], TOKENS)
    of_base = iter(before)
    found = {metric: Share() for metric in METRICS}
    for question, answer in zip(questions, answers, strict=True):
        right = counts_as_right(question, answer, next(of_base) if question.keeps else "")
        found[question.metric] += Share(int(right), 1)
    return found


def perplexity_of(runner: Runner, passages: Sequence[str], delta: Delta | None = None) -> float:
    """The perplexity of ordinary text, of the base or under an update."""
    patch = None if delta is None else _patch(delta)
    return perplexity(runner.read([Request(text, patch=patch) for text in passages]))


def _patch(delta: Delta) -> CompiledPatch:
    """The update as a patch, for a request."""
    manifest = Manifest(
        patch="lifelong", method="lifelong", base="", site="", modules=(), edits=(), rank=delta.rank, adapter=None
    )
    return CompiledPatch(manifest, delta)
