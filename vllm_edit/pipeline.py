"""From a declared patch to a judged artefact in a store: compile, add the IKE demonstrations, save, run the gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_edit.editing.base import Base
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.settings import Progress
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.evaluation.evaluate import run_gate
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.patch import Patch
from vllm_edit.store.compiled import CompiledPatch

if TYPE_CHECKING:
    from vllm_edit.store.store import Store


@dataclass(frozen=True)
class Outcome:
    """A stored patch. `failures`: one line per metric that missed the gate; none means accepted."""

    name: str
    compiled: CompiledPatch
    failures: tuple[str, ...]
    seconds: float

    @property
    def accepted(self) -> bool:
        return not self.failures


class Pipeline:
    """Compiles patches into one store with one loaded model."""

    def __init__(self, store: Store, base: Base, bank: Bank) -> None:
        self.store, self.base, self.bank = store, base, bank
        self.site, self.moment = store.site(), SecondMoment.from_tensors(store.moment())

    def run(
        self,
        patch: Patch,
        method: str = "rome",
        settings: dict[str, Any] | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Outcome:
        """Compile, save and judge one patch. A patch that fails its gate is stored as rejected, with its report.

        Raises:
            UnsafeEdit: an edit missed its target or breaks a health limit; nothing is stored.
        """
        started = clock()
        compiled = compile_patch(
            patch, self.base, method, site=self.site, moment=self.moment, settings=settings, progress=progress
        )
        compiled = with_demonstrations(compiled, self.bank, self.base.tokenizer)
        seconds = clock() - started
        compiled = replace(compiled, report={**compiled.report, "seconds": round(seconds, 3)})
        name = self.store.save(compiled)
        if progress:
            progress("gate", 0, 1)
        report, failures = run_gate(compiled, HFRunner(self.base.model, self.base.tokenizer))
        self.store.add_record(name, "gate", {**report.model_dump(mode="json"), "failures": failures})
        self.store.registry.set_status(name, "rejected" if failures else "accepted", "; ".join(failures))
        return Outcome(name, compiled, tuple(failures), seconds)
