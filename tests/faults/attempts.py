"""One operation on a store, for a process that will be killed in it, and the allowed states afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from typing import Any

from tests.faults.operations import Operations
from tests.rollout.example import failing
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.errors import NotFound
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.garbage import gc
from vllm_edit.store.store import Store

TENANT, ROLLED, GUARDED = "acme", "globex", "initech"
State = Any
"""The visible state after an operation, in few words that can be compared."""


@dataclass(frozen=True)
class Attempt:
    """order: the operation with its arguments. seen: what there is of it. states: all that may be seen, from before it
    to after it. again: what is seen after doing it once more, by what was seen before; a state that is missing there
    is one in which it cannot be done again.
    """

    order: tuple[Any, ...]
    seen: Callable[[Store], State]
    states: Sequence[State]
    again: Mapping[State, State]


class Attempts:
    """Prepares a store for an operation, again and again."""

    def __init__(self, operations: Operations, store: Store) -> None:
        self._operations = operations
        self._facts, self._rollouts, self._old = count(), count(), cycle(range(5))
        self._pattern: CompiledPatch = store.load(operations.compile(store, "capital"))
        self._publishable = [self._accepted(store, f"capital-{number}", 0) for number in range(4)]
        for tenant in (TENANT, ROLLED):
            store.registry.create_tenant(tenant)

    @property
    def kinds(self) -> Mapping[str, Callable[[Store], Attempt]]:
        return {
            "compile": self.compile,
            "publish": self.publish,
            "rollback": self.rollback,
            "rollout": self.rollout,
            "gc": self.gc,
            "guard": self.guard,
        }

    def compile(self, store: Store) -> Attempt:
        patch = f"fact-{next(self._facts)}"

        def seen(opened: Store) -> State:
            return next((opened.entry(name).status for name in opened.names() if name.startswith(f"{patch}@")), None)

        states = (None, "ungated", "accepted")
        return Attempt(("compile", patch), seen, states, dict.fromkeys(states, "accepted"))

    def publish(self, store: Store) -> Attempt:
        before = store.registry.active(TENANT)
        after = next(name for name in self._publishable if name != before)
        return Attempt(("publish", TENANT, after), _active, (before, after), {before: after, after: after})

    def rollback(self, store: Store) -> Attempt:
        active = store.registry.active(TENANT)
        first, second, third, *_ = (name for name in self._publishable if name != active)
        for name in (first, second, third):
            store.registry.publish(TENANT, name)
        return Attempt(("rollback", TENANT), _active, (third, second), {third: second, second: first})

    def rollout(self, store: Store) -> Attempt:
        """The next step of a rollout's life, of a new rollout each time."""
        for entry in store.registry.rollouts.newest_first(ROLLED):
            if entry.rollout.open:
                store.registry.rollouts.kill(entry.rollout.name)
        number = next(self._rollouts)
        name, treatment = f"spring-{number}", self._publishable[0]
        life: tuple[tuple[tuple[Any, ...], State], ...] = (
            (("create", name, ROLLED, treatment), ("created", 0)),
            (("ramp", name, 10), ("ramping", 1_000)),
            (("pause", name), ("paused", 1_000)),
            (("ramp", name, 50), ("ramping", 5_000)),
            (("promote", name), ("promoted", 5_000)),
            (("kill", name), ("killed", 5_000)),
        )
        turn = number % len(life)
        before = life[turn - 1][1] if turn else None
        for step, _ in life[:turn]:
            self._operations.rollout(store, *step)
        step, after = life[turn]
        repeatable = step[0] in ("ramp", "kill")  # the others say that it is so already

        def seen(opened: Store) -> State:
            try:
                found = opened.registry.rollouts.find(name)
            except NotFound:
                return None
            return found.state, found.share

        again = {before: after} | ({after: after} if repeatable else {})
        return Attempt(("rollout", *step), seen, (before, after), again)

    def gc(self, store: Store) -> Attempt:
        """Several to remove, in their order; some of them were removed before, and saved again."""
        for _ in range(3):
            self._accepted(store, "old", next(self._old))
        unused, every = gc(store).removed, store.names()
        states = [frozenset(every).difference(unused[:gone]) for gone in range(len(unused) + 1)]
        return Attempt(("gc",), lambda opened: frozenset(opened.names()), states, dict.fromkeys(states, states[-1]))

    def guard(self, store: Store) -> Attempt:
        """A server with the lease kills a rollout whose limit is exceeded. Another server, once the lease of the first
        has expired, finds that it is done, or does it."""
        number = next(self._rollouts)
        name = f"guarded-{number}"
        if GUARDED not in {tenant.name for tenant in store.registry.tenants()}:
            store.registry.create_tenant(GUARDED)
        for entry in store.registry.rollouts.newest_first(GUARDED):
            if entry.rollout.open:
                store.registry.rollouts.kill(entry.rollout.name)
        treatment = Arm("weights", self._publishable[0])
        limits = (parse_limit("errors=kill"), parse_limit("cut=warn"))
        store.registry.rollouts.create(Rollout(name, GUARDED, Arm("base"), treatment, "pepper", limits=limits))
        store.registry.rollouts.expose(failing(store.registry.rollouts.ramp(name, 100)))
        states = (("ramping", 0, 0), ("killed", 1, 1))

        def seen(opened: Store) -> State:
            found = opened.registry.rollouts.report(name)
            rows = [row for row in opened.registry.audit(GUARDED) if name in row.new and row.what == "rollout.kill"]
            return found.rollout.state, len(found.decisions), len(rows)

        return Attempt(("guard", name, f"server-{number}"), seen, states, dict.fromkeys(states, states[1]))

    def _accepted(self, store: Store, patch: str, number: int) -> str:
        """Save the `number`th of that name, which may be published."""
        settings = {**self._pattern.manifest.settings, "number": number}
        manifest = self._pattern.manifest.model_copy(update={"patch": patch, "settings": settings})
        name = store.save(replace(self._pattern, manifest=manifest))
        store.registry.set_status(name, "accepted")
        return name


def _active(store: Store) -> State:
    return store.registry.active(TENANT)
