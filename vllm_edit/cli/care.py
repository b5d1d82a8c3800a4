"""`vllm-edit verify` and `gc`: is the store whole, and what in it can go."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_edit.cli.output import JsonOption, StoreOption, print_error, print_json


def verify(store: StoreOption = None, json: JsonOption = False) -> None:
    """Check every file of the store against its digest; exits 1 when something is wrong."""
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    problems = opened.verify()
    if json:
        print_json({"patches": len(opened.names()), "problems": problems})
    elif problems:
        print_error("\n".join(problems))
    else:
        print(f"{opened.url}: {len(opened.names())} compiled patches, all files match their digests")
    if problems:
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List (or remove) compiled patches that are neither published nor the newest of their name."""
    from vllm_edit.store.store import Store

    names = Store.open(store).gc(dry_run=not yes)
    if json:
        print_json({"removed" if yes else "would_remove": names})
        return
    for name in names:
        print(f"{'removed' if yes else 'would remove'} {name}")
    if not names:
        print("nothing to remove")
    elif not yes:
        print("run again with --yes to remove them")
