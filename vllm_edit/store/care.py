"""Care of a store: is it whole, and what in it can nobody be served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from vllm_edit.errors import Corrupt, EditError, Incompatible
from vllm_edit.names import split_name
from vllm_edit.registry.registry import Registry
from vllm_edit.store.documents import KINDS, Kind
from vllm_edit.store.site_files import SITE
from vllm_edit.store.store import Store


def problems_of(store: Store) -> list[str]:
    """Every problem, one line each: files that do not match their digests or each other, entries whose files are gone,
    and what is wrong with the registry and its audit. Empty when all is well."""
    try:
        stored = store.names()
    except Incompatible as error:  # nothing is written to it, but what is wrong with it helps to tell which is which
        foreign = store.registry.unowned()
        found = [f"{SITE} or the registry is another store's: {error}", *_told(store, foreign, sorted(store.stored()))]
        foreign.close()
        return found
    problems = _told(store, store.registry, stored)
    known = {entry.name for entry in store.registry.patches()} | store.registry.published()
    problems += [f"{name} is in the registry, but its files are gone" for name in sorted(known.difference(stored))]
    return problems


def _told(store: Store, registry: Registry, stored: Sequence[str]) -> list[str]:
    """Problems of the store's files, of the patches `stored`, and of the registry in itself."""
    checks: list[Callable[[], Iterable[str]]] = [
        partial(_site_problems, store, stored),
        *(partial(_document_problems, store, kind) for kind in KINDS),
        registry.problems,
        *(partial(_patch_problems, store, name) for name in stored),
    ]
    problems: list[str] = []
    for check in checks:
        try:
            for problem in check():
                problems.append(problem)
        except EditError as error:
            problems.append(str(error))
    return problems


def _site_problems(store: Store, stored: Iterable[str]) -> Iterator[str]:
    site = store.site().digest
    for name in stored:
        try:
            compiled_at = store.manifest(name).site
        except Corrupt:
            continue  # told by the patch's own check
        if compiled_at != site:
            yield f"{name} was compiled at site {compiled_at}, {SITE} holds {site}: one of them is another store's"
    store.material()


def _document_problems(store: Store, kind: Kind) -> Iterable[str]:
    store.document(kind)
    return ()


def _patch_problems(store: Store, name: str) -> Iterator[str]:
    """One line at most for its artefact, and one for its records."""
    for check in (store.check, store.records):
        try:
            check(name)
        except EditError as error:
            yield str(error)


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
