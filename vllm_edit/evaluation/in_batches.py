"""Many patches, each measured alone: compiled and asked batch by batch, so that a run can be stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel

from vllm_edit.artefacts.site import Site
from vllm_edit.digest import digest_json
from vllm_edit.errors import EditError
from vllm_edit.evaluation.asking import ask
from vllm_edit.evaluation.evaluate import check_modes
from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.report import MODES, Cost, Mode, Report, in_order
from vllm_edit.evaluation.reporting import report_of
from vllm_edit.evaluation.requests import One
from vllm_edit.evaluation.runners.runner import Runner
from vllm_edit.evaluation.sheet import Sheet
from vllm_edit.evaluation.time_left import TimeLeft
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent

BATCH = 8
"""Patches per batch: with their probes enough to fill a model's batches, few enough to repeat after an interruption."""
Attempt = Callable[[Sequence[Patch], Progress], Sequence[One]]
"""Compiles declared patches: each compiled or refused, in their order. Not called for mode base alone."""


def evaluate_in_batches(
    patches: Sequence[Patch],
    attempt: Attempt,
    runner: Runner,
    modes: Sequence[Mode] = MODES,
    settings: EvaluationSettings | None = None,
    record: Record | None = None,
    progress: Progress = silent,
    site: Site | None = None,
    size: int = BATCH,
) -> Report:
    """`evaluate` of many patches of different names, `size` at a time.

    Args:
        patches: the declared patches.
        attempt: compiles a batch of them.
        runner: the engine that answers.
        modes: the modes to measure.
        settings: see `EvaluationSettings`.
        record: stores every batch's sheets; patches with sheets of an earlier run are skipped.
        progress: called with (stage and time left, finished patches, total).
        site: as in `evaluate`.
        size: patches per batch.

    Raises:
        EditError: as `evaluate`; no patch, or two with the same name.
    """
    settings = settings or EvaluationSettings()
    names = [patch.name for patch in patches]
    if not names or len(set(names)) < len(names):
        raise EditError("expected at least one patch to evaluate, and every name once")
    sheets: dict[str, Sheet] = {}
    costs: list[Cost] = []
    if record:
        try:
            for entry in map(_Entry.model_validate, record.entries):
                sheets |= zip(entry.patches, entry.sheets, strict=True)
                costs += entry.costs
        except (TypeError, ValueError) as error:
            raise EditError(f"{record.path}: an entry cannot be read ({error!r}); name another file") from None
    waiting = [patch for patch in patches if patch.name not in sheets]
    left = TimeLeft(len(patches), len(sheets))
    asked = in_order(modes)
    for start in range(0, len(waiting), size):
        batch = waiting[start : start + size]
        stages = _Stages(progress, left, len(sheets), len(batch), len(patches), 1 + len({"base", *asked}))
        tried = batch if asked == ["base"] else attempt(batch, stages.compiling)
        # Latency is measured on single answers: once is enough.
        wanted = settings.replace(latency=0) if costs else settings
        found, spent = ask(tried, runner, check_modes(tried, modes), wanted, stages, site)
        if record:
            record.add(
                {
                    "patches": [patch.name for patch in batch],
                    "sheets": [sheet.as_record() for sheet in found],
                    "costs": [cost.model_dump(mode="json") for cost in spent],
                }
            )
        sheets |= zip((patch.name for patch in batch), found, strict=True)
        costs += spent
    return report_of([sheets[name] for name in names], asked, settings, runner.name, together(costs))


class _Entry(BaseModel):
    """A batch in a record."""

    patches: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    costs: tuple[Cost, ...]


def identity(
    patches: Sequence[Patch], modes: Sequence[Mode], settings: EvaluationSettings, **others: JSONValue
) -> JSONObject:
    """The identity of an evaluation's record. `others`: more inputs of its numbers (site, method, …)."""
    return {
        "patches": digest_json([patch.model_dump(mode="json") for patch in patches]),
        "modes": [*in_order(modes)],
        "split": settings.split,
        "max_tokens": settings.max_tokens,
        "teacher_forced": settings.teacher_forced,
        **others,
    }


def together(costs: Iterable[Cost]) -> list[Cost]:
    """Merge costs by mode: means over all answers, seconds over those asked for, and the first measured latency."""
    by_mode: dict[Mode, list[Cost]] = {}
    for cost in costs:
        by_mode.setdefault(cost.mode, []).append(cost)
    merged = []
    for mode, parts in by_mode.items():
        answers, asked = sum(part.answers for part in parts), sum(part.timed for part in parts)
        timed = next((part for part in parts if part.latency_n), parts[0])
        merged.append(
            Cost(
                mode=mode,
                answers=answers,
                tokens_added=sum(part.tokens_added * part.answers for part in parts) / answers,
                seconds_per_answer=sum(part.seconds_per_answer * part.timed for part in parts) / max(1, asked),
                latency_s=timed.latency_s,
                latency_n=timed.latency_n,
                asked=asked,
            )
        )
    return merged


class _Stages:
    """Turns a batch's progress into that of all patches. Every stage counts as the same part of a batch."""

    def __init__(self, progress: Progress, left: TimeLeft, done: int, size: int, total: int, stages: int) -> None:
        self._progress, self._left, self._done, self._size, self._total = progress, left, done, size, total
        self._stages, self._seen = stages, ["compile"]

    def compiling(self, what: str, done: int, total: int) -> None:
        """Progress of the first stage, whatever its steps are called."""
        self(f"compile, {what}", done, total)

    def __call__(self, what: str, done: int, total: int) -> None:
        stage = what.partition(",")[0]  # "weights, teacher forcing" is a part of weights
        if stage not in self._seen:
            self._seen.append(stage)
        part = (self._seen.index(stage) + done / max(total, 1)) / self._stages
        finished = self._done + self._size * min(part, 1.0)
        self._progress("; ".join(filter(None, (what, self._left.text(finished)))), int(finished), self._total)
