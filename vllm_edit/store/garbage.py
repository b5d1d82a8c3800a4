"""Garbage collection: what nobody can be served leaves the registry, then the servers, then the disk.

    retired in the registry    from now on nobody can ask for it
    drained by every server    requests on it have ended, its adapter has left the engine and the node
    deleted                    its files, while the registry is free for other changes
    removed                    its entry in the registry

Each step can be the last before a kill: the next collection goes on there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vllm_edit.store.care import unused_in

if TYPE_CHECKING:
    from vllm_edit.store.store import Store


@dataclass(frozen=True)
class Collected:
    """What a collection removed, what it only retired, and the servers (`host:pid`) that still hold that."""

    removed: tuple[str, ...]
    retired: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def garbage_in(store: Store) -> list[str]:
    """What a collection would remove now."""
    return [*store.registry.retired.since(), *unused_in(store)]


def collect(store: Store, wait_s: float, by: str = "") -> Collected:
    """Retire what nobody can be served, and remove what every live server has drained within `wait_s`. by: whose doing
    it is, for the audit."""
    registry, ends = store.registry, time.monotonic() + wait_s
    entries = {entry.name: entry for entry in registry.patches()}
    for name in unused_in(store):
        if name in entries:
            registry.retired.add(entries[name], by)
    waiting, removed = registry.retired.since(), list[str]()
    for name, since in list(waiting.items()):
        drained = registry.servers.wait(since, max(0.0, ends - time.monotonic()), drained=True)
        if drained.missing:  # what was retired later they have not drained either
            return Collected(tuple(removed), tuple(waiting), drained.missing)
        if registry.retired.remove(name, since, partial(store.remove_files, name), by):
            removed.append(name)
        del waiting[name]
    return Collected(tuple(removed))
