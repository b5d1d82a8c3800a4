"""`vllm-edit audit`: who changed what, and whether that record is whole."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.output import MOST, JsonOption, StoreOption, print_error, print_json, print_line, print_table, when

app = group("Who changed what in the registry, and whether that record is whole.")


@app.command()
def verify(store: StoreOption = None, json: JsonOption = False) -> None:
    """Check the chain of changes and its anchor; names what was changed, removed, reordered or cut, and exits 1."""
    from vllm_edit.store.store import Store

    found = Store.open(store).registry.verify_audit()
    if json:
        print_json({"rows": found.rows, "not_anchored": found.not_anchored, "problems": found.problems})
    else:
        print_error("\n".join(found.problems))
        if not found.problems:
            ahead = f", the newest {found.not_anchored} not anchored yet" if found.not_anchored else ""
            print_line(f"{found.rows} rows, each follows the one before{ahead}")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def show(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only what changed for this tenant.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, metavar="N", help="Only the newest N.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show changes, oldest first: who, what, when and why; --json tells what was replaced by what too."""
    from vllm_edit.store.store import Store

    rows = Store.open(store).registry.audit(tenant, limit)
    if json:
        print_json([row.as_dict() for row in rows])
        return
    told = [(row.number, _when(row.at), row.who, row.what, row.tenant, row.summary, row.why) for row in rows]
    print_table(("ROW", "AT", "WHO", "WHAT", "TENANT", "NOW", "WHY"), told)


def _when(at: str) -> str:
    try:
        return when(datetime.fromisoformat(at))
    except ValueError:  # somebody changed it: `verify` tells
        return at
