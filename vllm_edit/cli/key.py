"""`vllm-edit key`: administrators' keys, and all keys at once."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import WAIT_S, JsonOption, StoreOption, UntilOption, WaitOption, WhoOption, WhyOption
from vllm_edit.cli.print_api_keys import print_api_keys, print_new_api_key, report_revoked

app = group("Administrators' keys, and all keys at once.")


@app.command()
def create(
    admin: Annotated[bool, typer.Option("--admin", help="A key for the admin routes.")] = False,
    label: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    until: UntilOption = None,
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Create an administrator's key. It is printed once and cannot be shown again."""
    from vllm_edit.store.store import Store

    if not admin:
        raise typer.BadParameter("expected --admin; `vllm-edit tenant key create TENANT` creates a tenant's key")
    print_new_api_key(Store.open(store).registry.create_api_key(None, label=label, expires_at=until, by=who), json)


@app.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List all keys of administrators and tenants, including revoked keys."""
    from vllm_edit.store.store import Store

    print_api_keys(Store.open(store).registry.api_keys(), json)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in `list`, or the whole key.")],
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke any key permanently."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    report_revoked(registry, registry.revoke_api_key(key, why=why, by=who), wait, json)
