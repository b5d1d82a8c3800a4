"""`vllm-edit diff`: the differences between two patches' edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_json, print_line
from vllm_edit.cli.patches import resolved

if TYPE_CHECKING:
    from vllm_edit.edit import Edit

PatchArgument = Annotated[str, typer.Argument(help="Name of a compiled patch, or a patch file.")]


def diff(a: PatchArgument, b: PatchArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the edits added, removed and changed from A to B (compiled patches or patch files)."""
    from vllm_edit.artefacts.edit_changes import compare_edits

    changes = compare_edits(_edits(a, store), _edits(b, store))
    if json:
        print_json(changes)
        return
    for sign, edits in (("+", changes.added), ("-", changes.removed)):
        for edit in edits:
            print_line(f"{sign} {edit['prompt']} → {edit['target_new']}")
    for change in changes.changed:
        fields = ", ".join(
            f"{field}: {change.a.get(field)!r} → {change.b.get(field)!r}" if field != "probes" else "probes"
            for field in change.fields
        )
        print_line(f"~ {change.b['prompt']}  ({fields})")
    if changes.none:
        print_line("the same edits")


def _edits(text: str, store: str | None) -> tuple[Edit, ...]:
    from vllm_edit.patch import Patch, is_patch_file
    from vllm_edit.store.store import Store

    if is_patch_file(text):
        return Patch.load(text).edits
    opened = Store.open(store)
    return opened.manifest(resolved(opened, text)).edits
