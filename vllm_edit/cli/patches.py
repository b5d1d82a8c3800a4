"""`vllm-edit list`, `show` and `export`: compiled patches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_fields, print_json, print_line, print_table, when
from vllm_edit.errors import EditError, NotFound, Unavailable

if TYPE_CHECKING:
    from vllm_edit.artefacts.manifest import Manifest
    from vllm_edit.registry.patches import PatchEntry
    from vllm_edit.store.records import Record
    from vllm_edit.store.store import Store

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="capital, capital@4f1c, or the full name.")]


def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List compiled patches, newest first."""
    from vllm_edit.names import short
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    served = opened.registry.served_to()
    found = [_Listed.of(opened, name, served) for name in opened.names()]
    if json:
        print_json([listed.as_record() for listed in found])
        return
    rows = []
    for listed in found:
        entry, manifest = listed.entry, listed.manifest
        made = (len(manifest.edits), manifest.rank, manifest.method)
        tenants = ", ".join(listed.tenants)
        rows.append((short(entry.name), *made, entry.status, when(entry.saved_at), tenants))
    print_table(("NAME", "EDITS", "RANK", "METHOD", "GATE", "SAVED", "SERVED TO"), rows)


def show(name: NameArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show a compiled patch: its edits, its method and settings, and its records."""
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    full = opened.resolve(name)
    listed = _Listed.of(opened, full, opened.registry.served_to())
    manifest, entry = listed.manifest, listed.entry
    records = opened.records(full)
    if json:
        print_json(listed.as_record() | {"manifest": manifest.model_dump(mode="json"), "records": records})
        return
    gate = entry.status + (f" ({entry.reason})" if entry.reason else "")
    facts = {
        "name": full,
        "kind": manifest.kind,
        "scope": _scope(manifest),
        "members": "" if manifest.scope == "subject" else ", ".join(manifest.members),
        "method": manifest.method,
        "module": ", ".join(manifest.modules),
        "rank": manifest.rank,
        "key groups": len(manifest.groups),
        "gate": gate,
        "not judged": _not_judged(records),
        "saved": when(entry.saved_at),
        "adapter id": entry.adapter_id,
        "served to": ", ".join(listed.tenants),
        "records": ", ".join(f"{record.kind} {when(record.at)}" for record in records),
    }
    print_fields(facts)
    print_line()
    # The record of an answer (GET /v1/edits/answers/{id}) refers to these subjects and group numbers.
    group_of = {edit: number for number, group in enumerate(manifest.groups) for edit in group.edits}
    edits = [
        (group_of.get(number, "–"), edit.subject, edit.prompt, edit.target_new, edit.target_true, len(edit.probes))
        for number, edit in enumerate(manifest.edits)
    ]
    print_table(("GROUP", "SUBJECT", "PROMPT", "NEW", "TRUE", "PROBES"), edits)


def export(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the tensors.")] = "float32",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a compiled patch as a PEFT adapter folder, for use without vllm-edit."""
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    full = opened.resolve(name)
    _check_empty(folder)
    import torch

    opened.adapter_files(full)  # verifies the files, and raises for a patch with scope subject
    delta = opened.load(full).delta
    with _filled_or_as_before(folder):
        delta.save_peft(folder, base_name=opened.site().model, dtype=getattr(torch, dtype))
    files = sorted(path.name for path in folder.iterdir())
    print_json({"name": full, "folder": str(folder), "files": files}) if json else print_line(
        f"{full} written to {folder}"
    )


def resolved(store: Store, text: str) -> str:
    """Return the full name of a compiled patch, where a command takes a patch file too.

    Raises:
        NotFound: there is no such patch.
        EditError: it is a file of another suffix than those of a patch.
    """
    from vllm_edit.patch import SUFFIXES

    try:
        return store.resolve(text)
    except NotFound:
        if not os.path.isfile(text):
            raise
    raise EditError(f"{text} is a file; expected a patch named *{' or *'.join(SUFFIXES)}, or a compiled patch's name")


def _check_empty(folder: Path) -> None:
    """Raise `EditError` if the path exists and is not an empty folder."""
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
    except OSError as error:
        raise EditError(f"{folder} cannot be read: {error.strerror}; name a new folder") from error
    if folder.is_dir():
        raise EditError(f"{folder} is not empty; name a new folder")
    if folder.exists() or folder.is_symlink():
        raise EditError(f"{folder} is not a folder; name a new folder")


@contextmanager
def _filled_or_as_before(folder: Path) -> Iterator[None]:
    """Restore an empty or new folder if the block fails: a partial adapter would block the next attempt.

    Raises:
        Unavailable: the disk is full, or cannot be written for another reason.
    """
    made = not folder.exists()
    try:
        yield
    except BaseException as error:
        for left in folder.iterdir() if folder.is_dir() else ():
            left.unlink(missing_ok=True)
        if made and folder.is_dir():
            folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise Unavailable(f"{folder} cannot be written: {reason}; correct that and try again") from error
        raise


def _not_judged(records: Sequence[Record]) -> str:
    """Return the metrics that the last gate could not judge."""
    from vllm_edit.artefacts.reports import GateReport

    gates = [record.data for record in records if record.kind == "gate"]
    return GateReport.of(gates[-1]).not_judged if gates else ""


def _scope(manifest: Manifest) -> str:
    if manifest.scope == "all":
        return "all"
    return f"subject: {len(manifest.members)} subjects with an adapter each, of rank {manifest.rank} at most"


@dataclass(frozen=True)
class _Listed:
    """A compiled patch in a list; `tenants` are served it."""

    entry: PatchEntry
    manifest: Manifest
    tenants: list[str]

    @classmethod
    def of(cls, store: Store, name: str, served: Mapping[str, list[str]]) -> _Listed:
        return cls(store.entry(name), store.manifest(name), served.get(name, []))

    def as_record(self) -> dict[str, object]:
        """As JSON shows it."""
        made = {
            "kind": self.manifest.kind,
            "scope": self.manifest.scope,
            "method": self.manifest.method,
            "rank": self.manifest.rank,
            "edits": len(self.manifest.edits),
        }
        return asdict(self.entry) | made | {"tenants": self.tenants}
