"""`vllm-edit tenant key`: API keys that authenticate a tenant's requests."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import (
    WAIT_S,
    JsonOption,
    StoreOption,
    TenantArgument,
    UntilOption,
    WaitOption,
    WhoOption,
    WhyOption,
)
from vllm_edit.cli.print_api_keys import print_api_keys, print_new_api_key, report_revoked

app = group("API keys that authenticate a tenant's requests.")


@app.command()
def create(
    tenant: TenantArgument,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Whether it may request the base model.")] = True,
    author: Annotated[
        bool, typer.Option("--author", help="It may submit patches to be compiled, and follow their jobs.")
    ] = False,
    label: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    until: UntilOption = None,
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Create a key for a tenant's requests. It is printed once and cannot be shown again."""
    from vllm_edit.store.store import Store

    made = Store.open(store).registry.create_api_key(
        tenant, base=base, author=author, label=label, expires_at=until, by=who
    )
    print_new_api_key(made, json)


@app.command("list")
def list_(tenant: TenantArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """List a tenant's keys, including revoked keys."""
    from vllm_edit.store.store import Store

    print_api_keys(Store.open(store).registry.api_keys(tenant), json)


@app.command()
def revoke(
    tenant: TenantArgument,
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in `list`, or the whole key.")],
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke a key of the tenant permanently."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    report_revoked(registry, registry.revoke_api_key(key, tenant=tenant, why=why, by=who), wait, json)
