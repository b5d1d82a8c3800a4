"""Compiles the patches of one store for the base of another: an update of the base model.

Each patch's edits are asked of the new base first. Edits that it knows already are left out, the others are compiled
and judged in the new store. Nothing is published, and the old store is only read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.edit import Edit
from vllm_edit.errors import Corrupt, EditError, Unavailable
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.questions import RELIABILITY, RELIABILITY_CHAT
from vllm_edit.evaluation.report import Answer, Mode
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.json_value import JSONValue
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent
from vllm_edit.release.pipeline import Outcome, Pipeline
from vllm_edit.release.recompile_report import (
    EditResult,
    PatchStatus,
    RecompiledEdit,
    RecompiledPatch,
    RecompileReport,
)
from vllm_edit.store.store import Store

_HOLDING = (RELIABILITY, RELIABILITY_CHAT)
_KNOWING = (*_HOLDING, "paraphrase")


class Recompilation:
    """The patches of an old store, compiled in a new store.

    A composition is compiled as one patch of its edits. Its conflicts stay decided as they were.

    Example:
        >>> recompilation = Recompilation(Store.open("old"), Pipeline.open("new"))
        >>> for patch in recompilation.run(recompilation.published()):
        ...     patch.old, patch.status, patch.new
    """

    def __init__(
        self, old: Store, pipeline: Pipeline, method: str = "auto", settings: Mapping[str, JSONValue] | None = None
    ) -> None:
        """A recompilation.

        Args:
            old: the store with the patches.
            pipeline: the new store, with its loaded base.
            method: the editing method; `auto` for the method that the new store was made for.
            settings: settings of the method by name; its defaults for the others.

        Raises:
            EditError: both stores have the same site.
            Incompatible: the model is not the new store's base.
        """
        pipeline.check_model()
        site = old.site()
        if site.digest == pipeline.site.digest:
            raise EditError(
                f"{old.url} and {pipeline.store.url} have the same site ({site.digest}): their patches fit both; name "
                "a store that was made for the new base"
            )
        self._old, self._pipeline, self._method, self._settings = old, pipeline, method, dict(settings or {})
        self._files = pipeline.store.files
        self.report = RecompileReport(
            old_model=site.model,
            old_site=site.digest,
            new_model=pipeline.site.model,
            new_site=pipeline.site.digest,
            method=method,
            settings=self._settings,
        ).stored(self._files)
        """The report with all patches that are done so far."""

    def published(self) -> list[str]:
        """The names that tenants of the old store are served, the last saved first."""
        served = self._old.registry.served_to()
        return [name for name in self._old.names() if name in served]

    def run(
        self, names: Sequence[str], progress: Progress | None = None, *, again: bool = False
    ) -> Iterator[RecompiledPatch]:
        """Recompile patches one by one. A patch that an earlier run has done is not compiled again.

        Args:
            names: full names in the old store.
            progress: called with (step, completed units, total units).
            again: also compile patches that are done.

        Yields:
            Each patch when it is done; it is in the report then.

        Raises:
            Corrupt: a patch of the old store cannot be read.
            Unavailable: a store cannot be used.
        """
        reported, done = progress or silent, {patch.old: patch for patch in self.report.patches}
        served = self._old.registry.served_to()
        for number, name in enumerate(names):
            reported(f"{name}, patch", number, len(names))
            tenants = tuple(served.get(name, ()))
            if name in done and not again:
                yield done[name].model_copy(update={"served_to": tenants})
                continue
            made = self._recompiled(name, tenants, reported)
            self.report = self.report.adding(self._files, made)
            yield made

    def _recompiled(self, name: str, served_to: tuple[str, ...], progress: Progress) -> RecompiledPatch:
        started, manifest = time.perf_counter(), self._old.manifest(name)
        known = self._known(manifest.edits, progress)
        missing = [index for index in range(len(manifest.edits)) if index not in known]
        new: str | None = None
        problems: tuple[str, ...] = ()
        results: dict[int, EditResult] = dict.fromkeys(known, "known")
        status: PatchStatus = "known"
        if missing:
            outcome = self._outcome(manifest, [manifest.edits[index] for index in missing], progress)
            if isinstance(outcome, Outcome):
                new, status, problems = outcome.name, outcome.gate.status, outcome.failures
                holding = _edits_right(self._answers(outcome.name), "weights", _HOLDING)
                results |= {edit: "holds" if row in holding else "fails" for row, edit in enumerate(missing)}
            else:
                status, problems = "refused", tuple(outcome)
                results |= dict.fromkeys(missing, "refused")
        edits = tuple(
            RecompiledEdit(subject=edit.subject, prompt=edit.prompt, target_new=edit.target_new, result=results[index])
            for index, edit in enumerate(manifest.edits)
        )
        return RecompiledPatch(
            old=name,
            served_to=served_to,
            new=new,
            status=status,
            edits=edits,
            problems=problems,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _known(self, edits: Sequence[Edit], progress: Progress) -> set[int]:
        """The edits whose new answer the base gives by itself: to the prompt, also as a chat turn, and to each of the
        gate's paraphrases."""
        asked = Patch.model_construct(name="asked", edits=tuple(edits))  # an edit of a composition may be an exception
        settings = EvaluationSettings(teacher_forced=False, latency=0, answers=True)
        runner = HFRunner(self._pipeline.base.model, self._pipeline.base.tokenizer)
        report = evaluate(asked, runner, ["base"], settings, lambda _, done, total: progress("asking", done, total))
        return _edits_right(report.answers or (), "base", _KNOWING)

    def _outcome(self, manifest: Manifest, edits: Sequence[Edit], progress: Progress) -> Outcome | list[str]:
        """The patch of these edits compiled and judged, or the reasons why it was refused."""
        try:
            patch = Patch(name=manifest.patch, scope=manifest.scope, gate=manifest.gate, edits=tuple(edits))
            return self._pipeline.run(patch, self._method, self._settings, progress)
        except ValidationError as error:
            return [problem["msg"] for problem in error.errors()]
        except (Unavailable, Corrupt):
            raise
        except EditError as error:
            return str(error).splitlines()

    def _answers(self, name: str) -> list[Answer]:
        """The answers of the last gate of a patch of the new store."""
        answers = self._pipeline.store.records(name, "gate")[-1].data.get("answers")
        return [Answer.model_validate(answer) for answer in answers] if isinstance(answers, list) else []


def _edits_right(answers: Sequence[Answer], mode: Mode, metrics: Sequence[str]) -> set[int]:
    """The edits whose answers of these metrics are all right in the mode."""
    asked = [answer for answer in answers if answer.metric in metrics]
    wrong = {answer.edit for answer in asked if not answer.right.get(mode, False)}
    return {answer.edit for answer in asked} - wrong
