"""Operations on a store that are killed: compiling by hand and by a worker, publishing, rolling back, rollout steps,
guardrails, gc. Each has a name, by which another process can run it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tests.editing.examples import FRANCE, LOOSE, Bench, bench
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Gate, Patch
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.registry.jobs import Job
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.release.worker import Worker
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.garbage import gc
from vllm_edit.store.store import Store

LEASE_S = 0.5
"""Lease of a job: what a worker that was killed holds is free after it."""

_ANY = Gate(reliability=0, locality=0, unrelated=0)
"""A gate that a random model passes."""


@dataclass(frozen=True)
class Operations:
    """They need a base model only to compile."""

    bench: Bench

    @classmethod
    def ready(cls) -> Operations:
        """With a tiny model in memory."""
        return cls(bench())

    def do(self, store: Store, operation: str, *arguments: Any) -> None:
        self._named[operation](store, *arguments)

    @property
    def _named(self) -> Mapping[str, Callable[..., object]]:
        return MappingProxyType(
            {
                "compile": self.compile,
                "work": self.work,
                "publish": lambda store, tenant, name: store.registry.publish(tenant, name),
                "rollback": lambda store, tenant: store.registry.rollback(tenant),
                "rollout": self.rollout,
                "gc": lambda store: gc(store, dry_run=False),
                "guard": self.guard,
            }
        )

    def create(self, folder: str) -> Store:
        """A store for this model."""
        return Store.create(folder, self.bench.site, self.bench.moment.tensors())

    def compile(self, store: Store, name: str) -> str:
        """Compile, save and judge."""
        patch = Patch(name=name, gate=_ANY, edits=(FRANCE,))
        return Pipeline(store, self.bench.base, Bank()).run(patch, "rome", dict(LOOSE)).name

    def guard(self, store: Store, name: str, owner: str) -> None:
        """Take the lease of guardrails as soon as nobody has it, and act on the rollout's limits.

        Each process is another server, and waits until the lease of a killed process has expired.
        """
        watch = Watch(f"{owner}-{os.getpid()}", owner)
        while not store.registry.guard.hold(watch, seconds=0.5):
            time.sleep(0.02)
        store.registry.guard.test(name, watch)

    def submit(self, store: Store, name: str) -> Job:
        """Queue what `compile` compiles."""
        patch = Patch(name=name, gate=_ANY, edits=(FRANCE,))
        return store.registry.jobs.submit(JobRequest(patch, "rome", json.loads(LOOSE.model_dump_json())))

    def work(self, store: Store) -> None:
        """Work on the queue until no job is free."""
        Worker(Pipeline(store, self.bench.base, Bank()), lease_s=LEASE_S).run(drain=True)

    def rollout(self, store: Store, verb: str, name: str, *arguments: Any) -> None:
        """create NAME TENANT TREATMENT, ramp NAME PERCENT, and pause, promote or kill NAME."""
        if verb == "create":
            tenant, treatment = arguments
            made = Rollout(name, tenant, Arm("base"), Arm("weights", treatment), salt="pepper")
            store.registry.rollouts.create(made)
        else:
            getattr(store.registry.rollouts, verb)(name, *arguments)
