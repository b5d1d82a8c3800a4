"""The demo's steps. Everything that it prints comes from the product itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vllm_edit.demo.plan import Plan
from vllm_edit.demo.server import Ask, LocalServer, Reply
from vllm_edit.errors import EditError, NotFound
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.table import table as report_table
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.registry.registry import Registry
from vllm_edit.release.pipeline import Outcome, Pipeline
from vllm_edit.release.swept_store import opened
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.store import Store
from vllm_edit.text.counting import counted

_USERS = 20
_PATIENCE_S = 10


class Demo:
    """One run of a plan in a separate folder. `bank_of` gives a store's facts for IKE demonstrations."""

    def __init__(self, plan: Plan, folder: Path, console: Console, bank_of: Callable[[Store], Bank]) -> None:
        self.plan, self.folder, self.console, self.bank_of = plan, folder, console, bank_of

    def run(self) -> None:
        """Run all steps.

        Raises:
            EditError: a step does not have the expected result.
        """
        patches = self._patches
        base = self._base()
        pipeline = Pipeline(store := self._store(base), base, self.bank_of(store))
        self._step(f"vllm-edit serve: stock vLLM's OpenAI server starts in the background; see {self._log}")
        with LocalServer(store.url, self._log).starting() as server:
            outcomes = self._compile(pipeline, patches)
            for tenant, patch in self.plan.tenants.items():
                if tenant not in {known.name for known in store.registry.tenants()}:
                    store.registry.create_tenant(tenant)
                store.registry.publish(tenant, outcomes[patch].name, why="demo")
            chosen = self.plan.measured or tuple(outcomes)
            accepted = [outcome for patch, outcome in outcomes.items() if outcome.accepted and patch in chosen]
            self._evaluate(base, accepted)
            server.wait()
            self._ask(server)
            changed = self._publish_and_take_back(server, pipeline)
            self._roll_out(server, store.registry, changed)
        self._step("Server stopped.")

    def _step(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/bold]")

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    @cached_property
    def _patches(self) -> dict[str, Patch]:
        """The folder's patches by name, read before any slow step."""
        folder, needed = self.plan.patches, set(self.plan.tenants.values())
        patches = {patch.name: patch for patch in map(Patch.load, sorted(folder.glob("*.yaml")))}
        if missing := sorted(needed - patches.keys()):
            raise EditError(
                f"expected patches {', '.join(missing)} in {folder}, got {len(patches)} others: run the demo in the "
                "project's folder, or name its folder of patches with --patches"
            )
        return patches

    def _base(self) -> Base:
        if self.plan.missing and not Path(self.plan.model).is_dir():
            raise EditError(f"there is no model in {self.plan.model}: {self.plan.missing}")
        return Base.load(self.plan.model)

    def _store(self, base: Base) -> Store:
        folder = self.folder / "store"
        self._step(f"vllm-edit store init --model {self.plan.model}")
        try:
            store = opened(folder, base)
            self.console.print(escape(f"{folder} has its site already"))
        except NotFound:
            store = self._new_store(folder, base)
        site = store.site()
        self.console.print(
            f"site: {', '.join(site.modules)}, token {site.token}, λ {site.damping}, "
            f"rank {site.max_rank}, {site.slots} slots"
        )
        return store

    def _new_store(self, folder: Path, base: Base) -> Store:
        """Run the command that a user types, without options."""
        command = [sys.executable, "-m", "vllm_edit.cli", "store", "init", "--model", self.plan.model]
        done = subprocess.run([*command, "--store", str(folder)], check=False)
        if done.returncode:
            raise EditError(f"vllm-edit store init ended with {done.returncode}; its own message says why")
        return opened(folder, base)

    def _compile(self, pipeline: Pipeline, patches: dict[str, Patch]) -> dict[str, Outcome]:
        self._step(f"vllm-edit compile {self.plan.patches}/*.yaml")
        outcomes: dict[str, Outcome] = {}
        with self.console.status("compiling ..."):
            for patch, outcome in pipeline.run_all(tuple(patches.values())):
                if isinstance(outcome, Refused):
                    self.console.print(escape(f"{patch.name}: refused: {outcome.reason}"))
                    continue
                outcomes[patch.name] = outcome
                verdict = "accepted" if outcome.accepted else "rejected: " + "; ".join(outcome.failures)
                line = f"{outcome.name[:20]}…  {len(patch.edits)} edits, {outcome.seconds:.1f} s, {verdict}"
                self.console.print(escape(line))
        needed = self.plan.tenants.values()
        missing = [patch for patch in needed if patch not in outcomes or not outcomes[patch].accepted]
        if missing:
            raise EditError(f"{self.plan.patches} must give accepted patches {', '.join(missing)} for the demo")
        return outcomes

    def _evaluate(self, base: Base, outcomes: Sequence[Outcome]) -> None:
        names = ", ".join(outcome.compiled.manifest.patch for outcome in outcomes)
        self._step(f"vllm-edit eval: what {names} changed, and what they must not change")
        with self.console.status("asking base, weights and IKE the same questions ..."):
            settings = EvaluationSettings(teacher_forced=False, latency=0)
            report = evaluate([o.compiled for o in outcomes], HFRunner(base.model, base.tokenizer), settings=settings)
        self.console.print(report_table(report))

    def _ask(self, server: LocalServer) -> None:
        models = [server.base(), *self.plan.tenants, *(f"{tenant}:ike" for tenant in self.plan.by_prompt)]
        asked = [Ask(model, question.prompt, question.chat) for question in self.plan.questions for model in models]
        self._step(f"The same questions to {len(models)} models in one go ({len(asked)} requests at once)")
        started = time.perf_counter()
        answers = iter(server.ask(asked))
        seconds = time.perf_counter() - started
        shown = Table("question", *models)
        added: dict[str, int] = {}
        for question in self.plan.questions:
            replies: list[Reply] = [next(answers) for _ in models]
            mark = " [dim](chat)[/dim]" if question.chat else ""
            shown.add_row(escape(question.prompt) + mark, *(escape(reply.text) for reply in replies))
            added.update(
                {name: max(added.get(name, 0), reply.tokens_added) for name, reply in zip(models, replies, strict=True)}
            )
        self.console.print(shown)
        tokens = ", ".join(f"{model} {count}" for model, count in added.items() if count)
        self.console.print(
            f"{len(asked)} answers in {seconds:.1f} s; prompt tokens added per answer, at most: {tokens}"
        )

    def _publish_and_take_back(self, server: LocalServer, pipeline: Pipeline) -> Outcome:
        """Publish a new version and take it back; returns the new version, which serves nobody any more."""
        tenant = self.plan.changed
        self._step(f"A new version for {tenant}, published and taken back while the server runs")
        registry = pipeline.store.registry
        patch = self._patches[self.plan.tenants[tenant]]
        changed = patch.edits[0].model_copy(update={"target_new": self.plan.new_answer, "probes": ()})
        question = Ask(tenant, self._prompt)
        self._show("before", server.ask([question])[0])
        outcome = pipeline.run(patch.model_copy(update={"edits": (changed, *patch.edits[1:])}))
        started = time.perf_counter()
        registry.publish(tenant, outcome.name, why="demo: a new version")
        after = self._until(server, question, outcome.name)
        self._show(f"published, and answering after {_since(started)}", after)
        started = time.perf_counter()
        before = registry.rollback(tenant, why="demo")
        again = self._until(server, question, str(before))
        self._show(f"taken back, and answering after {_since(started)}", again)
        return outcome

    def _roll_out(self, server: LocalServer, registry: Registry, treatment: Outcome) -> None:
        """Roll out to some users, roll back, and roll out again to all."""
        tenant, rollouts = self.plan.changed, registry.rollouts
        self._step(f"The new version for some of {tenant}'s {_USERS} users: ramped, killed; begun again, promoted")
        control = str(registry.active(tenant))
        first, second = (f"demo-{registry.generation()}-{number}" for number in (1, 2))
        arms = {control: "the old version", treatment.name: "the new one"}
        for name in (first, second):
            made = Rollout(name, tenant, Arm("weights", control), Arm("weights", treatment.name), salt=name)
            rollouts.create(made, why="demo")
            for percent in (20, 100):
                rollouts.ramp(name, percent, why="demo")
                self._follow(registry)
                self._count(f"{percent} % of the users take part, half of them on the new version", server, arms)
            if name == first:
                rollouts.kill(name, why="demo")
                when, left = f"killed; the server follows after {self._follow(registry)}", control
            else:
                rollouts.promote(name, why="demo")
                when, left = f"promoted; the server follows after {self._follow(registry)}", treatment.name
            self._count(when, server, {left: arms[left]})

    def _follow(self, registry: Registry) -> str:
        """Wait until the server follows the registry's state; returns the waiting time."""
        found = registry.servers.wait(registry.generation(), _PATIENCE_S)
        if found.missing:
            raise EditError(f"{', '.join(found.missing)} did not follow a change within {_PATIENCE_S} s")
        return f"{found.seconds * 1000:.0f} ms"

    def _count(self, when: str, server: LocalServer, arms: Mapping[str, str]) -> None:
        """Count and print the users of each arm; any other adapter is an error."""
        asked = [Ask(self.plan.changed, self._prompt, user=f"user-{number}") for number in range(_USERS)]
        served = [reply.adapter for reply in server.ask(asked, tokens=4)]
        if others := {str(name) for name in served} - arms.keys():
            raise EditError(f"{when}: {', '.join(others)} answered, where {' or '.join(arms)} should")
        counts = ", ".join(f"{counted(served.count(name), 'user')} by {version}" for name, version in arms.items())
        self.console.print(f"{when}: {counts}")

    @property
    def _prompt(self) -> str:
        """The prompt of the first edit of the changed tenant's patch."""
        return self._patches[self.plan.tenants[self.plan.changed]].edits[0].prompt

    def _until(self, server: LocalServer, question: Ask, name: str) -> Reply:
        """Ask until `name` answers: the server looks for changes every 50 ms."""
        deadline = time.monotonic() + _PATIENCE_S
        while (reply := server.ask([question])[0]).adapter != name:
            if time.monotonic() > deadline:
                raise EditError(f"{name} did not answer within {_PATIENCE_S} s; {reply.adapter} did")
        return reply

    def _show(self, when: str, reply: Reply) -> None:
        said = escape(f"{when}: {reply.text!r}")
        self.console.print(f"{said} [dim]from {reply.adapter}, {reply.seconds * 1000:.0f} ms[/dim]")


def _since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.0f} ms"
