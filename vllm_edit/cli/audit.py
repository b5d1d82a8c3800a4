"""`vllm-edit audit`: list the registry's changes, and verify that the list is complete."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import MOST, JsonOption, StoreOption
from vllm_edit.cli.output import print_error, print_json, print_line, print_table, when

app = group("The registry's changes: list them, and verify that the list is complete.")


@app.command()
def verify(store: StoreOption = None, json: JsonOption = False) -> None:
    """Check the chain of changes and its anchor; report changed, removed and reordered rows, and exit 1."""
    from vllm_edit.store.store import Store

    found = Store.open(store).registry.verify_audit()
    if json:
        print_json({"rows": found.rows, "not_anchored": found.not_anchored, "problems": found.problems})
    else:
        print_error("\n".join(found.problems))
        if not found.problems:
            ahead = f", the newest {found.not_anchored} not anchored yet" if found.not_anchored else ""
            print_line(f"{found.rows} rows, each follows its predecessor{ahead}")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def show(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant's changes.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, metavar="N", help="Only the newest N.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show changes, oldest first: who, what, when and why; --json adds the state before and after."""
    from vllm_edit.store.store import Store

    rows = Store.open(store).registry.audit(tenant, limit)
    if json:
        print_json([row.as_record() for row in rows])
        return
    cells = [(row.number, _when(row.at), row.who, row.what, row.tenant, row.summary, row.why) for row in rows]
    print_table(("ROW", "AT", "WHO", "WHAT", "TENANT", "NOW", "WHY"), cells)


def _when(at: str) -> str:
    try:
        return when(datetime.fromisoformat(at))
    except ValueError:  # tampered with: `verify` reports it
        return at
