"""`vllm-edit verify` and `gc`: check a store, and remove its unused patches."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_error, print_json, print_line


def verify(store: StoreOption = None, json: JsonOption = False) -> None:
    """Check every file of the store against its digest; exit 1 if there is a problem."""
    from vllm_edit.store.maintenance import problems_of
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    problems, notes = problems_of(opened), opened.notes()
    if json:
        names = opened.stored() if problems else opened.names()
        print_json({"patches": len(names), "problems": problems, "notes": notes})
    elif problems:
        print_error("\n".join(problems))
    else:
        print_line(f"{opened.url}: {len(opened.names())} compiled patches, all files match their digests")
        for note in notes:
            print_line(f"note: {note}", error=True)
    if problems:
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove the patches; without it they are only listed.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Maximum wait until every live server drops the adapters.")
    ] = 30.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List (or remove) compiled patches that are neither published nor the newest of their name.

    Requests can no longer use removed patches. Files that a live server still needs stay for the next gc: exit 1.
    """
    from vllm_edit.store import garbage
    from vllm_edit.store.store import Store

    found = garbage.gc(Store.open(store), dry_run=not yes, wait_s=wait)
    if json:
        print_json(asdict(found) if yes else {"would_remove": found.removed})
    else:
        for name in found.removed:
            print_line(f"{'removed' if yes else 'would remove'} {name}")
        if not found.removed and not found.retired:
            print_line("nothing to remove")
        elif not yes:
            print_line("run again with --yes to remove them")
        for name in found.retired:
            print_error(f"{name} is retired; its files stay for the next gc, {', '.join(found.missing)} may need them")
    if found.retired:
        raise typer.Exit(1)
