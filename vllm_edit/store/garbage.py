"""Garbage collection: unused patches leave the registry, then the servers, then the disk.

    retired     in the registry: new requests cannot use the patch
    drained     by every server: its requests have ended, its adapter has left the engine and the node
    deleted     its files, while other changes of the registry proceed
    removed     its entry in the registry

After a kill at any step, the next collection continues.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from vllm_edit.store.maintenance import unused_in
from vllm_edit.store.store import Store

_ABANDONED_S = 24 * 3600.0  # no writer takes a day: the writer of an older temporary file has died


@dataclass(frozen=True)
class Collected:
    """Result of a collection.

    Attributes:
        removed: Patches that were removed; in a dry run, those that would be.
        retired: Patches that are retired but not yet removed.
        missing: Servers (`host:pid`) that may still hold the retired patches.
    """

    removed: tuple[str, ...]
    retired: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def gc(store: Store, dry_run: bool = True, wait_s: float = 30.0, by: str = "") -> Collected:
    """Remove patches that no tenant can be served, except the newest of each name.

    Patches in use stay: those that a tenant is served or can be rolled back to, arms of rollouts and members of
    compositions in use. Records stay too. A patch is first retired; its files are deleted once every live server has
    drained its adapter. A patch that a server has not drained within `wait_s` stays retired for the next gc.

    Args:
        store: The store.
        dry_run: Only list the patches.
        wait_s: Maximum wait for the servers, in seconds.
        by: Who removes them, for the audit.
    """
    if dry_run:
        return Collected((*store.registry.retired.since(), *unused_in(store)))
    collected = _collect(store, wait_s, by)
    store.files.sweep(_ABANDONED_S)
    return collected


def _collect(store: Store, wait_s: float, by: str = "") -> Collected:
    """Retire unused patches, and remove those that every live server has drained within `wait_s`."""
    registry, ends = store.registry, time.monotonic() + wait_s
    seen = registry.servers.seen()  # before the changes below: a server that has drained need not follow them
    entries = {entry.name: entry for entry in registry.patches()}
    for name in unused_in(store):
        if name in entries:
            registry.retired.add(entries[name], by)
    waiting, removed = registry.retired.since(), list[str]()
    for name, since in list(waiting.items()):
        drained = registry.servers.wait(since, max(0.0, ends - time.monotonic()), drained=True, seen=seen)
        if drained.missing:  # these servers have not drained patches that were retired later either
            return Collected(tuple(removed), tuple(waiting), drained.missing)
        if registry.retired.remove(name, since, partial(store.remove_files, name), by):
            removed.append(name)
        del waiting[name]
    return Collected(tuple(removed))
