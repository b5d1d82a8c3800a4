"""From a declared patch to a judged artefact in a store: compile, add the IKE demonstrations, save, run the gate.

`attempt` compiles many patches for measurement only: it stores none and returns refused patches too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.reports import GateReport
from vllm_edit.edit import Probe
from vllm_edit.editing.compile import check_base, compile_patch, method_at
from vllm_edit.editing.site_tensors import SiteTensors, site_tensors_of
from vllm_edit.errors import Incompatible
from vllm_edit.evaluation.evaluate import run_gate
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.facts import tables_folder
from vllm_edit.facts.default_probes import default_probes
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Pool
from vllm_edit.facts.stored_pool import stored_pool
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import build_demonstrations, with_demonstrations
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent
from vllm_edit.release.compiler import Compiler
from vllm_edit.release.stored_bank import stored_bank
from vllm_edit.store.store import Store


@dataclass(frozen=True)
class Outcome:
    """A stored patch and the verdict of its gate.

    Attributes:
        name: the patch's name in the store.
        compiled: the patch, with the report of its compilation.
        gate: the verdict of its gate.
        seconds: duration of compiling or composing, without the gate.
    """

    name: str
    compiled: CompiledPatch
    gate: GateReport
    seconds: float

    @property
    def accepted(self) -> bool:
        """True if the gate accepts the patch."""
        return self.gate.accepted

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each metric that misses the gate."""
        return self.gate.failures

    @property
    def not_judged(self) -> str:
        """Metrics of the gate for which some edits have no probe, as one line."""
        return self.gate.not_judged

    def as_record(self) -> JSONObject:
        """The outcome as `vllm-edit compile --json` and a job's result show it."""
        manifest = self.compiled.manifest
        return {
            "name": self.name,
            "status": self.gate.status,
            "failures": list(self.failures),
            "not_judged": self.not_judged,
            "rank": manifest.rank,
            "edits": len(manifest.edits),
            "report": self.compiled.record,
        }


class Pipeline:
    """Compiles patches into one store with one loaded model, as `vllm-edit compile` does.

    Example:
        >>> pipeline = Pipeline.open()
        >>> outcome = pipeline.run(Patch.load("patches/acme.yaml"))
        >>> outcome.name, outcome.accepted, outcome.failures
    """

    def __init__(self, store: Store, base: Base, bank: Bank) -> None:
        """A pipeline for a store.

        Args:
            store: the store.
            base: the store's base, loaded.
            bank: facts that the base knows, for the demonstrations of IKE. They are part of a patch's name.
        """
        self.store, self.base, self.bank = store, base, bank
        self.site = store.site()

    @classmethod
    def open(
        cls,
        store: Store | str | Path | None = None,
        model: Base | str | Path | None = None,
        bank: Bank | None = None,
    ) -> Pipeline:
        """A pipeline for an existing store. Its defaults are those of `vllm-edit compile`, so names are the same.

        Args:
            store: a store, or its folder or URL; None for `$VLLM_EDIT_STORE`, else `.vllm-edit`.
            model: the store's base, loaded or to be loaded; None for the model that the store was made for.
            bank: facts that the base knows, for the demonstrations of IKE; None for the store's.

        Raises:
            NotFound: there is no store.
            EditError: the model cannot be loaded.
        """
        opened = store if isinstance(store, Store) else Store.open(store)
        base = model if isinstance(model, Base) else Base.load(model or opened.site().model)
        return cls(opened, base, stored_bank(opened) if bank is None else bank)

    @cached_property
    def site_tensors(self) -> SiteTensors:
        """The site's second moment (hundreds of megabytes for a large model), network or gradient statistics.

        Judging does not need them.
        """
        return site_tensors_of(self.site, self.store.site_tensors())

    @cached_property
    def pool(self) -> Pool | None:
        """The facts that the base knows, if the store holds them."""
        return stored_pool(self.store)

    def check_model(self) -> None:
        """Raise `Incompatible` if the model is not the store's base: then no patch could be compiled."""
        check_base(self.base, self.site)

    def run(
        self,
        patch: Patch,
        method: str = "rome",
        settings: Mapping[str, JSONValue] | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Outcome:
        """Compile a patch, add the IKE demonstrations, save it, and run its gate with the model.

        A patch that fails its gate is stored as rejected, with its report.

        Args:
            patch: the edits, declared.
            method: `rome` (closed form), `memit` or `alphaedit` (closed form over layers), `mend` or `ke`
                (hypernetwork), `ultraedit` (least squares on gradients), `ft` or `lora` (fine-tuning); `auto` for the
                method that the store was made for.
            settings: settings of the method by name; its defaults for the others.
            progress: called with (step, completed units, total units).
            clock: the time in seconds.

        Returns:
            The stored patch with its name and verdict.

        Raises:
            UnsafeEdit: an edit missed its target or exceeds a health limit; nothing is stored.
            Incompatible: the model is not the store's base, or the patch was written for another one.
            EditError: the method or a setting is unknown, or the patch needs a higher rank than the site allows.
        """
        started = clock()
        compiled = self.compile(patch, method, settings, progress)
        return self.judge(compiled, clock() - started, progress)

    def compile(
        self,
        patch: Patch,
        method: str = "rome",
        settings: Mapping[str, JSONValue] | None = None,
        progress: Progress | None = None,
    ) -> CompiledPatch:
        """Compile a patch and add the IKE demonstrations; nothing is saved. See `run`.

        Args:
            patch: the edits, declared.
            method: see `run`.
            settings: see `run`.
            progress: called with (step, completed units, total units).
        """
        compiled = compile_patch(
            patch,
            self.base,
            method,
            site=self.site,
            site_tensors=self.site_tensors,
            settings=settings,
            progress=progress,
        )
        return with_demonstrations(compiled, self.bank, self.base.tokenizer)

    def run_all(
        self,
        patches: Sequence[Patch],
        method: str = "rome",
        settings: Mapping[str, JSONValue] | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Iterator[tuple[Patch, Outcome | Refused]]:
        """`run` for each of several patches; a patch that cannot be compiled is refused, and the others go on.

        Patches about different subjects are compiled in one batch where the method can. So a patch's weights are those
        of `run` up to rounding, and its name may be another one. A batch is saved and judged before the next is
        compiled, so the order of the results may differ from that of the patches.

        Args:
            patches: the patches, compiled independently.
            method: see `run`.
            settings: see `run`.
            progress: called with (step, completed units, total units).
            clock: the time in seconds.

        Yields:
            Each patch, with its outcome or the reason why it is refused.
        """
        found = method_at(method, self.site_tensors)
        compiler = Compiler(self.base, self.site, self.site_tensors, found, settings, progress or silent)
        for attempt in compiler.attempts(patches, clock):
            result: Outcome | Refused
            if isinstance(attempt.result, CompiledPatch):
                compiled = with_demonstrations(attempt.result, self.bank, self.base.tokenizer)
                result = self.judge(compiled, attempt.seconds, progress)
            else:
                result = attempt.result
            yield patches[attempt.row], result

    def judge(self, compiled: CompiledPatch, seconds: float, progress: Progress | None = None) -> Outcome:
        """Save a compiled patch or a composition, and run its gate with the model: `save`, then `judge_saved`.

        Args:
            compiled: the patch, with its demonstrations.
            seconds: duration of compiling or composing, for the report.
            progress: called with (step, completed units, total units).

        Raises:
            Incompatible: the patch is not for this base.
        """
        return self.judge_saved(self.save(compiled, seconds), seconds, progress)

    def save(self, compiled: CompiledPatch, seconds: float) -> CompiledPatch:
        """Save a compiled patch or a composition without a verdict, and return it with its duration in its report.

        Args:
            compiled: the patch, with its demonstrations.
            seconds: duration of compiling or composing, for the report.

        Raises:
            Incompatible: the patch is not for this base.
        """
        self._check_base(compiled)
        compiled = compiled.timed(round(seconds, 3))
        self.store.save(compiled)
        return compiled

    def judge_saved(self, compiled: CompiledPatch, seconds: float, progress: Progress | None = None) -> Outcome:
        """Run the gate of a saved patch with the model, and enter its verdict.

        For edits without keeping probes, the gate also asks known facts of the store's pool, if it has one.

        Args:
            compiled: the patch, as saved.
            seconds: duration of compiling or composing, for the outcome.
            progress: called with (step, completed units, total units).

        Raises:
            Incompatible: the patch is not for this base.
        """
        self._check_base(compiled)
        reported, name = progress or silent, compiled.name
        reported("gate", 0, 1)
        runner = HFRunner(self.base.model, self.base.tokenizer)
        added = self._default_probes(compiled)
        report, gate = run_gate(compiled, runner, self.site, self.store.passages(), added, _of_gate(reported))
        self.store.add_record(name, "gate", report.model_dump(mode="json") | gate.as_record())
        self.store.registry.set_status(name, gate.status, "; ".join(gate.failures))
        return Outcome(name, compiled, gate, seconds)

    def _check_base(self, compiled: CompiledPatch) -> None:
        if not self.base.fingerprint.is_named(compiled.manifest.base):
            raise Incompatible(
                f"{compiled.manifest.patch} is for base {compiled.manifest.base}, the model {self.base.name} is "
                f"{self.base.fingerprint.digest}: judge it with the model that the store was made for"
            )

    def _default_probes(self, compiled: CompiledPatch) -> list[tuple[Probe, ...]]:
        """Default probes for each edit; empty if the store has no pool."""
        if self.pool is None:
            return []
        return default_probes(self.pool, Facts.load(tables_folder()), compiled.manifest.edits)

    def attempt(
        self,
        patches: Sequence[Patch],
        method: str = "rome",
        settings: Mapping[str, JSONValue] | None = None,
        progress: Progress | None = None,
    ) -> list[CompiledPatch | Refused]:
        """Compile patches for measurement only: nothing is saved, and no gate runs.

        Patches about different subjects are compiled in one batch where the method can.

        Args:
            patches: the patches, compiled independently.
            method: see `run`.
            settings: see `run`.
            progress: called with (step, completed units, total units).

        Returns:
            Each patch compiled, with its demonstrations, or the reason why it is refused, in the order of `patches`.
        """
        report = progress or silent
        found = method_at(method, self.site_tensors)
        compiler = Compiler(self.base, self.site, self.site_tensors, found, settings, report)
        results = {attempt.row: attempt.result for attempt in compiler.attempts(patches)}
        finished: list[CompiledPatch | Refused] = []
        for row, patch in enumerate(patches):
            report("demonstrations", row, len(patches))
            finished.append(self._demonstrated(patch, results[row]))
        return finished

    def _demonstrated(self, patch: Patch, result: CompiledPatch | Refused) -> CompiledPatch | Refused:
        if isinstance(result, CompiledPatch):
            return with_demonstrations(result, self.bank, self.base.tokenizer)
        return replace(result, demonstrations=build_demonstrations(patch, self.bank, self.base.tokenizer))


def _of_gate(progress: Progress) -> Progress:
    """Name the gate in the steps of its evaluation."""
    return lambda step, done, total: progress(f"gate, {step}", done, total)
