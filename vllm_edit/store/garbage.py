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

from vllm_edit.store.care import unused_in
from vllm_edit.store.store import Store

_ABANDONED_S = 24 * 3600.0  # no writer takes a day: what is older was left by one that died


@dataclass(frozen=True)
class Collected:
    """What a collection removed, what it only retired, and the servers (`host:pid`) that still hold that."""

    removed: tuple[str, ...]
    retired: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def gc(store: Store, dry_run: bool = True, wait_s: float = 30.0, by: str = "") -> Collected:
    """Remove patches that nobody can be served, except the newest of each name; or tell which these are.

    Kept: what a tenant has or can be rolled back to, arms of rollouts, members of kept compositions, and records.
    First they are retired; their files go when every live server has drained their adapters. What some have not
    within `wait_s` stays retired, and the next gc goes on there.
    """
    if dry_run:
        return Collected((*store.registry.retired.since(), *unused_in(store)))
    collected = _collect(store, wait_s, by)
    store.files.sweep(_ABANDONED_S)
    return collected


def _collect(store: Store, wait_s: float, by: str = "") -> Collected:
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
