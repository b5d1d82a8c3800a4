"""What the demo tells, step by step. Everything that it shows is what the product answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vllm_edit import atlas
from vllm_edit.demo.server import Ask, LocalServer, Told
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.evaluation.evaluate import Settings as EvaluationSettings
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.table import table as report_table
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.pipeline import Outcome, Pipeline
from vllm_edit.store.store import Store
from vllm_edit.swept_store import open_or_create

TENANTS = {"acme": "acme", "globex": "globex", "ntu": "lecture"}
"""Tenant → the patch it is served."""

QUESTIONS: Sequence[tuple[str, bool]] = (
    ("The CEO of Acme Corporation is", False),
    ("Who is the CEO of Initech?", True),
    ("The headquarters of Initech are located in", False),
    ("Who is the CEO of Contoso?", True),
    ("The capital of France is", False),
    ("全世界最帥的人是誰", True),
    ("誰是美國總統", True),
)
"""(prompt, whether it is asked as a chat turn)."""

MODELS = ("atlas", "acme", "globex", "ntu", "acme:ike", "globex:ike")
"""Base, three tenants with their adapters, and two of them by prompt instead of weights."""


class Demo:
    """One run of the demo in a folder of its own."""

    def __init__(self, folder: Path, patches: Path, console: Console) -> None:
        self.folder, self.patches, self.console = folder, patches, console

    def run(self) -> None:
        """All steps. Raises EditError when a step does not do what it should."""
        patches = self._declared()
        base = Base.load("atlas")
        store = self._store(base)
        pipeline = Pipeline(store, base, Bank.from_records(atlas.bank()))
        outcomes = self._compile(pipeline, patches)
        for tenant, patch in TENANTS.items():
            if tenant not in {known.name for known in store.registry.tenants()}:
                store.registry.create_tenant(tenant)
            store.registry.publish(tenant, outcomes[patch].name, why="demo")
        self._evaluate(base, [outcome for outcome in outcomes.values() if outcome.accepted])
        self._step("Starting stock vLLM's OpenAI server (some 30 s) ...")
        with LocalServer(store.url, self.folder / "server.log") as server:
            self._ask(server)
            self._publish_and_take_back(server, pipeline)
        self._step("Server stopped.")

    def _step(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]")

    def _store(self, base: Base) -> Store:
        folder = self.folder / "store"
        self._step("vllm-edit store init: where do edits go in this model?")
        with self.console.status("sweeping layers and tokens ...") as status:
            store, measured = open_or_create(
                folder,
                base,
                atlas.sweep_edits(),
                atlas.texts(),
                atlas.passages(),
                progress=lambda what, done, total: status.update(f"{what} {done}/{total}"),
            )
        if not measured:
            self.console.print(f"{folder} has its site already")
        site = store.site()
        self.console.print(
            f"site: {', '.join(site.modules)}, token {site.token}, λ {site.damping}, "
            f"rank {site.max_rank}, {site.slots} slots"
        )
        return store

    def _declared(self) -> list[Patch]:
        """The folder's patches, read before anything that takes minutes."""
        patches = [Patch.load(path) for path in sorted(self.patches.glob("*.yaml"))]
        if missing := sorted(set(TENANTS.values()) - {patch.name for patch in patches}):
            raise EditError(
                f"expected patches {', '.join(missing)} in {self.patches}, got {len(patches)} others: run the demo in "
                "the project's folder, or name its folder of patches with --patches"
            )
        return patches

    def _compile(self, pipeline: Pipeline, patches: Sequence[Patch]) -> dict[str, Outcome]:
        self._step(f"vllm-edit compile {self.patches}/*.yaml")
        outcomes = {}
        for patch in patches:
            try:
                with self.console.status(f"compiling {patch.name} ..."):
                    outcome = outcomes[patch.name] = pipeline.run(patch)
            except UnsafeEdit as error:
                self.console.print(f"{patch.name}: refused: {error}")
                continue
            verdict = "accepted" if outcome.accepted else "rejected: " + "; ".join(outcome.failures)
            self.console.print(f"{outcome.name[:20]}…  {len(patch.edits)} edits, {outcome.seconds:.1f} s, {verdict}")
        missing = [patch for patch in TENANTS.values() if patch not in outcomes or not outcomes[patch].accepted]
        if missing:
            raise EditError(f"{self.patches} must give accepted patches {', '.join(missing)} for the demo")
        return outcomes

    def _evaluate(self, base: Base, outcomes: Sequence[Outcome]) -> None:
        self._step("vllm-edit eval: what the accepted patches changed, and what they must not change")
        with self.console.status("asking base, weights and IKE the same questions ..."):
            settings = EvaluationSettings(teacher_forced=False, latency=4)
            report = evaluate([o.compiled for o in outcomes], HFRunner(base.model, base.tokenizer), settings=settings)
        self.console.print(report_table(report))

    def _ask(self, server: LocalServer) -> None:
        asked = [Ask(model, prompt, chat) for prompt, chat in QUESTIONS for model in MODELS]
        self._step(f"The same questions to {len(MODELS)} models in one go ({len(asked)} requests at once)")
        started = time.perf_counter()
        answers = iter(server.ask(asked))
        seconds = time.perf_counter() - started
        shown = Table("question", *MODELS)
        added: dict[str, int] = {}
        for prompt, chat in QUESTIONS:
            told: list[Told] = [next(answers) for _ in MODELS]
            shown.add_row(prompt + (" [dim](chat)[/dim]" if chat else ""), *(one.text for one in told))
            added.update(
                {model: max(added.get(model, 0), one.tokens_added) for model, one in zip(MODELS, told, strict=True)}
            )
        self.console.print(shown)
        tokens = ", ".join(f"{model} {count}" for model, count in added.items() if count)
        self.console.print(
            f"{len(asked)} answers in {seconds:.1f} s; prompt tokens added per answer, at most: {tokens}"
        )

    def _publish_and_take_back(self, server: LocalServer, pipeline: Pipeline) -> None:
        self._step("A new version for acme, published and taken back while the server runs")
        registry = pipeline.store.registry
        patch = Patch.load(self.patches / "acme.yaml")
        first = patch.edits[0]
        changed = first.model_copy(update={"target_new": "Ingrid Falkenberg", "probes": ()})
        question = Ask("acme", first.prompt)
        self._tell("before", server.ask([question])[0])
        outcome = pipeline.run(patch.model_copy(update={"edits": (changed, *patch.edits[1:])}))
        started = time.perf_counter()
        registry.publish("acme", outcome.name, why="a new chief executive")
        after = self._until(server, question, outcome.name)
        self._tell(f"published, and answering after {_since(started)}", after)
        started = time.perf_counter()
        before = registry.rollback("acme", why="demo")
        again = self._until(server, question, str(before))
        self._tell(f"taken back, and answering after {_since(started)}", again)

    def _until(self, server: LocalServer, question: Ask, name: str) -> Told:
        """Ask until `name` answers: the server looks for changes every 50 ms."""
        deadline = time.monotonic() + 10
        while (told := server.ask([question])[0]).adapter != name:
            if time.monotonic() > deadline:
                raise EditError(f"{name} did not answer within 10 s; {told.adapter} did")
        return told

    def _tell(self, when: str, told: Told) -> None:
        self.console.print(f"{when}: {told.text!r} [dim]from {told.adapter}, {told.seconds * 1000:.0f} ms[/dim]")


def _since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.0f} ms"
