"""Maintenance of a store: verify its files, and find the patches that no tenant can be served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from vllm_edit.errors import Corrupt, EditError, Incompatible
from vllm_edit.names import split_name
from vllm_edit.registry.registry import Registry
from vllm_edit.store.documents import KINDS, Kind
from vllm_edit.store.signers import difference, read_signers
from vllm_edit.store.signing import lost, sealed, signatures_of
from vllm_edit.store.site_files import SITE
from vllm_edit.store.store import Store


def problems_of(store: Store) -> list[str]:
    """Find every problem, one line each; an intact store has none.

    Problems are files that do not match their digests or each other, registry entries whose files are missing, damage
    of the registry and its audit, and a list of signers or signatures that differ from the audit.
    """
    try:
        stored = store.names()
    except Incompatible as error:  # check the foreign registry without writing to it: its problems help to identify it
        foreign = store.registry.unowned()
        found = [f"{SITE} or the registry belongs to another store: {error}"]
        found += _problems(store, foreign, sorted(store.stored()))
        foreign.close()
        return found
    problems = _problems(store, store.registry, stored)
    known = {entry.name for entry in store.registry.patches()} | store.registry.published()
    problems += [f"{name} is in the registry, but its files are gone" for name in sorted(known.difference(stored))]
    return problems


def _problems(store: Store, registry: Registry, stored: Sequence[str]) -> list[str]:
    """Problems of the store's files, of the patches `stored`, and of the registry."""
    checks: list[Callable[[], Iterable[str]]] = [
        partial(_site_problems, store, stored),
        *(partial(_document_problems, store, kind) for kind in KINDS),
        registry.problems,
        partial(_signer_problems, store, registry),
        partial(lost, store.files, registry, stored),
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
            continue  # the patch's own check reports it
        if compiled_at != site:
            yield f"{name} was compiled at site {compiled_at}, but {SITE} holds {site}: one is from another store"
    store.site_tensors()


def _signer_problems(store: Store, registry: Registry) -> Iterator[str]:
    if problem := difference(store.files, registry):
        yield problem


def _document_problems(store: Store, kind: Kind) -> Iterable[str]:
    store.document(kind)
    return ()


def _patch_problems(store: Store, name: str) -> Iterator[str]:
    """At most one line each for the patch's files, its records and its signatures."""
    for check in (store.check, store.records, partial(_check_signatures, store)):
        try:
            check(name)
        except EditError as error:
            yield str(error)


def _check_signatures(store: Store, name: str) -> None:
    """Raise if a patch has only signatures that do not count, or needs one: its store requires it, and it is served.

    Without a list of trusted keys, signatures mean nothing.
    """
    signers, signatures = read_signers(store.files), signatures_of(store.files, name)
    needed = signers.required and name in store.registry.published()
    if needed or (signers.keys and signatures):
        signers.check(name, sealed(store.files, name), signatures)


def unused_in(store: Store) -> list[str]:
    """Return the patches that no tenant can be served, now or after a rollback, except the newest of each name.

    Members of a composition that is in use are in use too.
    """
    stored = store.names()
    newest: dict[str, str] = {}
    for name in stored:
        newest.setdefault(split_name(name)[0], name)
    keep, added = set[str](), {*newest.values(), *store.registry.published()}
    while added:  # a member may be a composition too
        keep |= added
        added = {member for name in added.intersection(stored) for member in store.manifest(name).members} - keep
    return [name for name in stored if name not in keep]
