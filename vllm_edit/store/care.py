"""Care of a store: is it whole, and what in it can nobody be served."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from vllm_edit.errors import EditError
from vllm_edit.store.names import split_name

if TYPE_CHECKING:
    from vllm_edit.store.store import Store


def problems_of(store: Store) -> list[str]:
    """Every problem, one line each: files that do not match their digests, entries whose files are gone."""
    problems = []
    stored = store.names()
    checks: list[Callable[[], object]] = [store.site, store.material, *(partial(store.check, name) for name in stored)]
    for check in checks:
        try:
            check()
        except EditError as error:
            problems.append(str(error))
    known = {entry.name for entry in store.registry.patches()} | store.registry.published()
    problems += [f"{name} is in the registry, but its files are gone" for name in sorted(known.difference(stored))]
    return problems


def unused_in(store: Store) -> list[str]:
    """Patches that nobody can be served now or after a rollback, except the newest of each name.

    Members of what is kept are kept too.
    """
    stored = store.names()
    newest: dict[str, str] = {}
    for name in stored:
        newest.setdefault(split_name(name)[0], name)
    keep = {*newest.values(), *store.registry.published()}
    for name in [name for name in stored if name in keep]:
        keep.update(store.manifest(name).members)
    return [name for name in stored if name not in keep]
