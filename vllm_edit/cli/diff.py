"""`vllm-edit diff`: the differences between two patches' edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_json, print_line

if TYPE_CHECKING:
    from vllm_edit.patch import Edit

PatchArgument = Annotated[str, typer.Argument(help="Name of a compiled patch, or a patch file.")]


def diff(a: PatchArgument, b: PatchArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the edits added, removed and changed from A to B (compiled patches or patch files)."""
    changes = compare(_edits(a, store), _edits(b, store))
    if json:
        print_json(changes)
        return
    for sign, kind in (("+", "added"), ("-", "removed")):
        for edit in changes[kind]:
            print_line(f"{sign} {edit['prompt']} → {edit['target_new']}")
    for change in changes["changed"]:
        edit = change["b"]
        fields = ", ".join(
            f"{field}: {change['a'][field]!r} → {edit[field]!r}" if field != "probes" else "probes"
            for field in change["fields"]
        )
        print_line(f"~ {edit['prompt']}  ({fields})")
    if not any(changes.values()):
        print_line("the same edits")


def compare(a: tuple[Edit, ...], b: tuple[Edit, ...]) -> dict[str, list[Any]]:
    """Compare edits by fact: edits with the same subject and relation (or prompt, if none) are the same fact."""
    before = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in a}
    after = {(edit.subject, edit.relation or edit.prompt): edit.model_dump(mode="json") for edit in b}
    changed = []
    for key in [key for key in after if key in before and before[key] != after[key]]:
        fields = [field for field in after[key] if before[key][field] != after[key][field]]
        changed.append({"fields": fields, "a": before[key], "b": after[key]})
    return {
        "added": [edit for key, edit in after.items() if key not in before],
        "removed": [edit for key, edit in before.items() if key not in after],
        "changed": changed,
    }


def _edits(text: str, store: str | None) -> tuple[Edit, ...]:
    from vllm_edit.patch import Patch
    from vllm_edit.store.store import Store

    if text.endswith((".yaml", ".yml")):
        return Patch.load(text).edits
    opened = Store.open(store)
    return opened.manifest(opened.resolve(text)).edits
