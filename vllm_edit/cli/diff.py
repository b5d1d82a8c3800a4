"""`vllm-edit diff`: the differences between two patches' edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_json, print_line
from vllm_edit.json_value import JSONObject

if TYPE_CHECKING:
    from vllm_edit.patch import Edit

PatchArgument = Annotated[str, typer.Argument(help="Name of a compiled patch, or a patch file.")]


def diff(a: PatchArgument, b: PatchArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the edits added, removed and changed from A to B (compiled patches or patch files)."""
    changes = compare(_edits(a, store), _edits(b, store))
    if json:
        print_json(changes)
        return
    for sign, edits in (("+", changes.added), ("-", changes.removed)):
        for edit in edits:
            print_line(f"{sign} {edit['prompt']} → {edit['target_new']}")
    for change in changes.changed:
        fields = ", ".join(
            f"{field}: {change.a[field]!r} → {change.b[field]!r}" if field != "probes" else "probes"
            for field in change.fields
        )
        print_line(f"~ {change.b['prompt']}  ({fields})")
    if not (changes.added or changes.removed or changes.changed):
        print_line("the same edits")


@dataclass(frozen=True)
class Change:
    """An edit of both patches, as JSON, and the names of its fields that differ."""

    fields: list[str]
    a: JSONObject
    b: JSONObject


@dataclass(frozen=True)
class Changes:
    """The differences between patch A and patch B. `added`: edits of B only. `removed`: edits of A only."""

    added: list[JSONObject]
    removed: list[JSONObject]
    changed: list[Change]


def compare(a: tuple[Edit, ...], b: tuple[Edit, ...]) -> Changes:
    """Compare edits by fact: edits with the same subject and relation (or prompt, if none) are the same fact."""
    before = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in a}
    after = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in b}
    changed = []
    for key in [key for key in after if key in before and before[key] != after[key]]:
        fields = [field for field in after[key] if before[key][field] != after[key][field]]
        changed.append(Change(fields, before[key], after[key]))
    return Changes(
        added=[edit for key, edit in after.items() if key not in before],
        removed=[edit for key, edit in before.items() if key not in after],
        changed=changed,
    )


def _edits(text: str, store: str | None) -> tuple[Edit, ...]:
    from vllm_edit.patch import Patch
    from vllm_edit.store.store import Store

    if text.endswith((".yaml", ".yml")):
        return Patch.load(text).edits
    opened = Store.open(store)
    return opened.manifest(opened.resolve(text)).edits
